"""Lower a captured graph to kernel calls: layers become their modules' kernels, and what surrounds them is fused.

Each rewrite is one function of `linear`, `norms` or `attention`, with what it looks for in its first line. The result is one
Python function without branches, in which every line is a call and every tensor is freed after its last use.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule

from autoquant.runtimes.graph.attention import fuse_attention, fuse_rotary, lower_attention, lower_caches
from autoquant.runtimes.graph.capture import Captured
from autoquant.runtimes.graph.constants import fold_constants
from autoquant.runtimes.graph.linear import (
    fuse_epilogues,
    fuse_gated,
    fuse_pairs,
    join_layers,
    lower_layers,
)
from autoquant.runtimes.graph.norms import drop_idle, fuse_norms, merge_twins
from autoquant.runtimes.graph.write import write


@dataclass(frozen=True)
class Lowered:
    """A graph of kernel calls, and as a function of its tensors, by name, that returns what the model returns."""

    captured: Captured
    module: GraphModule
    graph: Graph
    run: Callable[..., Any]


def lower(captured: Captured, model: nn.Module) -> Lowered:
    module = copy.copy(captured.module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own copying
        module.graph = copy.deepcopy(captured.module.graph)
    graph = module.graph
    drop_idle(graph)
    fold_constants(graph, module)
    layers = lower_layers(graph, model)
    lower_caches(graph)
    fuse_norms(graph, module)
    fuse_rotary(graph)
    lower_attention(graph)
    fuse_gated(layers, graph)
    join_layers(layers, graph, model)
    fuse_attention(graph)
    fuse_epilogues(graph, module)
    fuse_pairs(graph)
    merge_twins(graph)
    graph.eliminate_dead_code()
    return Lowered(captured, module, graph, write(graph, module, captured))
