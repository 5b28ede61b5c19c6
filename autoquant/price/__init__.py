"""What each choice costs on this machine: bytes exactly, milliseconds measured."""

from autoquant.price.choose import choose_runtime
from autoquant.price.latency import measure_price
from autoquant.price.size import price_bytes

__all__ = ["choose_runtime", "measure_price", "price_bytes"]
