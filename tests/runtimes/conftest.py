"""Graphs are captured anew in every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoquant.runtimes.graph import store


@pytest.fixture(autouse=True)
def stored_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that captured graphs are stored in."""
    folder = tmp_path / "graphs"
    monkeypatch.setattr(store, "folder", lambda: folder)
    return folder
