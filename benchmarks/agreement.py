"""Do stock transformers and autoquant compute the same from one checkpoint?

Checkpoints of three layer maps in two base dtypes are written and loaded in two fresh processes: with transformers'
`from_pretrained` and no import of autoquant, and with `autoquant.load`. Printed are the relative L2 difference of all
outputs and the largest difference over the largest output, and for comparison the same of the checkpoint against the
float32 model: the quantization error itself.

With int8 activations the two differ by rounding, and more so in bfloat16: a value between two codes goes up in one and
down in the other, and a deep model amplifies that. What counts is that the difference is no larger than the quantization
error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import ROOT, need, parser, table, write
from torch import Tensor

from autoquant.checkpoint import format_for, write_checkpoint
from autoquant.errors import UsageError, pick
from autoquant.models.layers import Inventory, inspect
from autoquant.models.loading import load_model
from autoquant.runtimes import TorchRuntime
from autoquant.schemes import SCHEMES, project
from autoquant.values import LayerMap

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "A film that is at once moving, funny and a little too long.",
    "In 1969 two people walked on the moon while a third one circled it.",
    "Quantization maps real numbers to a few integers and remembers how to come back.",
)


@dataclass(frozen=True)
class Case:
    auto_class: str
    output: str


CASES = {
    "minilm": Case("AutoModel", "last_hidden_state"),
    "minilm-sst2": Case("AutoModelForSequenceClassification", "logits"),
    "smollm2": Case("AutoModelForCausalLM", "logits"),
}
MIXED = ("int8-tensor-asym", "int8-channel-asym/a8-token", "", "int8-channel-sym/a8-token", "int8-channel-sym", "")
"""Schemes of one layer after the other; "" is the base dtype."""
MAPS = {"weights": ("int8-channel-sym",), "w8a8": ("int8-channel-sym/a8-token",), "mixed": MIXED}
BASES = ("float32", "bfloat16")

STOCK = """
import sys, torch, transformers
folder, auto_class, output, threads, inputs, result = sys.argv[1:]
torch.set_num_threads(int(threads))
model = getattr(transformers, auto_class).from_pretrained(folder, dtype="auto").eval()
with torch.inference_mode():
    found = getattr(model(**torch.load(inputs)), output)
assert not any(name.split(".")[0] == "autoquant" for name in sys.modules)
torch.save(found.float(), result)
"""
OURS = """
import sys, torch
from autoquant.checkpoint import load
folder, auto_class, output, threads, inputs, result = sys.argv[1:]
torch.set_num_threads(int(threads))
model = load(folder)
with torch.inference_mode():
    found = getattr(model(**torch.load(inputs)), output)
torch.save(found.float(), result)
"""


def layer_map(inventory: Inventory, schemes: tuple[str, ...], base: str) -> LayerMap:
    """The schemes in turn over the layers; a tied head stays with the embedding, which takes the weight part."""
    runtime, layers = TorchRuntime(), {}
    for place, layer in enumerate(inventory.layers):
        scheme = project(SCHEMES[schemes[place % len(schemes)] or base], layer.kind)
        if layer.tied_to is not None:
            scheme = SCHEMES[layers[layer.tied_to]]
        layers[layer.name] = scheme.name if runtime.supports(layer, scheme) is None else base
    return LayerMap(layers=layers, base_dtype=base, format=format_for(inventory.layers, layers, base))


def outputs(script: str, folder: Path, case: Case, threads: int, inputs: Path) -> Tensor:
    """What a fresh process computes. Exits with its last lines if it fails."""
    result = folder / "output.pt"
    line = [
        sys.executable,
        "-c",
        script,
        str(folder),
        case.auto_class,
        case.output,
        str(threads),
        str(inputs),
        str(result),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if script is OURS:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.strip().splitlines()[-5:]))
    return torch.load(result)


def differences(found: Tensor, reference: Tensor) -> dict[str, float]:
    error = (found - reference).double()
    return {
        "l2": float(error.norm() / reference.double().norm()),
        "largest": float(error.abs().max() / reference.abs().max()),
    }


def run_case(name: str, case: Case, args: Any, scratch: Path) -> list[dict[str, Any]]:
    need(args.models / name)
    loaded = load_model(str(args.models / name), case.auto_class)
    tokenizer = loaded.processor
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    encoded = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    real = encoded["attention_mask"].bool()
    inputs = scratch / "inputs.pt"
    torch.save(dict(encoded), inputs)
    with torch.inference_mode():
        reference = getattr(loaded.model(**encoded), case.output).float()

    def judged(output: Tensor) -> Tensor:
        """Outputs of padding are left out."""
        return output[real] if output.ndim == 3 else output

    rows, inventory = [], inspect(loaded.model)
    for base in args.bases:
        for kind, schemes in MAPS.items():
            folder = scratch / f"{name}-{base}-{kind}"
            written = write_checkpoint(
                loaded.model, layer_map(inventory, schemes, base), folder, source=args.models / name
            )
            row: dict[str, Any] = {"model": name, "base": base, "map": kind, "format": written["format"]}
            try:
                begin = time.perf_counter()
                stock = judged(outputs(STOCK, folder, case, args.threads, inputs))
                ours = judged(outputs(OURS, folder, case, args.threads, inputs))
            except RuntimeError as error:
                rows.append({**row, "error": str(error).splitlines()[-1] if str(error) else "failed"})
                print(f"{name} {base} {kind}: {error}", file=sys.stderr)
                continue
            agree, error = differences(stock, ours), differences(ours, judged(reference))
            row |= {"rel. L2": agree["l2"], "largest": agree["largest"]}
            row |= {"error: rel. L2": error["l2"], "error: largest": error["largest"]}
            rows.append({**row, "seconds": time.perf_counter() - begin})
    return rows


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--only", nargs="+", default=list(CASES), metavar="NAME", help=f"of {', '.join(CASES)}")
    arguments.add_argument("--bases", nargs="+", default=list(BASES), choices=BASES, help="base dtypes")
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.only:
        try:
            case = pick(CASES, name, "case", UsageError)
        except UsageError as error:
            arguments.error(str(error))
        with tempfile.TemporaryDirectory(prefix="autoquant-agreement-") as scratch:
            rows += run_case(name, case, args, Path(scratch))
    columns = ["model", "base", "map", "format", "rel. L2", "largest", "error: rel. L2", "error: largest"]
    print(table(rows, [*columns, *(["error"] if any("error" in row for row in rows) else [])]))
    write(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
