"""Write and load checkpoints, in formats that are one line each in `FORMATS`; read, check and apply layer maps."""

from autoquant.checkpoint.apply import apply_map, quantize_model
from autoquant.checkpoint.folder import whole_folder
from autoquant.checkpoint.formats import FORMATS, format_for
from autoquant.checkpoint.hf import register
from autoquant.checkpoint.load import load
from autoquant.checkpoint.maps import read_layer_map, write_layer_map
from autoquant.checkpoint.tensors import other_bytes, promised_bytes, stored_layer_bytes
from autoquant.checkpoint.write import write_checkpoint

__all__ = [
    "FORMATS",
    "apply_map",
    "format_for",
    "load",
    "other_bytes",
    "promised_bytes",
    "quantize_model",
    "read_layer_map",
    "register",
    "stored_layer_bytes",
    "whole_folder",
    "write_checkpoint",
    "write_layer_map",
]

register()
