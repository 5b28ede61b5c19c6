"""layer_map.yaml: read and write the file that people keep, edit and apply."""

from __future__ import annotations

from pathlib import Path

from autoquant.artifacts import read_yaml, write_yaml
from autoquant.errors import LayerMapError
from autoquant.schemes import SCHEMES
from autoquant.values import LayerMap

FILE_NAME = "layer_map.yaml"

_COMMENT = """\
Layer map of autoquant: which layer of the model is stored and computed in which scheme.

Edit it: change the scheme behind a layer's name under 'layers', near the end. Schemes are float32, bfloat16, float16, and
  int8-{channel|tensor}-{sym|asym}               weights in int8, expanded as they are used (embeddings: these only)
  int8-{channel|tensor}-{sym|asym}/a8-token      inputs in int8 as well, one scale a token
  int8-{channel|tensor}-{sym|asym}/a8-outlier    … and 16 bits for the channels in 'outliers'
  int8-{channel|tensor}-{sym|asym}/a8-tensor     … one scale a call
  int8-{channel|tensor}-{sym|asym}/a8-static     … one calibrated scale, from 'input_absmax'
  int{6|4}-channel-{sym|asym}, alone or with any of these inputs: weights of 6 or 4 bits in the file, 8 in memory
Layers that share a weight (see 'groups') need the same weights. After an edit, 'verdict' no longer holds.

'smoothing', where there is any, moves outliers of layer inputs into weights: the input of 'layers' is divided by
2**(digit - 8), channel by channel, in the module 'source', and their weights multiplied by it. The float model computes
the same with and without; leave it as it is.

Apply it to the same model or to a fine-tune of it, which writes a new checkpoint:
  autoquant apply MODEL layer_map.yaml --out NEW_FOLDER
In the folder of a checkpoint this file is a record: editing it there does not change the weights beside it.
"""


def write_layer_map(path: str | Path, layer_map: LayerMap) -> None:
    """Write `layer_map` as YAML, one layer a line, with a comment on how to edit and apply it."""
    write_yaml(Path(path), layer_map.to_dict(), comment=_COMMENT)


def read_layer_map(path: str | Path) -> LayerMap:
    """Read a layer map from a YAML file, or from a folder that holds layer_map.yaml.

    Raises:
        LayerMapError: there is no such file, or it says something impossible.
        SchemeError: a layer has an unknown scheme.
        CheckpointError: it is no YAML mapping, or of a newer schema version.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise LayerMapError(
            f"There is no layer map {path}. Give a {FILE_NAME}, or a run or checkpoint folder that holds one."
        )
    return LayerMap.from_dict(read_yaml(path), SCHEMES, str(path))
