"""From a study file to its runs: the product of what it lists, without what it skips and what would be the same twice."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from posology.study.cell import Cell

if TYPE_CHECKING:
    from posology.study.spec import Match, StudyFile

TEACHER = "distilled_from"
LIMITS = {"shots": "shots", "seconds": "max_seconds", TEACHER: TEACHER}
"""What a sweep may vary beside fields of the recipe, and what a cell calls it."""

RATIO = "alpha_ratio"
"""In a search: LoRA's alpha, divided by its rank."""

_LOW_RANK = frozenset({"lora", "dora", "rslora"})
_USED_BY = {
    "rank": _LOW_RANK,
    "alpha": _LOW_RANK,
    RATIO: _LOW_RANK,
    "adapter_dropout": _LOW_RANK,
    "targets": _LOW_RANK | {"ia3"},
    "top_layers": _LOW_RANK | {"ia3"},
    "virtual_tokens": frozenset({"prefix", "prompt", "p-tuning"}),
    "encoder_width": frozenset({"p-tuning"}),
}
"""The methods that have a field of the recipe; all where it is not named here."""
_FROZEN_ONLY = ("quantise", "backbone_dtype")


@dataclass(frozen=True)
class Grid:
    """What a study file comes to.

    Attributes:
        cells: its runs, in a stable order; one for each search where there is one.
        left_out: for people, what was listed and is no run, with counts and reasons.
        runs: how many trainings that is: each search has several.
    """

    cells: list[Cell]
    left_out: list[str]
    runs: int


def cells(study: StudyFile) -> list[Cell]:
    """The runs of a study, or its searches, in a stable order: by task, backbone, method, sweep and seed."""
    return expand(study).cells


def expand(study: StudyFile) -> Grid:
    """Lists the runs of a study. Neither weights nor documents are opened, and none need be there.

    A field of the recipe that a method does not have (`rank` of `full`) is left out for it; what is then the same run
    counts once. A baseline gives one run for each task and seed, whatever the backbones, and none for tasks of another
    kind than its own.
    """
    found: dict[str, Cell] = {}
    left_out: Counter[str] = Counter()
    for task, backbone, method in combinations(study):
        swept = _swept(study, task, backbone, method)
        settings = _settings(study, task, backbone, method)
        reason = "skipped by overrides" if settings is None else misfit(study, task, method)
        if settings is None or reason is not None:
            left_out[str(reason)] += math.prod(map(len, swept.values())) * len(study.seeds)
            continue
        for values in itertools.product(*swept.values()):
            combination = dict(zip(swept, values, strict=True))
            for seed in study.seeds:
                cell = _cell(study, (task, backbone, method), settings, combination, seed)
                # The names as well as what is asked for: two names of one backbone are two rows of a table.
                identity = json.dumps(cell.model_dump(mode="json"), sort_keys=True)
                if identity in found:
                    left_out[_idle(method, combination)] += 1
                found.setdefault(identity, cell)
    trials = study.search.trials if study.search else 1
    notes = [f"{number:,} {'run' if number == 1 else 'runs'} {reason}" for reason, number in left_out.items()]
    return Grid(list(found.values()), notes, len(found) * trials)


def combinations(study: StudyFile) -> Iterator[tuple[str, str | None, str]]:
    """Every task, backbone (None for baselines) and method, in order."""
    from posology.engine.baselines import BASELINES

    adapting = [method for method in study.methods if method not in BASELINES]
    for task in study.tasks:
        for backbone in study.backbones:
            for method in adapting:
                yield task, backbone, method
        for method in study.methods:
            if method in BASELINES:
                yield task, None, method


def matches(match: Match, task: str, backbone: str | None, method: str) -> bool:
    """Whether a cell is among those meant."""
    pairs = ((match.task, task), (match.backbone, backbone), (match.method, method))
    return all(
        patterns is None or (name is not None and any(fnmatchcase(name, pattern) for pattern in patterns))
        for patterns, name in pairs
    )


def misfit(study: StudyFile, task: str, method: str) -> str | None:
    """Why a baseline cannot do a task; None where it can, or where the task's kind is not known yet."""
    from posology.engine.baselines import BASELINES

    if method not in BASELINES:
        return None
    kind, wanted = kind_of(task, study.folder(task)), BASELINES[method].kind
    return None if kind in (None, wanted) else f"left out: {method} is for {wanted}, and {task} is {kind}"


def kind_of(task: str, folder: Path) -> str | None:
    """A task's kind, from its `task.json` if that is there, else from its name if it is one of the seven clinical ones."""
    from posology.tasks.clinical import TASKS
    from posology.tasks.prepared import TASK_FILE

    try:
        return str(json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return TASKS[task].kind if task in TASKS else None


def fields_of(method: str) -> frozenset[str]:
    """The fields of a recipe (or of a baseline's settings) that make a difference to a method."""
    from posology.engine.baselines import BASELINES
    from posology.engine.recipe import Recipe

    if method in BASELINES:
        return frozenset(BASELINES[method].settings.model_fields)
    names = {name for name in (*Recipe.model_fields, RATIO) if method in _USED_BY.get(name, {method})}
    return frozenset(names - set(_FROZEN_ONLY if method == "full" else ()))


def field_value(method: str, field: str, value: Any) -> Any:
    """`value` as the recipe holds it: `"1e-3"` becomes a number.

    Raises:
        ValueError: it is of the wrong type or out of range; says what is allowed.
    """
    from posology.engine.baselines import BASELINES
    from posology.engine.recipe import Recipe

    if field == RATIO:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError("a number greater than 0 is needed")
        return value
    model: type[BaseModel] = BASELINES[method].settings if method in BASELINES else Recipe
    needed = {} if method in BASELINES else {"learning_rate": 1e-3}
    if isinstance(value, bool) and model.model_fields[field].annotation is not bool:
        raise ValueError("true and false are no values of it")
    try:
        found = getattr(model(**{**needed, field: value}), field)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(message[:1].lower() + message[1:]) from None
    if isinstance(found, float) and not math.isfinite(found):
        raise ValueError("a finite number is needed")
    return found


def _settings(study: StudyFile, task: str, backbone: str | None, method: str) -> dict[str, Any] | None:
    """The fields set for a cell, or None where it is skipped."""
    settings, skipped = dict(study.set), False
    for override in study.overrides:
        if matches(override.match, task, backbone, method):
            skipped = (
                skipped or override.skip
            )  # what is skipped stays so: a later entry that sets a field brings nothing back
            settings.update(override.set)
    return None if skipped else settings


def _swept(study: StudyFile, task: str, backbone: str | None, method: str) -> dict[str, Any]:
    """The values that a cell is multiplied by, by name."""
    swept: dict[str, Any] = {}
    for sweep in study.sweep:
        if matches(sweep.match, task, backbone, method):
            swept.update(sweep.values)
    return swept


def _cell(
    study: StudyFile,
    which: tuple[str, str | None, str],
    settings: dict[str, Any],
    combination: dict[str, Any],
    seed: int,
) -> Cell:
    from posology.engine.baselines import BASELINES

    task, backbone, method = which
    own = fields_of(method)
    chosen = {**settings, **{name: value for name, value in combination.items() if name not in LIMITS}}
    overrides = {name: field_value(method, name, value) for name, value in chosen.items() if name in own}
    limits = study.budgets.model_dump()
    limits.update({LIMITS[name]: value for name, value in combination.items() if name in LIMITS})
    recipe: str = study.recipe
    if limits.get(TEACHER) is not None:
        limits[TEACHER] = study.teacher(limits[TEACHER])
    if method in BASELINES:  # these have one recipe, no teacher, and are neither evaluated on the way nor cut to memory
        recipe = "standard"
        limits.update({"evaluate_seconds": None, "max_memory": None, TEACHER: None})
    return Cell(
        task=task,
        data=study.folder(task),
        backbone=None if backbone is None else study.source(backbone),
        method=method,
        recipe=recipe,
        overrides=overrides,
        seed=seed,
        **limits,
    )


def _idle(method: str, combination: dict[str, Any]) -> str:
    """Why a combination of the sweep gives a run that is there already."""
    from posology.engine.baselines import BASELINES

    untaught = (TEACHER,) if method in BASELINES else ()
    idle = [name for name in combination if name in untaught or (name not in LIMITS and name not in fields_of(method))]
    return f"counted once: {method} has no {' and no '.join(idle)}"
