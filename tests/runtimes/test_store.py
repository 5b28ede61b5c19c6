"""A stored graph is the captured one; anything else in its place is refused, and the graph captured again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageClassification
from transformers.cache_utils import DynamicCache

from autoquant.models.layers import inspect
from autoquant.runtimes import TorchRuntime
from autoquant.runtimes.assemble import Assembler
from autoquant.runtimes.graph import cache, forward, plain, store
from autoquant.runtimes.native import avx512
from autoquant.schemes import SCHEMES, project
from tests import tiny

pytestmark = pytest.mark.skipif(not avx512.available(), reason="no AVX-512 VNNI or no C compiler: no graphs here")

INT8 = "int8-channel-sym/a8-token"
CLASSES = {"bert": AutoModel, "vit": AutoModelForImageClassification}


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOQUANT_GRAPH", "1")


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every graph that is captured."""
    return _counted(monkeypatch, "capture")


@pytest.fixture
def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every comparison of a graph with its model."""
    return _counted(monkeypatch, "_agree")


def _counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    found: list[Any] = []
    real: Callable[..., Any] = getattr(forward, name)
    monkeypatch.setattr(forward, name, lambda *args: (found.append(args), real(*args))[1])
    return found


def served(kind: str, folder: Path, scheme: str = INT8, base: str = "float32") -> nn.Module:
    """As a fresh process would load it: the same folder gives the same model."""
    if not folder.is_dir():
        getattr(tiny, kind)(folder)
    model = CLASSES.get(kind, AutoModelForCausalLM).from_pretrained(folder).eval()
    inventory, runtime = inspect(model), TorchRuntime()
    layers = {}
    for layer in inventory.layers:
        wanted = project(SCHEMES[scheme], layer.kind)
        fits = runtime.supports(layer, wanted) is None and layer.tied_to is None
        layers[layer.name] = wanted.name if fits else base
    return Assembler(model, inventory, runtime, {}).assemble(layers, base)


def output(model: nn.Module, kind: str, rows: int = 3, length: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    with torch.inference_mode():
        if kind == "vit":
            dtype = next(p.dtype for p in model.parameters())
            return model(pixel_values=torch.randn(rows, 3, 16, 16, generator=generator).to(dtype)).logits
        ids = torch.randint(4, 100, (rows, length), generator=generator)
        found = model(input_ids=ids) if kind == "bert" else model(input_ids=ids, use_cache=False)
    return found.last_hidden_state if kind == "bert" else found.logits


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["bert", "vit", "llama", "gpt2"])
def test_the_next_process_reads_what_this_one_captured(
    kind: str, base: str, tmp_path: Path, captures: list, comparisons: list
) -> None:
    first = served(kind, tmp_path / "m", base=base)
    right = output(first, kind)
    assert len(captures) == len(comparisons) == 1 and any(first.forward.lowered.values())
    second = served(kind, tmp_path / "m", base=base)
    assert torch.equal(output(second, kind), right) and any(second.forward.lowered.values())
    assert torch.equal(output(second, kind, 1, 5), output(first, kind, 1, 5))
    assert len(captures) == len(comparisons) == 1, "one row is captured as several are"


@pytest.mark.parametrize("kind", ["bert", "vit", "llama", "gpt2"])
def test_plain_data_hold_the_whole_graph(kind: str, tmp_path: Path, stored_graphs: Path) -> None:
    model = served(kind, tmp_path / "m")
    output(model, kind)
    data = json.loads(next(stored_graphs.iterdir()).read_text())["graph"]
    assert plain.to_plain(plain.from_plain(data, model)) == data


def test_decoding_does_not_wait_for_a_graph_that_is_stored(
    tmp_path: Path, captures: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(4, 100, (1, 6), generator=torch.Generator().manual_seed(1))

    def decode(model: nn.Module) -> Tensor:
        past = DynamicCache()
        with torch.inference_mode():
            model(ids, past_key_values=past, use_cache=True)
            return torch.cat([model(ids[:, :1], past_key_values=past, use_cache=True).logits for _ in range(4)])

    monkeypatch.setattr(forward, "FEW", 2)
    first = served("llama", tmp_path / "m")
    decode(first)
    decode(first)
    assert any((cache.NAME, True) in key for key in first.forward.lowered)
    right, before = decode(first), len(captures)
    monkeypatch.setattr(forward, "FEW", 1000)
    second = served("llama", tmp_path / "m")
    assert torch.allclose(decode(second), right, atol=1e-4)
    assert any((cache.NAME, True) in key for key in second.forward.lowered) and len(captures) == before


def test_another_map_of_the_model_is_compared_and_then_known(tmp_path: Path, captures: list, comparisons: list) -> None:
    maps = ("int8-channel-sym/a8-token", "int8-channel-sym")
    for count, scheme in enumerate((*maps, *maps), 1):
        output(served("bert", tmp_path / "m", scheme), "bert")
        assert (len(captures), len(comparisons)) == (1, min(count, 2)), scheme


@pytest.mark.parametrize("change", ["torch", "transformers", "config", "attribute", "code"])
def test_a_graph_of_something_else_is_not_found(
    change: str, tmp_path: Path, captures: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    output(served("bert", tmp_path / "m"), "bert")
    model = served("bert", tmp_path / "m")
    if change == "config":
        model.config.layer_norm_eps = 1e-3
    elif change == "attribute":
        model.encoder.layer[0].output.LayerNorm.eps = 1e-3
    else:
        versions = store._versions()
        place = {"torch": 0, "transformers": 1, "code": 3}[change]
        changed = [*versions[:place], "another", *versions[place + 1 :]]
        monkeypatch.setattr(store, "_versions", lambda: changed)
    output(model, "bert")
    assert len(captures) == 2


def test_code_that_may_change_and_hooks_are_not_stored(tmp_path: Path, stored_graphs: Path) -> None:
    class Own(nn.Linear):
        pass

    model = served("bert", tmp_path / "m")
    handle = model.pooler.register_forward_hook(lambda *_: None)
    assert store.entry(model, ()) is None
    handle.remove()
    assert store.entry(model, ()) is not None
    model.pooler.activation = nn.Sequential(Own(2, 2))
    assert store.entry(model, ()) is None and store.entry(nn.Linear(2, 2), ()) is None
    assert not stored_graphs.exists()


def _node(data: dict, op: str) -> dict:
    return next(node for node in data["graph"]["nodes"] if node["op"] == op)


def _target(name: str) -> Callable[[dict], None]:
    return lambda data: _node(data, "call_function").update(target=name)


DAMAGES: dict[str, Callable[[dict], Any]] = {
    "another key": lambda data: data.update(key="0"),
    "no graph": lambda data: data.pop("graph"),
    "no nodes": lambda data: data["graph"].update(nodes=[]),
    "no output": lambda data: data["graph"]["nodes"].pop(),
    "an unknown kind of node": lambda data: _node(data, "output").update(op="call_module"),
    "an operator that reads files": _target("aten.from_file.default"),
    "a function of the system": _target("os.system"),
    "another namespace": _target("prims.convert_element_type.default"),
    "an overload that is none": _target("aten.add.__class__"),
    "no operator of sizes": _target("size.attrgetter"),
    "an attribute of the module": lambda data: _node(data, "get_attr").update(name="config.__class__"),
    "no attribute at all": lambda data: _node(data, "get_attr").update(name="encoder.none.weight"),
    "an argument that is code": lambda data: _node(data, "call_function").update(
        kwargs={"dict": {"x=print('seen')) #": 1}}
    ),
    "a node that is not there": lambda data: _node(data, "call_function").update(args={"tuple": [{"node": 10**6}]}),
    "a node from behind": lambda data: _node(data, "call_function").update(args={"tuple": [{"node": -1}]}),
    "a value of no kind": lambda data: _node(data, "call_function").update(args={"tuple": [{"eval": "1"}]}),
    "something of torch": lambda data: _node(data, "call_function").update(args={"tuple": [{"torch": "load"}]}),
    "other outputs": lambda data: data["graph"].update(outputs='[1, {"type": "os.system", "context": "", "children_spec": []}]'),
    "text": lambda data: data["graph"].update(nodes="text"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What is stored of a model: `folder` of the model, `name` and `text` of the file, and the model's `output`."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOQUANT_GRAPH", "1")
        patch.setattr(store, "folder", lambda: folder / "graphs")
        right = output(served("bert", folder / "m"), "bert")
    path = next((folder / "graphs").iterdir())
    return {"folder": folder / "m", "name": path.name, "text": path.read_text(), "output": right}


@pytest.fixture
def recaptures(good: dict, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every graph that is captured; without the seconds that this takes."""
    found: list[Any] = []

    def capture(model: nn.Module, inputs: Any) -> Any:
        found.append(inputs)
        return plain.from_plain(json.loads(good["text"])["graph"], model)

    monkeypatch.setattr(forward, "capture", capture)
    return found


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_and_replaced(
    damage: str, good: dict, stored_graphs: Path, recaptures: list, caplog: pytest.LogCaptureFixture
) -> None:
    bad = json.loads(good["text"])
    DAMAGES[damage](bad)
    assert bad != json.loads(good["text"])
    _refused(json.dumps(bad), good, stored_graphs, recaptures, caplog)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1', "\x00"])
def test_half_a_file_is_refused_and_replaced(
    content: str, good: dict, stored_graphs: Path, recaptures: list, caplog: pytest.LogCaptureFixture
) -> None:
    _refused(content, good, stored_graphs, recaptures, caplog)


def _refused(text: str, good: dict, folder: Path, recaptures: list, caplog: pytest.LogCaptureFixture) -> None:
    folder.mkdir()
    path = folder / good["name"]
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(output(served("bert", good["folder"]), "bert"), good["output"])
    assert len(recaptures) == 1 and f"The stored graph {path} is not used" in caplog.text
    assert path.read_text() == good["text"]


@pytest.mark.parametrize("known", [True, False])
def test_a_stored_graph_is_compared_under_a_map_that_it_does_not_name(
    known: bool, good: dict, stored_graphs: Path, recaptures: list
) -> None:
    """One that computes something else is then not used."""
    data = json.loads(good["text"])
    nodes = data["graph"]["nodes"]
    outputs = nodes[-1]["args"]["tuple"][0]["tuple"]
    negated = {
        "op": "call_function",
        "target": "aten.neg.default",
        "args": {"tuple": [outputs[0]]},
        "kwargs": {"dict": {}},
    }
    nodes.insert(-1, negated)
    outputs[0] = {"node": len(nodes) - 2}
    if not known:
        data["checked"] = []
    stored_graphs.mkdir()
    (stored_graphs / good["name"]).write_text(json.dumps(data))
    model, right = served("bert", good["folder"]), good["output"]
    found = output(model, "bert")
    assert not recaptures and bool(model.forward.lowered) == known
    assert torch.equal(found, -right) if known else (found - right).norm() < 0.1 * right.norm()


def test_a_folder_that_cannot_be_written_stores_nothing(tmp_path: Path, stored_graphs: Path) -> None:
    stored_graphs.write_text("a file in the folder's place")
    model = served("bert", tmp_path / "m")
    output(model, "bert")
    assert any(model.forward.lowered.values()) and stored_graphs.is_file()
