"""One-layer maps run from their first changed block on: the same outputs, from fewer blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autoquant.models.layers import inspect
from autoquant.replay import Replay
from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.assemble import Assembler
from autoquant.tasks.base import Batch, Task
from tests.opened import bert, gpt2, tied_llama, vit

SCHEME = "int8-channel-sym/a8-token"
PLAN = [[0, 1, 2], [3, 4], [5]]


class Outputs(Task):
    """What a model gives for rows of numbers or of pixels."""

    name = "outputs"
    metric = "none"
    output_kind = "bernoulli"

    def rows(self, split: str) -> int:
        return sum(map(len, PLAN))

    items = rows

    def lengths(self, split: str) -> Sequence[int]:
        return [8] * self.rows(split)

    def batch(self, split: str, rows: Sequence[int]) -> Batch:
        return {"rows": torch.tensor(rows)}

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        rows = batch["rows"]
        if "ViT" in type(model).__name__:
            pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
            return model(pixels[rows]).logits
        output = model(input_ids=4 + (torch.arange(8) * 7 + 3 * rows[:, None]) % 100)
        return output.logits if "logits" in output else output.last_hidden_state

    def score(self, split: str, reduced: Tensor, reference: Tensor | None = None):
        raise NotImplementedError

    def example(self, batch_size: int, seq_len: int | None) -> Batch:
        raise NotImplementedError


@pytest.fixture(params=[tied_llama, gpt2, vit, bert], ids=lambda make: make.__name__)
def assembler(request: pytest.FixtureRequest, tmp_path: Path) -> Assembler:
    make: Callable[[Path], nn.Module] = request.param
    model = make(tmp_path / "model").eval()
    return Assembler(model, inspect(model), TorchRuntime())


def replay_of(assembler: Assembler, room: int = 2**20) -> Replay:
    return Replay(Outputs(), PLAN, [layer.name for layer in assembler.inventory.layers], assembler.assemble, room)


def block_of(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_a_one_layer_map_gives_what_the_whole_model_gives(assembler: Assembler, base: str) -> None:
    replay, task = replay_of(assembler), Outputs()
    for layer in assembler.inventory.layers:
        found = list(replay.outputs(base, {layer.name: SCHEME}))
        model = assembler.assemble({layer.name: SCHEME}, base)
        assert [rows for rows, *_ in found] == PLAN
        for _, output, batch in found:
            with torch.inference_mode():
                whole = task.forward(model, batch)
            torch.testing.assert_close(output, whole, rtol=1e-4, atol=1e-4 if base == "float32" else 0.3)


def test_blocks_before_the_first_changed_one_do_not_run(assembler: Assembler) -> None:
    replay = replay_of(assembler)
    list(replay.outputs("float32", {}))
    for layer in assembler.inventory.layers:
        model = assembler.assemble({}, "float32")
        first = next(m for name, m in model.named_modules() if isinstance(m, nn.ModuleList))[0]
        ran: list[int] = []
        inner = next(m for m in first.modules() if isinstance(m, nn.LayerNorm) or "RMSNorm" in type(m).__name__)
        hook = inner.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        list(replay.outputs("float32", {layer.name: SCHEME}))
        hook.remove()
        block = block_of(layer.name)
        late = block == 1 or "classifier" in layer.name or "pooler" in layer.name
        assert not late or not ran, f"{layer.name} is behind block 0, which ran all the same"


def test_outputs_that_do_not_fit_into_the_room_are_not_kept(assembler: Assembler) -> None:
    replay, task = replay_of(assembler, room=1), Outputs()
    last = assembler.inventory.layers[-1].name
    for _, output, batch in replay.outputs("float32", {last: SCHEME}):
        with torch.inference_mode():
            whole = task.forward(assembler.assemble({last: SCHEME}, "float32"), batch)
        torch.testing.assert_close(output, whole, rtol=1e-4, atol=1e-4)
    assert not any(replay._recorded["float32"].kept)


def test_a_model_whose_blocks_give_tuples_runs_whole(assembler: Assembler) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.ModuleDict({"one": nn.Linear(8, 8)}) for _ in range(2))
            for block in self.blocks:
                block.forward = lambda x, block=block: (block["one"](x), 1)  # type: ignore[method-assign]

        def forward(self, input_ids: Tensor):
            x = input_ids.float()
            for block in self.blocks:
                x, _ = block(x)
            return {"logits": x}

    class Task(Outputs):
        def forward(self, model: nn.Module, batch: Batch) -> Tensor:
            return model(batch["rows"][:, None].float().expand(-1, 8))["logits"]

    pair = Pair().eval()
    one = Assembler(pair, inspect(pair), TorchRuntime())
    replay = Replay(Task(), PLAN, ["blocks.0.one", "blocks.1.one"], one.assemble)
    for _, output, batch in replay.outputs("float32", {"blocks.1.one": SCHEME}):
        with torch.inference_mode():
            whole = Task().forward(one.assemble({"blocks.1.one": SCHEME}, "float32"), batch)
        torch.testing.assert_close(output, whole)
