"""One thread: the models are tiny, and waking a second thread costs more than it saves."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("small", max_examples=60, deadline=None, derandomize=True, database=None)
settings.load_profile("small")
