"""Small frozen values that the stages hand to each other. They hold data and check it; they import no stage."""

from autoquant.values.budget import EXIT_CODES, Budget, Verdict
from autoquant.values.candidate import Candidate
from autoquant.values.layer import FLOAT_DTYPES, KINDS, Group, Layer, Skipped
from autoquant.values.layer_map import LayerMap
from autoquant.values.price import Price
from autoquant.values.profile import LayerStats, Profile
from autoquant.values.runtime_choice import RuntimeChoice
from autoquant.values.scheme import QuantizationArgs, Scheme
from autoquant.values.smoothing import Smoothing

__all__ = [
    "EXIT_CODES",
    "FLOAT_DTYPES",
    "KINDS",
    "Budget",
    "Candidate",
    "Group",
    "Layer",
    "LayerMap",
    "LayerStats",
    "Price",
    "Profile",
    "QuantizationArgs",
    "RuntimeChoice",
    "Scheme",
    "Skipped",
    "Smoothing",
    "Verdict",
]
