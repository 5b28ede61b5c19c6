"""The runtime: a module for each layer that runs a compiled graph of that layer, and models compiled as a whole."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from autoquant.models.layers import inspect
from autoquant.runtimes.base import cannot_have
from autoquant.runtimes.engine_forward import Engine, Run
from autoquant.runtimes.engine_forward import refresh as refresh_engine
from autoquant.runtimes.engine_forward import serve as serve_with
from autoquant.runtimes.graph.capture import Captured
from autoquant.runtimes.openvino import convert, engine
from autoquant.runtimes.openvino.graph import layer_graph
from autoquant.runtimes.portable import LayerTensors, PortableLayer, PortableRuntime
from autoquant.schemes import SCHEMES, quantize
from autoquant.values import Layer, Scheme


class OpenVINOLayer(PortableLayer):
    """One layer as a compiled graph: what its scheme costs and computes, apart from the model around it."""

    def forward(self, x: Tensor) -> Tensor:
        t = self.tensors
        if not x.numel():
            return x.new_empty(t.output_shape(x.shape), dtype=t.base_dtype)
        if not self._built:
            precision = t.scheme.dtype or str(t.base_dtype).removeprefix("torch.")
            self._built.append(engine.Compiled(layer_graph(t), precision))
        if t.layer.kind == "embedding":
            return self._built[0]([x.long().reshape(-1)])[0].reshape(*x.shape, t.layer.shape[1])
        if t.layer.kind == "conv2d":
            return self._built[0]([x])[0]
        return self._built[0]([x.reshape(-1, t.layer.shape[1])])[0].reshape(*x.shape[:-1], t.layer.shape[0])


@functools.cache
def _multiplies_rightly() -> bool:
    """Whether int8 products come out right here, tried with codes at the end of their range: without VNNI, they do not."""
    scheme, source = SCHEMES["int8-channel-sym/a8-token"], nn.Linear(128, 64, bias=False)
    nn.init.constant_(source.weight, 1.0)
    (layer,) = inspect(nn.Sequential(source)).layers
    assert scheme.weights is not None
    weight = quantize(source.weight.detach(), scheme.weights)
    tried = OpenVINOLayer(LayerTensors(layer, scheme, weight, None, None, torch.float32, {}))
    return bool((tried(torch.ones(32, 128)) - 128).abs().max() < 2)


class OpenVINORuntime(PortableRuntime):
    """Serves a model with OpenVINO on the CPU."""

    name = "openvino"
    rest_seconds = 0.01
    module = OpenVINOLayer

    def __init__(self) -> None:
        engine.openvino()  # an error now, not at the first layer

    def cannot_compute(self, dtype: str) -> str | None:
        return engine.cannot_compute(dtype)

    def supports(self, layer: Layer, scheme: Scheme) -> str | None:
        if scheme.dtype is not None and (reason := self.cannot_compute(scheme.dtype)):
            return reason
        if scheme.input is not None and scheme.weights is not None and not scheme.weights.symmetric:
            return "OpenVINO multiplies int8 inputs with symmetric weights only"
        if scheme.input is not None and not _multiplies_rightly():
            return "OpenVINO's int8 products are wrong on this processor, or under its ONEDNN_MAX_CPU_ISA"
        if (
            scheme.weights is not None
            and scheme.input is None
            and layer.kind in ("linear", "conv1d")
            and layer.shape[1] % 2
        ):
            return "OpenVINO 2026.4 multiplies expanded weights with an odd number of inputs wrongly in bfloat16"
        return cannot_have(layer, scheme)

    def description(self) -> str:
        name = engine.core().get_property("CPU", "FULL_DEVICE_NAME")
        version = engine.openvino().__version__.split("-")[0]
        return f"{name} ({', '.join(sorted(engine.capabilities()))}), OpenVINO {version}, torch {torch.__version__}"

    @classmethod
    def missing(cls) -> str | None:
        return engine.missing()

    def serve(self, model: nn.Module) -> nn.Module:
        return serve_with(model, ENGINE)

    def refresh(self, model: nn.Module) -> None:
        refresh_engine(model)


def _compile(captured: Captured, model: nn.Module) -> Run:
    graph = convert.to_openvino(captured, model)
    return engine.Compiled(graph, convert.base_of(graph))


ENGINE = Engine("OpenVINO", convert.captured, _compile)
