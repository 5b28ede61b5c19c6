"""Outliers of activations moved into weights, without changing what the model computes (SmoothQuant, arXiv 2211.10438)."""

from autoquant.smoothing.run import Found, find_smoothing

__all__ = ["Found", "find_smoothing"]
