"""Projections that engines fuse are tied where the runtime or the user wants it, down to the checkpoint; else they are free."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoquant import api, artifacts, trial
from autoquant.checkpoint import apply, read_layer_map
from autoquant.models.layers import groups, inspect
from autoquant.models.loading import load_model
from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.native import avx512
from autoquant.session import Progress, Session
from autoquant.settings import Settings
from autoquant.tasks import make
from tests import tiny


class Fusing(TorchRuntime):
    """A runtime that runs siblings as one product."""

    def fuses(self, device: str) -> bool:
        return True


class Apart(TorchRuntime):
    """One that does not."""

    def fuses(self, device: str) -> bool:
        return False


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n\n".join(tiny.texts(1500)), encoding="utf8")
    return path


@pytest.mark.parametrize(
    ("asked", "runtime", "tied", "why"),
    [
        (None, Apart(), False, "serves them mixed"),
        (None, Fusing(), True, "as one product"),
        (True, Apart(), True, "because of --fuse"),
        (False, Fusing(), False, "because of --no-fuse"),
    ],
)
def test_the_runtime_decides_unless_the_user_does(llama, tmp_path, capsys, asked, runtime, tied, why):
    session = Session(Settings(model=str(llama), task="causal-lm", fuse=asked), tmp_path, Progress())
    session.__dict__["runtime"] = runtime
    inventory = session.inventory
    capsys.readouterr()  # what saving and loading the model said
    assert session.groups == groups(inventory.layers, fuse=tied)
    said = capsys.readouterr().err
    assert said.startswith("Tied" if tied else "Free") and why in said and said.count("\n") == 1
    assert "2 × q_proj+k_proj+v_proj, 2 × gate_proj+up_proj" in said


def test_the_torch_runtime_fuses_where_its_graphs_join_them():
    assert TorchRuntime().fuses("cpu") is avx512.available() and not TorchRuntime().fuses("cuda")


def test_a_model_without_such_projections_hears_nothing_of_them(tmp_path, capsys):
    folder = tiny.gpt2(tmp_path / "gpt2")
    session = Session(Settings(model=str(folder), task="causal-lm", fuse=True), tmp_path, Progress())
    inventory = session.inventory
    capsys.readouterr()  # what saving and loading the model said
    assert session.groups == groups(inventory.layers) and capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("fuse", [True, False])
def test_a_checkpoint_that_was_asked_to_be_fusable_is(tmp_path, monkeypatch, llama, texts, fuse):
    """Whatever random maps are drawn: without --fuse they mix schemes within q/k/v, with it none does, nor what is shipped."""
    loaded = load_model(str(llama), "AutoModelForCausalLM")
    task = make("causal-lm", str(texts), loaded.processor, max_length=32, model=loaded.model,
                sizes={"calibration": 8, "search": 30, "certification": 30})  # fmt: skip
    found: list[dict[str, str]] = []
    judge = trial.Judge.__call__
    monkeypatch.setattr(trial.Judge, "__call__", lambda self, base, map_: found.append(map_) or judge(self, base, map_))
    result = api.search(
        loaded.model, task, out=tmp_path / "run", quiet=True, strategy="random", cold=True, trials=6, fuse=fuse, budget=0.5,
        objective="memory", confidence=None, threads=1,
    )  # fmt: skip
    families = [[layer.name for layer in group.layers] for group in groups(inspect(loaded.model).layers, fuse=True)]
    mixed = [any(len({layers[name] for name in names}) > 1 for names in families) for layers in found]
    assert len(found) >= 4 and any(mixed) is not fuse
    shipped = read_layer_map(result.folder / "checkpoint")
    assert shipped.layers == read_layer_map(tmp_path / "run").layers
    if fuse:
        assert {tuple(names) for names in families if len(names) > 1} == set(shipped.groups)
        assert all(len({shipped.layers[name] for name in names}) == 1 for names in families)
        assert artifacts.read_yaml(tmp_path / "run" / "settings.yaml")["fuse"] is True
    apply.apply_map(loaded.model, shipped)
