"""Profiles of tiny models, against quantizing one layer after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from autoquant.errors import NumericsError
from autoquant.layer_maps import input_absmax, outliers
from autoquant.models.layers import Inventory, inspect
from autoquant.models.loading import architectures, load_model
from autoquant.profile import measure_profile
from autoquant.profile.fisher import divergence
from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.assemble import Assembler
from autoquant.schemes import SCHEMES
from autoquant.tasks import TASKS, Task, batches, make
from autoquant.values import Profile
from tests import tiny

CHOSEN = (
    "int8-tensor-sym/a8-tensor", "int8-channel-sym", "int8-tensor-asym/a8-static", "int8-channel-asym/a8-token",
    "int8-tensor-sym/a8-outlier",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    model: nn.Module
    task: Task
    inventory: Inventory

    def schemes(self) -> dict[str, tuple[str, ...]]:
        runtime = TorchRuntime()
        return {
            x.name: tuple(s for s in CHOSEN if runtime.supports(x, SCHEMES[s]) is None) for x in self.inventory.layers
        }

    def assembler(self) -> Assembler:
        return Assembler(self.model, self.inventory, TorchRuntime())

    def profile(self, **options) -> Profile:
        return measure_profile(self.model, self.task, self.inventory, self.assembler(), self.schemes(), **options)

    def one_by_one(self, profile: Profile) -> dict[tuple[str, str], float]:
        """The exact mean divergence of quantizing each layer alone."""
        assembler, found = self.assembler(), {}
        assembler.input_absmax.update(input_absmax(profile))
        assembler.outliers.update(outliers(profile))
        for name, schemes in self.schemes().items():
            for scheme in schemes:
                quantized, total, count = assembler.assemble({name: scheme}, "float32"), 0.0, 0
                for rows in batches(self.task, "calibration", 16):
                    batch = self.task.batch("calibration", rows)
                    with torch.no_grad():
                        each = divergence(
                            self.task.forward(quantized, batch),
                            self.task.forward(self.model, batch),
                            self.task.output_kind,
                        )
                    mask = self.task.mask(batch) if self.task.positions else None
                    each = each if mask is None else each[mask]
                    total, count = total + each.sum().item(), count + each.numel()
                found[name, scheme] = total / count
        return found


def make_case(task: str, model: Callable[[Path], Path], folder: Path, rows: int, **options) -> Case:
    source = model(folder / "model")
    loaded = load_model(str(source), TASKS[task].auto_class_for(architectures(source)))
    path = folder / "data.csv"
    path.write_text("text\n" + "\n".join(tiny.texts(8 * rows + 80)))
    sizes = {"calibration": rows, "search": 8, "certification": 40}
    made = make(task, path, loaded.processor, model=loaded.model, sizes=sizes, **options)
    return Case(loaded.model, made, inspect(loaded.model))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("fidelity", tiny.bert, tmp_path_factory.mktemp("bert"), 32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("fidelity", tiny.llama, tmp_path_factory.mktemp("llama"), 24, max_length=16)


@pytest.mark.parametrize("which", ["bert", "llama"])
def test_the_score_ranks_layers_and_schemes_as_quantizing_each_alone_does(
    which: str, request: pytest.FixtureRequest
) -> None:
    case: Case = request.getfixturevalue(which)
    profile = case.profile(probes=24)
    exact = case.one_by_one(profile)
    pairs = [(profile.scores[name][scheme], truth) for (name, scheme), truth in exact.items()]
    assert all((score > 0) == (truth > 0) for score, truth in pairs), "the pooler is not used, and only that"
    used = [pair for pair in pairs if pair[1] > 0]
    assert spearmanr(used).statistic > 0.9
    ratios = [math.log(score / truth) for score, truth in used]
    assert abs(sum(ratios) / len(ratios)) < 0.2, "it is a divergence in nats, not only a rank"


def test_the_same_seed_gives_the_same_profile_and_another_one_nearly(bert: Case) -> None:
    one, two, other = (bert.profile(seed=seed) for seed in (0, 0, 1))
    assert replace(one, seconds=0, forwards=0) == replace(two, seconds=0, forwards=0)
    assert one.scores != other.scores and one.sqnr_db == other.sqnr_db and one.stats == other.stats


@pytest.mark.parametrize("gradient", [True, False])
def test_the_model_is_left_as_it_was(bert: Case, gradient: bool) -> None:
    model = bert.model.requires_grad_(True)
    next(iter(model.parameters())).requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    bert.profile(gradient=gradient, probes=1)
    for name, p in model.named_parameters():
        assert p.requires_grad == before[name][0] and torch.equal(p, before[name][1]) and p.grad is None, name
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_without_gradients_schemes_are_ranked_by_their_output_error(bert: Case) -> None:
    profile = bert.profile(gradient=False)
    assert profile.method == "output-error"
    for name, scores in profile.scores.items():
        by_score, by_noise = (
            sorted(scores, key=scores.__getitem__),
            sorted(scores, key=lambda s: -profile.sqnr_db[name][s]),
        )
        assert by_score == by_noise and all(score > 0 for score in scores.values())


def test_a_profile_describes_every_layer_and_every_scheme_asked_for(llama: Case) -> None:
    profile = llama.profile(probes=1)
    assert profile.method == "fisher" and profile.rows == llama.task.rows("calibration") and profile.forwards > 1
    names = [layer.name for layer in llama.inventory.layers]
    assert list(profile.stats) == names and set(profile.scores) == set(names) == set(profile.sqnr_db)
    assert {name: tuple(row) for name, row in profile.scores.items()} == llama.schemes()
    modules = dict(llama.model.named_modules())
    for layer in llama.inventory.layers:
        stats, weight = profile.stats[layer.name], modules[layer.name].weight
        assert stats.weight_min == weight.min().item() and stats.weight_max == weight.max().item()
        assert stats.channel_range_ratio >= 1
        assert (stats.input_absmax is None) == (layer.kind == "embedding")
    assert Profile.from_dict(profile.to_dict()) == profile


def test_ranges_and_outlier_channels_are_put_where_schemes_find_them(bert: Case) -> None:
    assembler = bert.assembler()
    measure_profile(bert.model, bert.task, bert.inventory, assembler, bert.schemes(), probes=1)
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str):
        def hook(module: nn.Module, args: tuple[torch.Tensor]) -> None:
            top = args[0].detach().abs().flatten(0, -2).amax(0)
            seen[name] = torch.maximum(seen.get(name, top), top)

        return hook

    modules = dict(bert.model.named_modules())
    handles = [
        modules[x.name].register_forward_pre_hook(watch(x.name)) for x in bert.inventory.layers if x.kind != "embedding"
    ]
    for rows in batches(bert.task, "calibration", 16):
        with torch.no_grad():
            bert.task.forward(bert.model, bert.task.batch("calibration", rows))
    for handle in handles:
        handle.remove()
    assert {name: float(top.max()) for name, top in seen.items()} == pytest.approx(assembler.input_absmax)
    assert set(assembler.outliers) == set(seen)
    for name, top in seen.items():
        found = torch.tensor(assembler.outliers[name])
        assert top[found].min() >= top.sort(descending=True).values[len(found) - 1], name


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    case = make_case("fidelity", tiny.bert, tmp_path, 8)
    with torch.no_grad():
        case.model.encoder.layer[1].output.dense.weight[0, 0] = math.nan
    with pytest.raises(NumericsError, match="calibration data"):
        case.profile()
