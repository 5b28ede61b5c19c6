"""autoquant: the fastest and smallest per-layer quantization of a transformer within an accuracy budget, proved on
data that the search never saw.

    import autoquant
    result = autoquant.search("path/to/model", task="sts", data="pairs.csv", budget=0.01)
    model = result.load()          # or autoquant.load("runs/…/checkpoint")

After `import autoquant`, transformers' `from_pretrained` opens the checkpoint format `autoquant`, too.
"""

import importlib
import sys

from autoquant.lazy import MODELS, after_import, serve

__version__ = "0.1.0"

_NAMES = {
    **dict.fromkeys(("Result", "pick", "profile", "report", "resume", "search", "worker"), "autoquant.api"),
    "apply": "autoquant.applying",
    **dict.fromkeys(("bench", "evaluate"), "autoquant.measuring"),
    "certify": "autoquant.comparison",
    "watch": "autoquant.watching",
    **dict.fromkeys(("export", "load"), "autoquant.exports"),
    **dict.fromkeys(("read_layer_map", "register", "write_checkpoint", "write_layer_map"), "autoquant.checkpoint"),
    **dict.fromkeys(("AutoquantError", "UsageError"), "autoquant.errors"),
    **dict.fromkeys(("TASKS", "Task"), "autoquant.tasks"),
    **dict.fromkeys(("Budget", "LayerMap", "Scheme", "Verdict"), "autoquant.values"),
}

__all__ = [
    "TASKS",
    "AutoquantError",
    "Budget",
    "LayerMap",
    "Result",
    "Scheme",
    "Task",
    "UsageError",
    "Verdict",
    "apply",
    "bench",
    "certify",
    "evaluate",
    "export",
    "load",
    "pick",
    "profile",
    "read_layer_map",
    "register",
    "report",
    "resume",
    "search",
    "watch",
    "worker",
    "write_checkpoint",
    "write_layer_map",
]

serve(__name__, _NAMES)


def _register() -> None:
    if "autoquant.checkpoint" not in sys.modules:  # otherwise it is being imported, and registers at its end
        importlib.import_module("autoquant.checkpoint")


after_import(MODELS, _register)
