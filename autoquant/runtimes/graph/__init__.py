"""A whole model as one straight list of kernel calls: captured once, with what surrounds a product fused into it."""

from autoquant.runtimes.graph.forward import GraphForward, accelerate, as_written, decelerated, refresh

__all__ = ["GraphForward", "accelerate", "as_written", "decelerated", "refresh"]
