"""One thread: the models are tiny, and waking a second thread costs more than it saves. No graphs but where they are the
subject: capturing one takes longer than a tiny model runs."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)
os.environ.setdefault("AUTOQUANT_GRAPH", "0")
os.environ["AUTOQUANT_STATE"] = "none"  # tests leave nothing with the user, and are charged for nothing
settings.register_profile("small", max_examples=60, deadline=None, derandomize=True, database=None)
settings.load_profile("small")
