"""The maps that may be shipped, timed once more as users will run them: checkpoints, side by side in one fresh process.

During the search each map was timed for itself, minutes apart from the others, and the best of many noisy figures is a lucky
one. What is certified and shipped is chosen by these figures instead. No certification data is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autoquant import memory
from autoquant.fresh import measure_latency
from autoquant.layer_maps import make_map
from autoquant.search import finalists, saving
from autoquant.session import Session
from autoquant.values import Candidate, LayerMap, Price, Profile

COPIES = 3
"""Times a checkpoint's bytes that a served model may take: as loaded, packed for the kernels, and the graph's own."""


@dataclass(frozen=True)
class Finals:
    """What may be shipped.

    Attributes:
        candidates: with the latency measured here; the float32 model itself is always among them.
        maps: number of a candidate → its layer map.
        latency_ms, noise_ms: float32 and half as transformers runs them; by its number, a candidate as it is served.
    """

    candidates: tuple[Candidate, ...]
    maps: Mapping[int, LayerMap]
    latency_ms: Mapping[str, float]
    noise_ms: Mapping[str, float]

    def update(self, found: Sequence[Candidate]) -> list[Candidate]:
        """All candidates of the search, these with their new figures."""
        new = {c.number: c for c in self.candidates}
        return [new.get(c.number, c) for c in found]


def finals_stage(session: Session, profile: Profile, price: Price, found: Sequence[Candidate], half: str) -> Finals:
    """Time them; a resumed run finds the figures in its folder."""
    session.assembler.forget()
    s = session.settings
    chosen = finalists(found, s.rungs, s.objective, room=memory.available() / COPIES)
    if not any(c.base_dtype == "float32" and not c.quantized for c in chosen):
        chosen.insert(0, _float32(session, price))
    maps = {c.number: make_map(session, c, profile) for c in chosen}
    halves = LayerMap(layers={layer.name: half for layer in session.inventory.layers}, base_dtype=half)
    timed = measure_latency(session, {"float32": None, "half": halves}, {str(n): maps[n] for n in maps})
    candidates = tuple(_retimed(c, timed["ms"], timed["noise"], price, s.objective) for c in chosen)
    for c in candidates:
        session.progress.say(f"  {c.ms:8.1f} ms ± {100 * c.noise:.0f}%  {c.saving:5.2f}×  #{c.number} {c.label}")
    return Finals(candidates, maps, timed["ms"], timed["noise"])


def _retimed(
    candidate: Candidate, ms: Mapping[str, float], noise: Mapping[str, float], price: Price, objective: str
) -> Candidate:
    """With the latency relative to the float32 model's in the same process, as in the search."""
    own, reference = ms[str(candidate.number)], ms["float32"]
    layers = dict.fromkeys(candidate.layers, "float32")
    shrink = price.bytes_of("float32", layers) / candidate.bytes
    return replace(
        candidate,
        ms=own / reference * price.model_ms["float32"],
        noise=noise[str(candidate.number)] / own,
        saving=saving(objective, reference / own, shrink),
    )


def _float32(session: Session, price: Price) -> Candidate:
    """The float32 model, where the search did not get as far as judging it: it drops nothing by definition."""
    layers = {layer.name: "float32" for layer in session.inventory.layers}
    return Candidate(
        number=-1, label="float32", origin="enqueued", base_dtype="float32", layers=layers,
        bytes=price.bytes_of("float32", layers),
        drop=0.0, error=0.0, margin=-session.budget.drop, divergence=0.0, predicted_divergence=0.0,
    )  # fmt: skip
