"""How fast a checkpoint is at many shapes: latency, throughput, the best batch size, memory, and whether to believe it."""

from autoquant.bench.run import run_bench

__all__ = ["run_bench"]
