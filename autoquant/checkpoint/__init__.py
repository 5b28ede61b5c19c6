"""Write and load checkpoints, in formats that are one line each in `FORMATS`; read, check and apply layer maps."""

from autoquant.checkpoint.apply import apply_map
from autoquant.checkpoint.folder import whole_folder
from autoquant.checkpoint.formats import FORMATS, format_for
from autoquant.checkpoint.hf import register
from autoquant.checkpoint.load import load
from autoquant.checkpoint.maps import read_layer_map, write_layer_map
from autoquant.checkpoint.write import write_checkpoint

__all__ = [
    "FORMATS",
    "apply_map",
    "format_for",
    "load",
    "read_layer_map",
    "register",
    "whole_folder",
    "write_checkpoint",
    "write_layer_map",
]

register()
