"""Checkpoints for other engines: written, and opened again to be evaluated. A new format is one file and one line here."""

from autoquant.exports.export import Export
from autoquant.exports.load import load
from autoquant.exports.run import export, weight_bytes
from autoquant.exports.table import EXPORTS, export_in

__all__ = ["EXPORTS", "Export", "export", "export_in", "load", "weight_bytes"]
