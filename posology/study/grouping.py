"""Which runs train together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posology.engine.company import METHODS
from posology.engine.many import Asked, company_key
from posology.study.executor import Job

NOT_IN_COMPANY = {"task", "max_memory", "distilled_from"}
"""Fields of a cell that runs in company do not have."""
AT_ONCE = 16
"""Runs that are put in company, at most."""


def in_company(jobs: Sequence[Job], workers: int = 1) -> list[list[Job]]:
    """Groups of jobs for one worker each, in the order of the first of each; most groups hold one job.

    Runs on the same frozen backbone are put together, spread over the workers. Not those with a teacher; nor those whose
    first layers nobody trains: alone they run these once for all epochs.
    """
    groups: dict[Any, list[Job]] = {}
    for number, job in enumerate(jobs):
        key = None
        frozen = job.cell.method == "head" or "top_layers" in job.cell.overrides
        alone = frozen or job.cell.max_memory or job.cell.distilled_from
        if job.cell.method in METHODS and not alone:
            key = company_key(Asked(**job.cell.model_dump(exclude=NOT_IN_COMPANY), out=job.out))
        groups.setdefault(number if key is None else key, []).append(job)
    found = []
    for own in groups.values():
        size = min(AT_ONCE, -(-len(own) // workers))
        found += [own[start : start + size] for start in range(0, len(own), size)]
    return found
