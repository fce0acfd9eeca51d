"""Many runs in one call: those on the same frozen backbone keep company, the others train alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posology import console
from posology.engine import artifact as artifacts
from posology.engine import company
from posology.engine.backbone import Source, load_config, resolve
from posology.engine.checkpoint import EVERY_SECONDS, Checkpoint, Fresh
from posology.engine.company import TOKENS, Company, Member
from posology.engine.company_size import Plan, Size, company_size
from posology.engine.loop import make_training, resume
from posology.engine.memory import parse_bytes
from posology.engine.methods import check_method
from posology.engine.predictor import Predictor, outputs_of
from posology.engine.recipe import Recipe, make_recipe
from posology.engine.run import Material, Run, build, reads_mean
from posology.engine.stopping import interruptible
from posology.engine.train import train, unfinished
from posology.engine.training import Diverged, Watch
from posology.errors import Interrupted, UserError
from posology.files import check_free
from posology.seed import LARGEST_SEED
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
    seed: int = Field(default=42, ge=0, le=LARGEST_SEED)
    max_seconds: float | None = Field(default=None, gt=0)
    evaluate_seconds: float | None = Field(default=None, gt=0)
    shots: int | None = Field(default=None, ge=1)


Numbered = tuple[int, Asked]
"""A run and its place in the list given."""


def train_many(
    runs: Sequence[Mapping[str, Any]],
    *,
    at_once: int = AT_ONCE,
    max_memory: int | str | None = None,
    overwrite: bool = False,
    checkpoint_seconds: float = EVERY_SECONDS,
    watch: Callable[[int, dict[str, float]], bool] | None = None,
    done: Callable[[int, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains several runs, in company where that is possible.

    Runs with the same backbone, precision and dropout whose layers are frozen (methods lora, rslora, ia3, head) go
    through it together, whatever their tasks, ranks, learning rates, seeds and budgets; each ends with the weights it
    would have alone, but for rounding and for the random numbers of dropout. All others are trained one by one.
    Each has its checkpoint, as in `train`: one that was stopped or killed goes on where it was when it is asked for again, in
    company or alone. (A study keeps book of those that are done.)

    Args:
        runs: for each the arguments of `train` by their names: `data` and `out`, and what differs from its defaults.
        at_once: runs that keep company, at most.
        max_memory: bytes, or such as "4GB": so many keep company that the process probably stays below it; without it, as
            many as there is free memory for. No bound for runs that cannot keep company.
        overwrite: replace existing folders, and drop checkpoints that were made with other settings.
        checkpoint_seconds: as in `train`.
        watch: `watch` of `train`, which is told too which run it is: its place in `runs`.
        done: is called with the place and the result of each run as soon as that is there, failed ones included.

    Returns:
        For each what `train` returns, in the order given. A run that failed has `artifact` and `failed`, which says
        why; the others are not touched by it.

    Raises:
        UserError: one of the runs cannot be; nothing is trained.
        Interrupted: stopped by the user or by SIGTERM; the runs under way hold their best states so far, and go on when
            they are asked for again, without those that are done.
    """
    asked = [_asked(number, run) for number, run in enumerate(runs)]
    if len({run.out.absolute() for run in asked}) < len(asked):
        raise UserError("two runs have the same output", "Give each an `out` of its own", "runs")
    if at_once < 1:
        raise UserError(f"{at_once} runs at once are none", "Give a number from 1", "at_once")
    for run in asked:
        check_free(run.out, marker=artifacts.RECORD, overwrite=overwrite or unfinished(run.out))
        check_method(run.method)
        PreparedTask.open(run.data)
    limit = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    session = _Session(overwrite, at_once, limit, checkpoint_seconds, watch, done)
    with interruptible():
        for group in _grouped(asked):
            session.train(group)
    return [session.results[number] for number in range(len(asked))]


def _asked(number: int, run: Mapping[str, Any]) -> Asked:
    try:
        return Asked(**run)
    except ValidationError as error:
        found = error.errors()[0]
        field = ".".join(map(str, found["loc"])) or "run"
        raise UserError(
            f"{field}: {found['msg']}", f"A run has the arguments {', '.join(Asked.model_fields)}", f"run {number + 1}"
        ) from error


def _grouped(runs: Iterable[Asked]) -> list[list[Numbered]]:
    """Runs that can keep company, those that cannot by themselves."""
    groups: dict[Hashable, list[Numbered]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(company_key(run) or number, []).append((number, run))
    return list(groups.values())


def company_key(run: Asked) -> Hashable | None:
    """The same for runs that can keep company; None where a run trains alone."""
    if run.method not in company.METHODS:
        return None
    source = resolve(run.backbone)
    config = load_config(source)
    recipe = _recipe(run, source)
    if recipe.quantise is not None:  # the carrier would have to be, too
        return None
    depth = config.num_hidden_layers
    # Layers that are not trained have no dropout, so that runs must agree on which these are where there is dropout.
    lowest = depth if run.method == "head" else max(0, depth - (recipe.top_layers or depth))
    drops = (recipe.dropout, recipe.attention_dropout)
    held = source.fingerprint, source.reading, source.layers, recipe.precision, recipe.backbone_dtype
    return *held, drops, None if drops == (0.0, 0.0) else lowest


def _recipe(run: Asked, source: Source) -> Recipe:
    return make_recipe(run.method, run.recipe, run.overrides, width=load_config(source).hidden_size)


def _of_carrier(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of the frozen backbone, and the windows of one of the runs, which fit into it."""
    names = ("precision", "backbone_dtype", "dropout", "attention_dropout", "max_length", "overlap", "long_text")
    return {name: getattr(recipe, name) for name in names}


class _Session:
    """What the runs of one call have in common.

    Attributes:
        results: by the number of the run.
    """

    def __init__(
        self,
        overwrite: bool,
        at_once: int,
        max_memory: int | None,
        checkpoint_seconds: float,
        watch: Callable[[int, dict[str, float]], bool] | None,
        done: Callable[[int, dict[str, Any]], None] | None,
    ):
        self._overwrite, self._at_once, self._max_memory = overwrite, at_once, max_memory
        self._every = checkpoint_seconds
        self._watch, self._done = watch, done
        self._material: dict[Hashable, Material] = {}
        self.results: dict[int, dict[str, Any]] = {}

    def train(self, group: Sequence[Numbered]) -> None:
        """Trains runs that can keep company; where the architecture is not written out, one by one after all."""
        carrier = self._carrier(group[0][1]) if len(group) > 1 else None
        if carrier is None or not carrier.adapted.layers:
            for number, run in group:
                self._alone(number, run)
            return
        size = self._size(group, carrier)
        console.say(f"{len(group)} runs on {group[0][1].backbone} keep company, up to {size.runs} at once")
        stopped: list[int] = []
        self._material = {}
        with contextlib.ExitStack() as locks:
            waiting = (functools.partial(self._member, number, run, stopped, locks) for number, run in group)
            interrupted = Company(carrier.adapted, carrier.precision, at_once=size.runs, tokens=size.tokens).train(
                waiting
            )
        if interrupted:
            begun = {*self.results, *stopped}
            left = sum(number not in begun for number, _ in group)
            raise Interrupted(
                f"{len(self.results)} runs are done; {len(stopped)} hold their best state so far, not scored on test, and "
                f"{left} were not begun: asked for without those that are done, these go on where they were"
            )

    def _carrier(self, run: Asked) -> Predictor:
        source = resolve(run.backbone)
        recipe = make_recipe("head", run.recipe, _of_carrier(_recipe(run, source)))
        return build(PreparedTask.open(run.data), source, "head", recipe, 0)

    def _size(self, group: Sequence[Numbered], carrier: Predictor) -> Size:
        source, plans = resolve(group[0][1].backbone), []
        for _, run in group:
            task, recipe = PreparedTask.open(run.data), _recipe(run, source)
            outputs = len(outputs_of(task.kind, task.labels))
            plans.append(Plan(run.method, recipe, task.kind, outputs, reads_mean(recipe, source)))
        return company_size(
            source,
            plans,
            carrier.precision,
            weights=sum(weight.numel() * weight.element_size() for weight in carrier.adapted.base.parameters()),
            runs=self._at_once,
            tokens=TOKENS,
            max_memory=self._max_memory,
        )

    def _alone(self, number: int, run: Asked) -> None:
        try:
            result = train(
                **dict(run),
                overwrite=self._overwrite,
                fresh=self._fresh,
                checkpoint_seconds=self._every,
                watch=self._watched(number),
            )
        except UserError as error:
            self._fail(number, run, error)
        else:
            self._finish(number, result)

    def _member(self, number: int, run: Asked, stopped: list[int], locks: contextlib.ExitStack) -> Member | None:
        """A run, ready to train; None where it has failed already."""
        try:
            return self._opened(number, run, stopped, locks)
        except UserError as error:
            self._fail(number, run, error)
            return None

    def _opened(self, number: int, run: Asked, stopped: list[int], locks: contextlib.ExitStack) -> Member:
        """A run, loaded; its result goes into `results` when it leaves, or its number into `stopped`.

        Its checkpoint is entered until `locks` are.
        """
        source, task = resolve(run.backbone), PreparedTask.open(run.data)
        budget = {
            "max_seconds": run.max_seconds,
            "evaluate_seconds": run.evaluate_seconds,
            "max_memory": None,
            "shots": run.shots,
        }
        asked = {"recipe_name": run.recipe, "seed": run.seed, "budget": budget}
        recipe = _recipe(run, source)
        overwrite = self._overwrite or unfinished(run.out)
        opened = Run(task, source, run.method, recipe, run.out, asked, overwrite=overwrite)
        if run.method != "head":
            opened.activations = None  # of validation, for each run anew: many runs' do not fit into memory
        checkpoint = locks.enter_context(Checkpoint(run.out, opened.settings(), every=self._every, fresh=self._fresh))
        opened.read(self._material)
        adapted, precision = opened.predictor.adapted, opened.predictor.precision
        training = make_training(
            adapted,
            opened.encoded,
            opened.targets,
            recipe,
            precision,
            seed=run.seed,
            budget=opened.budget,
            watch=self._watched(number),
        )
        resume(training, checkpoint, recipe.epochs)

        def leave(error: UserError | None) -> None:
            try:
                if error is not None:
                    raise error
                result = opened.finish(training.fit)
            except Interrupted:
                stopped.append(number)
            except UserError as problem:
                if isinstance(problem, Diverged):
                    checkpoint.remove()  # it would only diverge again
                checkpoint.close()
                self._fail(number, run, problem)
            else:
                checkpoint.remove()
                checkpoint.close()
                self._finish(number, result)

        return Member(run.out.name, adapted, training, opened.validate, task.metric, leave, checkpoint)

    @property
    def _fresh(self) -> Fresh:
        return "if-other" if self._overwrite else False

    def _watched(self, number: int) -> Watch | None:
        return None if self._watch is None else functools.partial(self._watch, number)

    def _fail(self, number: int, run: Asked, error: UserError) -> None:
        console.say(f"{run.out}: {error}")
        self._finish(number, {"artifact": str(run.out), "failed": str(error)})

    def _finish(self, number: int, result: dict[str, Any]) -> None:
        self.results[number] = result
        if self._done is not None:
            self._done(number, result)
