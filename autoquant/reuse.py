"""Charge a run for its use of the certification data: see `autoquant.certify.ledger`."""

from __future__ import annotations

from collections.abc import Sequence

from autoquant.artifacts import fingerprint
from autoquant.certify.ledger import Charge, Use, charge, sketch, state_folder
from autoquant.session import Session, now
from autoquant.values import LayerMap


def charge_run(session: Session, maps: Sequence[LayerMap]) -> Charge:
    """Note, before any outcome is seen, that these frozen maps are about to be judged; at which confidence they are.

    A resumed run that has frozen the same maps is the same use; other maps (more trials, another budget) are another.
    """
    use = Use(
        of=session.model_fingerprint,
        what=tuple(map_fingerprint(one) for one in maps),
        sketch=sketch(session.task.digests("certification")),
        date=now(),
        label=session.folder.name,
    )
    found = charge(use, session.budget.confidence, (session.folder, state_folder()))
    for text in (found.words(), *found.notes):
        if text is not None:
            session.progress.note(text)
    return found


def map_fingerprint(layer_map: LayerMap) -> str:
    """Of what a map does to a model, whatever it was found on."""
    return fingerprint(layer_map.effect())
