"""Which runs train together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from posology.engine.company import METHODS
from posology.engine.many import Asked, company_key
from posology.study.cell import Cell
from posology.study.executor import Job

NOT_IN_COMPANY = {"task", "max_memory", "distilled_from"}
"""Fields of a cell that runs in company do not have."""
AT_ONCE = 16
"""Runs that are put in company, at most."""


def company_of(cell: Cell) -> Hashable | None:
    """The same for runs that may be put in company: those on the same frozen backbone. None for one that trains alone.

    So do those with a teacher, with a limit of memory, and those whose first layers nobody trains: alone they run these
    once for all epochs.
    """
    frozen = cell.method == "head" or "top_layers" in cell.overrides
    if cell.method not in METHODS or frozen or cell.max_memory or cell.distilled_from:
        return None
    return company_key(Asked(**cell.model_dump(exclude=NOT_IN_COMPANY), out=cell.data))  # whatever it writes


def in_company(jobs: Sequence[Job], workers: int = 1) -> list[list[Job]]:
    """Groups of jobs for one worker each, in the order of the first of each; most groups hold one job.

    Runs that `company_of` says the same of are put together, spread over the workers.
    """
    groups: dict[Hashable, list[Job]] = {}
    for number, job in enumerate(jobs):
        key = company_of(job.cell)
        groups.setdefault(number if key is None else key, []).append(job)
    found = []
    for own in groups.values():
        size = min(AT_ONCE, -(-len(own) // workers))
        found += [own[start : start + size] for start in range(0, len(own), size)]
    return found
