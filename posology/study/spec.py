"""Study files: a whole comparison declared in one YAML file. docs/studies.md is the guide."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
)

from posology.catalog import find
from posology.errors import UserError
from posology.seed import LARGEST_SEED
from posology.study.grid import Grid, cells, expand
from posology.study.places import Places, Steps, nearest, read_yaml, shown
from posology.study.rules import check_inputs, check_rules

__all__ = ["Grid", "Match", "Range", "Search", "StudyFile", "catalogue", "cells", "check", "expand", "read_study"]

_STUDIES = resources.files("posology.catalog").joinpath("studies")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Match(_Part):
    """Which cells are meant: those whose task, backbone and method each match one of the patterns given for it.

    Patterns are names with `*`, `?` and `[...]` as in file names. A baseline has no backbone, so no pattern for
    backbones matches it.
    """

    task: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    backbone: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    method: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Override(_Part):
    """Recipe fields for some cells, or their absence. Later entries win over earlier ones, and all over `set`."""

    match: Match
    set: dict[str, Any] = Field(default_factory=dict)
    skip: bool = False


class Budgets(_Part):
    """Limits of every run; see `posology train --help`."""

    max_seconds: FiniteFloat | None = Field(default=None, gt=0)
    evaluate_seconds: FiniteFloat | None = Field(default=None, gt=0)
    max_memory: int | None = Field(default=None, ge=1)
    shots: int | None = Field(default=None, ge=1)

    @field_validator("max_memory", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        from posology.engine.memory import parse_bytes

        try:
            return parse_bytes(value)
        except UserError as error:
            raise ValueError(f"{error.problem}; write for example 4GB") from None


class Sweep(BaseModel):
    """Values of which every combination is run: `shots`, `seconds`, `distilled_from`, and fields of the recipe.

    `distilled_from` names artifacts to learn from; null is learning from labels alone.

    Attributes:
        match: only these cells are multiplied.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    match: Match = Match()

    @property
    def values(self) -> dict[str, Any]:
        """The values by name, as they were written."""
        return dict(self.model_extra or {})


class Range(_Part):
    """Numbers from `low` to `high`, both included, evenly spread over their logarithms if `log`."""

    low: int | float
    high: int | float
    log: bool = False


_Choices = Annotated[tuple[Any, ...], Field(min_length=1)]
Space = Annotated[
    Annotated[Range, Tag("range")] | Annotated[_Choices, Tag("choices")],
    Discriminator(lambda value: "range" if isinstance(value, (dict, Range)) else "choices"),
]


class Search(_Part):
    """A search for hyper-parameters (`posology tune`), one for each cell of the grid.

    Attributes:
        trials: of each search.
        space: for each field of the recipe a list of values, or a range. `alpha_ratio` gives `alpha` = ratio x rank.
        sampler: how the next trial is chosen.
        pruner: `halving` ends trials early whose intermediate scores are behind.
        objective: what is optimised: the metric, or the metric and the cost of training.
        metric: its name; each task's own where None.
    """

    trials: int = Field(default=20, ge=1)
    space: Annotated[dict[str, Space], Field(min_length=1)]
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["none", "halving"] = "none"
    objective: Annotated[tuple[Literal["metric", "cost"], ...], Field(min_length=1)] = ("metric",)
    metric: str | None = None

    @field_validator("objective", mode="before")
    @classmethod
    def _one_or_two(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class StudyFile(_Part):
    """A comparison: every task x backbone x method x combination of the sweep x seed is one run.

    Attributes:
        study: its name in the ledger.
        tasks: the folder of each prepared task, by the task's name; a list of folders names them by themselves.
        backbones: catalogue names, folders, hub ids, or `NAME:K`; baselines need none.
        methods: adapting methods and baselines.
        seeds: one run each.
        recipe: where all hyper-parameters come from that are not set here; baselines have one of their own.
        set: recipe fields for all runs. What a method does not have is left out for it.
        overrides: the same by pattern.
        budgets: limits of every run.
        sweep: values of which every combination is run. Several sweeps multiply; the later wins where two that match a
            cell name the same thing.
        search: what `posology tune` varies.
        executor: what carries the runs out.
    """

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=100)
    tasks: Annotated[dict[str, Path], Field(min_length=1)]
    backbones: tuple[str, ...] = ()
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, le=LARGEST_SEED, strict=True)], ...], Field(min_length=1)] = (42,)
    recipe: Literal["standard", "paper"] = "standard"
    set: dict[str, Any] = Field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    budgets: Budgets = Budgets()
    sweep: tuple[Sweep, ...] = ()
    search: Search | None = None
    executor: Literal["local", "ray"] = "local"
    _folder: Path = PrivateAttr(default=Path())
    _tasks: Path = PrivateAttr(default=Path())
    _places: Places = PrivateAttr(default_factory=lambda: Places("the study"))
    _shipped: bool = PrivateAttr(default=False)

    @field_validator("tasks", mode="before")
    @classmethod
    def _name_tasks(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        folders = [Path(entry) for entry in value if isinstance(entry, (str, Path))]
        names = [folder.name for folder in folders]
        if len(folders) < len(value):
            raise ValueError("a list of tasks holds folders")
        if again := next((name for number, name in enumerate(names) if name in names[:number]), None):
            raise ValueError(f"two tasks are called {again!r}; write NAME: FOLDER for each")
        return dict(zip(names, folders, strict=True))

    @field_validator("sweep", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value

    def folder(self, task: str) -> Path:
        """Where a prepared task lies, or should: an absolute path."""
        return (self._tasks / self.tasks[task].expanduser()).absolute()

    def teacher(self, artifact: str) -> Path:
        """The folder of an artifact, written as seen from the study file: an absolute path."""
        return (self._folder / Path(artifact).expanduser()).absolute()

    def source(self, backbone: str) -> str:
        """A backbone as `posology.train` takes it: folders, written as seen from the study file, are made absolute."""
        stem, colon, layers = backbone.rpartition(":")
        if not layers.isdecimal():
            stem, colon, layers = backbone, "", ""
        folder = (self._folder / Path(stem).expanduser()).absolute()
        return f"{folder}{colon}{layers}" if find(stem) is None and folder.is_dir() else backbone

    def steps(self, task: str) -> Steps:
        """The way to a task in the file, for messages."""
        if ("tasks", task) in self._places.lines:
            return ("tasks", task)
        return ("tasks", list(self.tasks).index(task))


def catalogue() -> list[str]:
    """The studies that come with the program: `paper/...` and `small/...`."""
    return sorted(
        f"{folder.name}/{entry.name.removesuffix('.yaml')}"
        for folder in _STUDIES.iterdir()
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def read_study(study: Path | str, tasks: Path | str | None = None) -> StudyFile:
    """Reads and checks a study file. No task and no weights are opened, and none need be there.

    Args:
        study: a file, or a name of the catalogue such as `paper/table3`.
        tasks: the folder in which the prepared tasks lie. By default the study file's own; for the catalogue's studies
            the folder that one is in.

    Raises:
        UserError: anything wrong with the file. The message names line and key, what was found, what is allowed, and
            the nearest valid spelling.
    """
    name = str(study)
    shipped = name in catalogue()
    if shipped:
        value, places = read_yaml(_STUDIES.joinpath(f"{name}.yaml"), name)
        folder = Path()
    else:
        path = Path(study).expanduser()
        if not path.exists():
            raise UserError(
                "is neither a file nor a study of the catalogue",
                nearest(name, catalogue()) or f"The catalogue has {', '.join(catalogue())}",
                name,
            )
        value, places = read_yaml(path, name)
        folder = path.parent
    if not isinstance(value, dict):
        raise places.fault((), "is no mapping of keys to values", "Begin with study: NAME, then tasks: and methods:")
    try:
        parsed = StudyFile.model_validate(value)
    except ValidationError as error:
        # An unknown key often explains a missing one, so what is there comes first, in the order of its lines.
        found = sorted(error.errors(), key=lambda one: (one["type"] == "missing", places.line(one["loc"])))
        raise _explained(found[0], places) from None
    parsed._folder, parsed._tasks = folder, folder if tasks is None else Path(tasks).expanduser()
    parsed._places, parsed._shipped = places, shipped
    check_rules(parsed, places)
    return parsed


def check(study: StudyFile) -> None:
    """What must be there before a study is run: prepared tasks, backbones, and methods that fit them.

    Raises:
        UserError: the first thing that is missing or does not fit, with its line in the study file.
    """
    check_rules(study, study._places)
    check_inputs(study, study._places)


def _explained(error: Any, places: Places) -> UserError:
    """One of pydantic's complaints in our words."""
    steps, kind, found = places.known(error["loc"]), error["type"], error["input"]
    if kind == "missing":
        return places.fault((*steps, error["loc"][-1]), "is missing", f"Add {error['loc'][-1]}")
    if kind == "extra_forbidden":
        around = steps[:-1]
        allowed = _keys(around)
        problem = f"there is no such key{f' in {around[0]}' if around else ''}; there are {', '.join(allowed)}"
        return places.fault(steps, problem, nearest(str(steps[-1]), allowed) or "Choose one of these")
    problem, mend = error["msg"].removeprefix("Value error, "), "Correct the value"
    if kind == "literal_error":
        allowed = [part.strip("'") for part in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        problem = f"allowed are {', '.join(allowed)}"
        mend = nearest(str(found), allowed) or "Choose one of these"
    elif kind == "too_short":
        problem, mend = "nothing is in it", "Name at least one, or leave the key out where it has a default"
    elif kind == "tuple_type":
        problem = "a list is needed"
        mend = f"Write [{found}]" if isinstance(found, (str, int, float)) else "Write a list"
    return places.fault(steps, f"found {shown(found)}: {problem[:1].lower()}{problem[1:]}", mend)


def _keys(steps: Steps) -> list[str]:
    """The keys allowed in the mapping that `steps` lead to."""
    parts: dict[str, type[BaseModel]] = {"overrides": Override, "budgets": Budgets, "sweep": Sweep, "search": Search}
    if not steps:
        return list(StudyFile.model_fields)
    if steps[-1] == "match":
        return list(Match.model_fields)
    if steps[0] == "search" and len(steps) > 1:
        return list(Range.model_fields)
    return list(parts[str(steps[0])].model_fields)
