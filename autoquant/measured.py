"""The stages before the search, each kept as a file of the run folder that a later run takes up again."""

from __future__ import annotations

from dataclasses import replace

import torch

from autoquant import artifacts
from autoquant.layer_maps import input_absmax, outliers
from autoquant.price import measure_price
from autoquant.profile import measure_profile
from autoquant.schemes import SCHEMES
from autoquant.session import Session
from autoquant.smoothing import find_smoothing
from autoquant.values import Price, Profile, Smoothing

SMOOTHING, PROFILE, PRICE = "smoothing.json", "profile.json", "price.json"


def smoothing_stage(session: Session) -> None:
    """Scale channels of the model so that inputs can be quantized, from `smoothing.json` if that was made from the same.

    Not if the search space has no scheme that quantizes an input, or `--no-smooth` was given.
    """
    s = session.settings
    if not s.smooth or all(SCHEMES[name].input is None for name in _schemes(session)):
        return
    made_from = session.stage_fingerprint("smoothing", s.seed)
    path = session.folder / SMOOTHING
    if (value := session.resume_from(path, made_from)) is None:
        with session.progress.bar("smoothing", "batch") as update:
            found = find_smoothing(
                session.model, session.task, session.inventory.layers, batch_size=min(16, s.eval_batch_size), seed=s.seed,
                progress=update,
            )  # fmt: skip
        value = {"fingerprint": made_from, **found.to_dict()}
        artifacts.write_json(path, value)
    wanted = [Smoothing.from_dict(item, str(path)) for item in value["smoothing"]]
    session.smooth(wanted)
    session.smoothing = {"pairs": value["pairs"], "smoothed": len(wanted), "error_left": value["error_left"]}
    if wanted:
        session.progress.say(
            f"  {len(wanted)} of {value['pairs']} layer inputs smoothed (exact in float); the int8 error of what reads them "
            f"is {value['error_left']:.2g} of what it was (median)"
        )


def _schemes(session: Session) -> list[str]:
    """Names of all schemes that some layer may run."""
    return sorted({name for names in session.allowed.values() for name in names})


def profile_stage(session: Session) -> Profile:
    """The profile, from `profile.json` if that was made from the same model, data and settings; of the smoothed model."""
    smoothing_stage(session)
    s = session.settings
    made_from = session.stage_fingerprint("profile", _schemes(session), s.seed, s.gradient, s.smooth)
    path = session.folder / PROFILE
    if (value := session.resume_from(path, made_from)) is not None:
        profile = Profile.from_dict(value)
        session.assembler.input_absmax.update(input_absmax(profile))
        session.assembler.outliers.update(outliers(profile))
        return profile
    with session.progress.bar("profile", "batch") as update:
        profile = measure_profile(
            session.model, session.task, session.inventory, session.assembler, session.allowed,
            batch_size=min(16, s.eval_batch_size), seed=s.seed, gradient=s.gradient, progress=update,
        )  # fmt: skip
    profile = replace(profile, fingerprint=made_from)
    artifacts.write_json(path, profile.to_dict())
    return profile


def price_stage(session: Session) -> Price:
    """Bytes and milliseconds, from `price.json` if that was made on this hardware at this shape."""
    shape = (
        session.batch_size,
        session.seq_len,
        torch.get_num_threads(),
        session.runtime.description(),
        session.base_dtypes,
    )
    made_from = session.stage_fingerprint("price", session.allowed, [group.name for group in session.groups], shape)
    path = session.folder / PRICE
    if (value := session.resume_from(path, made_from)) is not None:
        return Price.from_dict(value)
    with session.progress.bar("price", "kernel") as update:
        price = measure_price(
            session.model, session.task, session.inventory, session.assembler, session.allowed, session.base_dtypes,
            batch_size=session.batch_size, seq_len=session.seq_len, groups=session.groups, progress=update,
        )  # fmt: skip
    choice = session.runtime_choice
    price = replace(price, fingerprint=made_from, runtime_choice=None if choice is None else choice.to_dict())
    artifacts.write_json(path, price.to_dict())
    return price
