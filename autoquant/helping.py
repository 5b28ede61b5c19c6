"""A process that helps a search which another one leads: it has the run's files, and judges the maps that it is given."""

from __future__ import annotations

from dataclasses import replace

from autoquant import artifacts
from autoquant.errors import FolderError
from autoquant.measured import PRICE, PROFILE, profile_stage
from autoquant.search import STUDY_NAME, join_study, work
from autoquant.searching import problem_of, search_fingerprint, study_place
from autoquant.session import Session
from autoquant.trial import ROUNDS_BESIDE, make_judge
from autoquant.values import Price


def help_search(session: Session, name: str) -> tuple[int, str]:
    """Evaluate maps of a search that another process leads, until that ends.

    Args:
        session: of the run folder, or of a copy.
        name: of this worker, which no other has.

    Returns:
        how many maps were told, and why the search ended.

    Raises:
        FolderError: the run has not come to its search yet.
        StaleError: the model, the data or what runs here is not what the search began with.
    """
    for needed in (PROFILE, PRICE):
        if not (session.folder / needed).is_file():
            raise FolderError(
                f"{session.folder} has no {needed} yet: wait until the run's main process says '3/5 search', then start "
                "the worker again."
            )
    profile = profile_stage(session)
    price = Price.from_dict(artifacts.read_json(session.folder / PRICE))
    problem = problem_of(session, profile, price)
    study = join_study(study_place(session), session.settings.study or STUDY_NAME, search_fingerprint(problem))
    with session.progress.bar("float model on the search split", "row") as update:
        judge = make_judge(session, price, update, ROUNDS_BESIDE)
    if price.hardware != session.runtime.description():
        judge = replace(judge, priced=price.ms_of)
        session.progress.note(f"{session.runtime.description()} is not what is searched for: latencies are predicted.")
    with session.progress.bar("helping", "map") as update:
        return work(
            problem, study, name, judge, judge.measure, say=session.progress.note,
            on_map=lambda count: update(count, session.settings.trials),
        )  # fmt: skip
