"""`--runtime auto`: what is measured, what is taken, and what is said. Times are made up here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from autoquant.errors import ModelError, UsageError
from autoquant.models.layers import inspect
from autoquant.price import choose, choose_runtime
from autoquant.runtimes import Runtime, TorchRuntime
from autoquant.settings import Settings
from autoquant.values import RuntimeChoice

SCHEMES = (
    "int8-channel-sym/a8-token", "int8-channel-sym", "int8-channel-asym", "int8-channel-sym/a8-static",
    "int8-channel-sym/a8-outlier",
)  # fmt: skip
WIDTH = 64
"""Wide enough for outlier channels, which are not known yet when a runtime is chosen."""


class Other(TorchRuntime):
    name = "other"
    devices = ("cpu",)


class Broken(Other):
    name = "broken"

    def serve(self, model: nn.Module) -> nn.Module:
        raise ModelError("It cannot take this model.")


class Absent(Other):
    name = "absent"

    @classmethod
    def missing(cls) -> str | None:
        return "Absent is not installed."


def dtype(model: nn.Module) -> torch.dtype:
    """The model's own, or float32: an int8 layer takes any."""
    return next((p.dtype for p in model.parameters()), torch.float32)


def chosen(
    monkeypatch: pytest.MonkeyPatch, kinds: list[type[Runtime]], device: str = "cpu", factor: float = 0.5
) -> tuple[RuntimeChoice, list[str]]:
    """The choice, and the maps that were timed; the n-th map timed takes `factor`ⁿ ms."""
    timed: list[str] = []

    def made_up(models, **options):
        (name,) = models
        models[name]()  # it runs
        timed.append(name)
        return {name: (factor ** len(timed), 0.0)}

    monkeypatch.setattr(choose, "RUNTIMES", {kind.name: kind for kind in kinds})
    monkeypatch.setattr(choose, "time_models", made_up)
    task: Any = SimpleNamespace(
        example=lambda rows, length: {"x": torch.ones(rows, WIDTH)},
        forward=lambda model, batch: model(batch["x"].to(dtype(model))),
    )
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, 8)).eval()
    found = choose_runtime(model, task, inspect(model), SCHEMES, device=device, batch_size=2, seq_len=None)
    return found, timed


def test_the_runtime_with_the_fastest_map_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found, timed = chosen(monkeypatch, [TorchRuntime, Other])
    assert found.chosen == "other" and set(found.ms) == {"torch", "other"}
    assert timed == ["float32", "bfloat16", "int8-channel-sym/a8-token", "int8-channel-sym"] * 2
    assert min(found.ms["other"].values()) < min(found.ms["torch"].values())
    assert found.reason.index("other 0.0 ms") < found.reason.index("torch 0.1 ms")
    found, _ = chosen(monkeypatch, [TorchRuntime, Other], factor=2.0)
    assert found.chosen == "torch"
    assert RuntimeChoice.from_dict(found.to_dict()) == found


def test_one_usable_runtime_is_taken_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    found, timed = chosen(monkeypatch, [TorchRuntime, Absent])
    assert found.chosen == "torch" and not timed and not found.ms
    assert found.left_out == {"absent": "Absent is not installed."} and "Absent is not installed." in found.reason


def test_a_runtime_that_cannot_take_the_model_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = chosen(monkeypatch, [TorchRuntime, Broken])
    assert found.chosen == "torch" and "cannot take" in found.left_out["broken"] and "Not measured" in found.reason


def test_auto_is_a_setting_and_a_misspelt_runtime_is_not(tmp_path: Path) -> None:
    assert Settings(runtime="auto").runtime == "auto"
    with pytest.raises(UsageError, match="auto"):
        Settings(runtime="autoo")
