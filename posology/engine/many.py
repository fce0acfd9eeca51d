"""Many runs in one call: those on the same frozen backbone keep company, the others train alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posology import console
from posology.engine import artifact as artifacts
from posology.engine import company
from posology.engine.backbone import Source, load_config, resolve
from posology.engine.company import Company, Member
from posology.engine.loop import make_training
from posology.engine.methods import check_method
from posology.engine.recipe import Recipe, make_recipe
from posology.engine.run import Run, build
from posology.engine.stopping import interruptible
from posology.engine.train import train
from posology.engine.training import Diverged
from posology.errors import Interrupted, UserError
from posology.files import check_free
from posology.tasks.prepared import PreparedTask

AT_ONCE = 16
"""Runs that train at the same time, at most: more of them gain little, and wait for each other's evaluations."""


class Asked(BaseModel):
    """One run of many: the arguments of `posology.train` by their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    out: Path
    backbone: str = "minilm"
    method: str = "lora"
    recipe: str = "standard"
    overrides: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(default=42, ge=0)
    max_seconds: float | None = Field(default=None, gt=0)
    evaluate_seconds: float | None = Field(default=None, gt=0)
    shots: int | None = Field(default=None, ge=1)


def train_many(
    runs: Sequence[Mapping[str, Any]], *, at_once: int = AT_ONCE, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Trains several runs, in company where that is possible.

    Runs with the same backbone, precision and dropout whose layers are frozen (methods lora, rslora, ia3, head) go
    through it together, whatever their tasks, ranks, learning rates, seeds and budgets; each ends with the weights it
    would have alone, but for rounding and for the random numbers of dropout. All others are trained one by one.

    Args:
        runs: for each the arguments of `train` by their names: `data` and `out`, and what differs from its defaults.
        at_once: runs that keep company, at most.
        overwrite: replace existing folders.

    Returns:
        For each what `train` returns, in the order given. A run that failed has `artifact` and `failed`, which says
        why; the others are not touched by it.

    Raises:
        UserError: one of the runs cannot be; nothing is trained.
        Interrupted: stopped by the user or by SIGTERM; the runs under way hold their best states so far.
    """
    asked = [_asked(number, run) for number, run in enumerate(runs)]
    if len({run.out.absolute() for run in asked}) < len(asked):
        raise UserError("two runs have the same output", "Give each an `out` of its own", "runs")
    if at_once < 1:
        raise UserError(f"{at_once} runs at once are none", "Give a number from 1", "at_once")
    for run in asked:
        check_free(run.out, marker=artifacts.RECORD, overwrite=overwrite)
        check_method(run.method)
        PreparedTask.open(run.data)
    results: dict[Path, dict[str, Any]] = {}
    with interruptible():
        for group in _grouped(asked):
            if len(group) == 1:
                results[group[0].out] = _alone(group[0], overwrite)
            else:
                console.say(f"{len(group)} runs on {group[0].backbone} keep company, up to {at_once} at once")
                _in_company(group, at_once, overwrite, results)
    return [results[run.out] for run in asked]


def _asked(number: int, run: Mapping[str, Any]) -> Asked:
    try:
        return Asked(**run)
    except ValidationError as error:
        found = error.errors()[0]
        field = ".".join(map(str, found["loc"])) or "run"
        raise UserError(
            f"{field}: {found['msg']}", f"A run has the arguments {', '.join(Asked.model_fields)}", f"run {number + 1}"
        ) from error


def _grouped(runs: Iterable[Asked]) -> list[list[Asked]]:
    """Runs that can keep company, those that cannot by themselves."""
    groups: dict[Any, list[Asked]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(_key(run) or number, []).append(run)
    return list(groups.values())


def _key(run: Asked) -> Any:
    """The same for runs that can keep company; None where a run trains alone."""
    if run.method not in company.METHODS:
        return None
    source = resolve(run.backbone)
    config = load_config(source)
    recipe = _recipe(run, source)
    depth = config.num_hidden_layers
    # Layers that are not trained have no dropout, so that runs must agree on which these are where there is dropout.
    lowest = depth if run.method == "head" else max(0, depth - (recipe.top_layers or depth))
    drops = (recipe.dropout, recipe.attention_dropout)
    return source.fingerprint, source.layers, recipe.precision, drops, None if drops == (0.0, 0.0) else lowest


def _recipe(run: Asked, source: Source) -> Recipe:
    return make_recipe(run.method, run.recipe, run.overrides, width=load_config(source).hidden_size)


def _alone(run: Asked, overwrite: bool) -> dict[str, Any]:
    try:
        return train(**dict(run), overwrite=overwrite)
    except Diverged as error:
        return _failed(run, error)


def _failed(run: Asked, error: UserError) -> dict[str, Any]:
    console.say(f"{run.out}: {error}")
    return {"artifact": str(run.out), "failed": str(error)}


def _in_company(group: Sequence[Asked], at_once: int, overwrite: bool, results: dict[Path, dict[str, Any]]) -> None:
    """Trains runs that can keep company; where the architecture is not written out, one by one after all."""
    lead = group[0]
    source = resolve(lead.backbone)
    task = PreparedTask.open(lead.data)
    carrier = build(task, source, "head", make_recipe("head", lead.recipe, _of_backbone(_recipe(lead, source))), 0)
    if not carrier.adapted.layers:
        for run in group:
            results[run.out] = _alone(run, overwrite)
        return
    stopped: list[Path] = []

    def waiting() -> Iterator[Callable[[], Member]]:
        for run in group:
            yield functools.partial(_member, run, overwrite, results, stopped)

    if Company(carrier.adapted, carrier.precision, at_once=at_once).train(waiting()):
        left = [run.out for run in group if run.out not in results and run.out not in stopped]
        raise Interrupted(
            f"{len(results)} runs are done; {len(stopped)} hold their best state so far, not scored on test; "
            f"{len(left)} were not begun"
        )


def _of_backbone(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of the frozen backbone."""
    return {name: getattr(recipe, name) for name in ("precision", "dropout", "attention_dropout")}


def _member(run: Asked, overwrite: bool, results: dict[Path, dict[str, Any]], stopped: list[Path]) -> Member:
    """A run, loaded and ready to train; its result goes into `results` when it leaves."""
    source, task = resolve(run.backbone), PreparedTask.open(run.data)
    budget = {
        "max_seconds": run.max_seconds,
        "evaluate_seconds": run.evaluate_seconds,
        "max_memory": None,
        "shots": run.shots,
    }
    asked = {"recipe_name": run.recipe, "seed": run.seed, "budget": budget}
    recipe = _recipe(run, source)
    opened = Run(task, source, run.method, recipe, run.out, asked, overwrite=overwrite)
    opened.read()
    adapted, precision = opened.predictor.adapted, opened.predictor.precision
    training = make_training(
        adapted, opened.encoded, opened.targets, recipe, precision, seed=run.seed, budget=opened.budget
    )

    def leave(error: Diverged | None) -> None:
        if error is not None:
            results[run.out] = _failed(run, error)
            return
        try:
            results[run.out] = opened.finish(training.fit)
        except Interrupted:
            stopped.append(run.out)

    rank = recipe.rank if "lora" in run.method else 0
    return Member(run.out.name, adapted, training, opened.validate, task.metric, leave, rank)
