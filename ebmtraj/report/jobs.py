"""What comparisons share: a folder that is begun once and gone on with, budgets in steps, JSON that can say every number."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ebmtraj import config as recipes
from ebmtraj.errors import EbmtrajError
from ebmtraj.locks import only_writer
from ebmtraj.parallel import Pool
from ebmtraj.runs import CLEARED, clear, holds_anything, read_json, write_json
from ebmtraj.training.loop import steps_within

BUDGET_ROUNDS = 3  # in which the steps that fit into the seconds are measured
MARK, OUTCOME, BUDGETS = "comparison.json", "outcome.json", "budgets.json"

Job = TypeVar("Job")


def open_folder(runs: Path, alike: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make the folder of a comparison's runs, or go on with it; `alike` is what all its jobs have in common.

    Raises `EbmtrajError` where it holds something else, or a comparison begun otherwise.
    """
    with only_writer(runs, "comparison"):
        _open_folder(runs, alike, resume, overwrite)


def _open_folder(runs: Path, alike: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    mark = runs / MARK
    if runs.exists() and (not runs.is_dir() or holds_anything(runs)):
        if not mark.exists():
            raise EbmtrajError(f"{runs} exists and holds no comparison; choose another --runs")
        if resume:
            same(read_json(mark), alike, f"comparison {runs}")
            return
        if not overwrite:
            raise EbmtrajError(f"{runs} holds a comparison; give --resume to go on with it or --overwrite to replace it")
        clear(runs, last=MARK)
    shutil.rmtree(runs / CLEARED, ignore_errors=True)  # of a kill while it was cleared
    write_json(mark, alike)


def same(had: Any, wants: Any, what: str) -> None:
    """Raise `EbmtrajError` that names the first setting in which what was begun differs from what is asked for now."""
    difference = recipes.first_difference(recipes.to_plain(had), recipes.to_plain(wants))
    if difference is not None:
        key, before, now = difference
        raise EbmtrajError(
            f"{what} was begun with {key} = {before!r}, not {now!r}; use that, or start anew with --overwrite"
        )


def set_budgets(
    path: Path, asked: Mapping[str, tuple[Job, float]], cost: Callable[[Job], float], pool: Pool, name: Callable[[Job], str]
) -> None:
    """Turn seconds into steps: {budget: (a job, seconds)}, while as many are timed at once as will be trained at once.

    Seconds are a core's own, in rounds over all models, so that what else the machine does hits none more than others;
    the median of the rounds counts. What `path` already holds is kept.
    """
    budgets: dict[str, int] = read_json(path) if path.exists() else {}
    timed = {budget: found for budget, found in asked.items() if budget not in budgets}
    jobs = [job for job, _ in timed.values()]
    rounds = list(pool.map(cost, jobs * BUDGET_ROUNDS, name))
    for number, (budget, (_, seconds)) in enumerate(timed.items()):
        budgets[budget] = steps_within(seconds, float(np.median(rounds[number :: len(timed)])))
    if timed:
        write_json(path, budgets)


def finite(value: Any) -> Any:
    """The value with None in place of NaN and infinity, which JSON can't say."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
