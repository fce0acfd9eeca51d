"""How many runs on one frozen backbone there is memory for at once.

What all of them share is the process, the backbone, and what one micro-batch of all runs holds; each run adds its adapter,
head, gradients, moments, and the best state so far.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

from posology.engine.backbone import Source, load_config
from posology.engine.memory import Rehearsal, readable, resident_bytes
from posology.engine.precision import Precision
from posology.engine.recipe import Recipe
from posology.errors import UserError
from posology.machine import machine_memory

_KEPT_FREE = 0.1
"""The share of what is free that others may need meanwhile."""
_PLENTY_BYTES, _PLENTY_BACKBONES = 8 * 10**9, 8
"""Where so much is free, and as many times the backbone besides, nothing is rehearsed, which takes seconds."""


class Plan(NamedTuple):
    """What a run needs memory for."""

    method: str
    recipe: Recipe
    kind: str
    outputs: int
    mean: bool


class Size(NamedTuple):
    """How large a company may be: runs at once, and pieces of a micro-batch."""

    runs: int
    tokens: int


def company_size(
    source: Source,
    plans: Sequence[Plan],
    precision: Precision,
    *,
    weights: int,
    runs: int,
    tokens: int,
    max_memory: int | None = None,
) -> Size:
    """As many runs as there is room for, in micro-batches that are cut smaller only where two runs do not fit otherwise.

    Windows are taken to be as long as the recipes allow; a document of a classifier whose windows together have more
    pieces than a micro-batch takes more.

    Args:
        source: the backbone, which is loaded already.
        plans: of all runs.
        precision: device and type of products.
        weights: bytes of the backbone as it is loaded.
        runs, tokens: what is wanted.
        max_memory: bytes that the process may take; without it what is free now, less a tenth.

    Raises:
        UserError: not even one run fits into `max_memory`.
    """
    on_gpu = precision.device.type == "cuda"
    held = 0 if on_gpu else resident_bytes()
    free = torch.cuda.mem_get_info(precision.device)[0] + weights if on_gpu else machine_memory()["available_bytes"]
    if max_memory is None and (free is None or free >= _PLENTY_BYTES + _PLENTY_BACKBONES * weights):
        return Size(runs, tokens)
    limit = max_memory if max_memory is not None else held + int((1 - _KEPT_FREE) * (free or 0))
    own, rehearsals = _rehearsed(source, plans, precision)
    runs, longest = min(runs, len(plans)), max(plan.recipe.max_length for plan in plans)
    while True:
        lengths = [longest] * max(1, tokens // longest)
        # The run that enters brings a backbone of its own, which it then shares.
        shared = weights + max(
            each.estimate(lengths, process=max(0, held - weights)).peak - each.of_a_run for each in rehearsals
        )
        fitting = sum(total <= limit for total in itertools.accumulate(own[:runs], initial=shared)) - 1
        if fitting >= min(2, runs) or tokens <= longest:
            break
        tokens = max(tokens // 2, longest)
    if max_memory is not None and fitting < 1:
        raise UserError(
            f"one run alone needs about {readable(shared + own[0])} with {tokens:,} pieces at a time, and the limit is "
            f"{readable(max_memory)}",
            f"Allow more, or shorter windows (max_length={max(32, longest // 2)} in `overrides`)",
            "max_memory",
        )
    return Size(max(1, fitting), tokens)


def _rehearsed(source: Source, plans: Sequence[Plan], precision: Precision) -> tuple[list[int], list[Rehearsal]]:
    """The bytes that each run adds, the largest first; and a rehearsal of the largest run of each method and kind."""
    config = load_config(source)
    made: dict[Hashable, Rehearsal] = {}
    largest: dict[Hashable, Rehearsal] = {}
    own = []
    for plan in plans:
        key = plan.method, plan.recipe.rank, plan.recipe.targets, plan.kind, plan.outputs, plan.mean
        if key not in made:
            made[key] = Rehearsal(
                config, plan.method, plan.recipe, plan.kind, precision,
                outputs=plan.outputs, family=source.family, mean=plan.mean,
            )  # fmt: skip
        own.append(made[key].of_a_run)
        before = largest.setdefault((plan.method, plan.kind), made[key])
        if made[key].of_a_run > before.of_a_run:
            largest[plan.method, plan.kind] = made[key]
    return sorted(own, reverse=True), list(largest.values())
