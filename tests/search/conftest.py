"""One PostgreSQL server for all tests that need it; each has a database of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from search.postgres import Server, missing, server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    if why := missing():
        pytest.skip(why)
    with server() as found:
        yield found
