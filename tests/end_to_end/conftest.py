"""One model and its data a module; each module's folders are its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tests.jobs import labelled


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def model(workplace: Path) -> Path:
    return tiny.bert_classifier(workplace / "model")


@pytest.fixture(scope="module")
def data(workplace: Path, model: Path) -> Path:
    return labelled(workplace, model)
