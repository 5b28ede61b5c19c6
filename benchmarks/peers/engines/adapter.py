"""Any engine as a torch module, so that autoquant's tasks can judge it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.engines.base import Served
from benchmarks.peers.models import Source


class AsModule(nn.Module):
    """Takes what transformers' module takes, returns the judged tensor."""

    def __init__(self, served: Served, source: Source):
        super().__init__()
        self.served, self.source = served, source

    def forward(self, **batch: Any) -> Tensor:
        output = self.served.forward(self.source.arrays(batch)).call()
        return torch.from_numpy(self.served.array(output))
