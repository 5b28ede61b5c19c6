"""Commands on checkpoints: write one under a map, measure one, write one for another engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from autoquant import forkserver
from autoquant.commands.options import LAST, SOURCE, Model, read, takes
from autoquant.lazy import importing

app = typer.Typer()


@app.command(epilog="[b]Example[/b]\n\nautoquant apply ./my-fine-tune runs/default-1/layer_map.yaml --out ./quantized")
@takes("task", "columns", "trust_remote_code", "as_json")
def apply(
    model: Model,
    layer_map: Annotated[Path, typer.Argument(help="A layer map, or a folder that holds one.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint; must be empty.")],
    data: Annotated[str | None, typer.Option(help="Calibrate static activation ranges again on this data.")] = None,
    **given: Any,
) -> int:
    """Write a checkpoint under a layer map, also of a fine-tune of the same architecture."""
    with importing():
        from autoquant import applying

    written = applying.apply(model, layer_map, out, data=data, **read(given))
    if given["as_json"]:
        print(json.dumps(written, indent=1))
        return 0
    for note in written["notes"]:
        print(f"note: {note}")
    print(
        f"{out}: {written['file_bytes'] / 1e6:.1f} MB, format {written['format'] or 'float'}. This copy is not certified."
    )
    print(f'Load it: autoquant.load("{out}")')
    return 0


@app.command(epilog="[b]Example[/b]\n\nautoquant evaluate runs/default-1/checkpoint")
@takes("task", "data", *SOURCE, "batch_size", "seq_len", "eval_batch_size", "threads", "seed", *LAST)
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="Any checkpoint, float or quantized: folder, hub id, or 'default'.")
    ],
    split: Annotated[str, typer.Option(help="calibration, search or certification.")] = "certification",
    **given: Any,
) -> int:
    """Metric, latency, bytes and peak memory of any checkpoint."""
    given["quiet"] |= given["as_json"]
    with forkserver.serving():  # it imports what this process does, at the same time
        with importing():
            from autoquant import measuring

        found = measuring.evaluate(checkpoint, split=split, **read(given))
    if given["as_json"]:
        print(json.dumps(found, indent=1))
        return 0
    shape = " × ".join(str(value) for value in found["shape"].values() if value)
    print(f"{found['metric']:14} {found['value']:.4f}  ({found['items']} items of the {found['split']} split)")
    print(
        f"{'latency':14} {found['latency_ms']:.2f} ± {found['latency_noise_ms']:.2f} ms  "
        f"(batch {shape}, {found['threads']} threads)"
    )
    print(f"{'bytes':14} {found['bytes'] / 1e6:.1f} MB on disk")
    print(f"{'peak memory':14} {found['peak_memory_bytes'] / 1e6:.1f} MB more than the empty process")
    return 0


@app.command(
    epilog="[b]Example[/b]\n\nautoquant export runs/default-1/checkpoint --format openvino --out ./openvino-model"
)
@takes("trust_remote_code", "as_json")
def export(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint that autoquant wrote.")],
    format: Annotated[str, typer.Option("--format", help="openvino or onnx: see 'autoquant list exports'.")],
    out: Annotated[Path, typer.Option(help="Folder of the export; must be empty, or hold an older one.")],
    **given: Any,
) -> int:
    """Write a checkpoint for OpenVINO or ONNX Runtime: the same codes and scales."""
    with importing():
        from autoquant import exports

    written = exports.export(checkpoint, format, out, trust_remote_code=given["trust_remote_code"])
    if given["as_json"]:
        print(json.dumps(written, indent=1))
    else:
        for note in written["notes"]:
            print(f"note: {note}")
        print(
            f"{out}: {written['file_bytes'] / 1e6:.1f} MB for {written['format']}. Certified was the checkpoint, not this."
        )
        print(f"Measure it: autoquant evaluate {out}")
    return 0
