"""What a study file must obey beyond the types of its values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posology.catalog import backbones as catalogue_backbones
from posology.catalog import find
from posology.errors import UserError
from posology.study.grid import (
    LIMITS,
    RATIO,
    TEACHER,
    combinations,
    expand,
    field_value,
    fields_of,
    matches,
)
from posology.study.places import Places, Steps, nearest, shown

if TYPE_CHECKING:
    from posology.study.spec import Match, Range, Search, StudyFile

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_rules(study: StudyFile, places: Places) -> None:
    """Raises UserError for the first thing in a study file that cannot be meant. Opens no task and no weights."""
    from posology.engine.baselines import BASELINES
    from posology.engine.methods import METHODS

    known = [*METHODS, *BASELINES]
    for number, method in enumerate(study.methods):
        if method not in known:
            raise places.fault(
                ("methods", number),
                f"there is no method {shown(method)}; there are {', '.join(known)}",
                nearest(method, known) or "Choose one of these",
            )
    for key in ("methods", "seeds"):
        _check_once(getattr(study, key), (key,), places)
    _check_tasks(study, places)
    adapting = [method for method in study.methods if method in METHODS]
    if adapting and not study.backbones:
        raise places.fault(
            ("backbones",), f"{adapting[0]} adapts a backbone, and none is named", "Add backbones: [minilm], or others"
        )
    for number, backbone in enumerate(study.backbones):
        _check_backbone(study, backbone, ("backbones", number), places)
    _check_once([_canonical(name) for name in study.backbones], ("backbones",), places, study.backbones)
    _check_fields(study.set, ("set",), study.methods, places)
    _check_overrides(study, places)
    _check_sweeps(study, places)
    if study.search:
        _check_search(study, study.search, places)
    grid = expand(study)
    if not grid.cells:
        raise places.fault(
            (), f"no run is left: {'; '.join(grid.left_out)}", "Let `overrides` skip less, or add methods"
        )


def check_inputs(study: StudyFile, places: Places) -> None:
    """Raises UserError for the first task or backbone that is not there, or that does not fit the study."""
    from posology.engine.architectures import architecture_of
    from posology.engine.backbone import load_config, resolve
    from posology.engine.methods import check
    from posology.engine.recipe import make_recipe
    from posology.tasks.prepared import METRICS, PreparedTask

    for task in study.tasks:
        folder, steps = study.folder(task), study.steps(task)
        if not folder.is_dir():
            raise _missing_task(study, task, folder, steps, places)
        try:
            kind = PreparedTask.open(folder).kind
        except UserError as error:
            raise places.fault(steps, f"{error.place}: {error.problem}", error.mend) from error
        metric = study.search.metric if study.search else None
        if metric is not None and metric not in METRICS[kind]:
            raise places.fault(
                ("search", "metric"),
                f"{metric} is no metric of {task}, which is {kind}; there are {', '.join(METRICS[kind])}",
                "Choose one of these, or leave it out for each task's own",
            )
    sources = {}
    for number, backbone in enumerate(study.backbones):
        try:
            source = resolve(study.source(backbone))
            sources[study.source(backbone)] = (source, load_config(source))
        except UserError as error:
            raise places.fault(("backbones", number), f"{error.place}: {error.problem}", error.mend) from error
    for cell in expand(study).cells:
        if cell.backbone is None:  # a baseline
            continue
        if cell.distilled_from is not None:
            _check_teacher(cell.distilled_from, cell.task, PreparedTask.open(cell.data), places)
        source, config = sources[cell.backbone]
        try:
            recipe = make_recipe(cell.method, cell.recipe, cell.overrides, width=config.hidden_size)
            architecture = architecture_of(config, source.family)
            check(cell.method, architecture, recipe)
            if isinstance(recipe.targets, tuple):
                architecture.pattern("", recipe.targets)  # refuses projections that the architecture lacks
        except UserError as error:
            steps = ("methods", study.methods.index(cell.method))
            problem = f"with {cell.backbone}: {error.problem} ({error.place})"
            raise places.fault(steps, problem, error.mend) from error


def _check_teacher(folder: Path, name: str, task: Any, places: Places) -> None:
    from posology.engine.artifact import read_record

    steps: Steps = next((steps for steps in places.lines if steps[-1:] == (TEACHER,)), ("sweep",))
    try:
        record = read_record(folder)
    except UserError as error:
        raise places.fault(steps, f"{error.place}: {error.problem}", error.mend) from error
    if record["kind"] != task.kind or set(task.labels) - set(record["labels"]):
        raise places.fault(
            steps,
            f"{folder} was trained on other labels than those of {name}",
            f"Add match: {{task: ...}} to the sweep, or name an artifact for {name}",
        )


def _missing_task(study: StudyFile, task: str, folder: Path, steps: Steps, places: Places) -> UserError:
    beside = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()] if folder.parent.is_dir() else []
    mend = nearest(folder.name, beside) or f"Prepare it: posology prepare {task} --source ... --out {folder}"
    if study._shipped:
        mend += ", or name the folder that holds the prepared tasks with --tasks"
    return places.fault(steps, f"there is no folder {folder}", mend)


def _check_once(values: Sequence[Any], steps: Steps, places: Places, written: Sequence[Any] | None = None) -> None:
    """Raises UserError where a value is in a list twice; `written` is what the file says where that differs."""
    for number, value in enumerate(values):
        first = values.index(value)
        if first < number:
            name = shown((written or values)[number])
            raise places.fault((*steps, number), f"{name} is there already, as number {first}", "Take one of them out")


def _check_tasks(study: StudyFile, places: Places) -> None:
    folders: dict[Path, str] = {}
    for task in study.tasks:
        folder = study.folder(task)
        if folder in folders:
            raise places.fault(study.steps(task), f"is the same folder as {folders[folder]}", "Take one of them out")
        folders[folder] = task


def _canonical(backbone: str) -> str:
    stem, colon, layers = backbone.partition(":")
    entry = find(stem)
    return f"{entry.name}{colon}{layers}" if entry else backbone


def _check_backbone(study: StudyFile, backbone: str, steps: Steps, places: Places) -> None:
    if study.source(backbone) != backbone or Path(backbone).is_dir():
        return
    stem, colon, layers = backbone.partition(":")
    if colon and not (layers.isdecimal() and int(layers) > 0):
        raise places.fault(steps, f"{layers!r} is no number of layers", "Write NAME:K, for example minilm:3")
    if entry := find(stem):
        depth = next(entry.config[key] for key in ("num_hidden_layers", "n_layers") if key in entry.config)
        if colon and int(layers) > depth:
            raise places.fault(steps, f"{shown(backbone)} asks for {layers} layers of {depth}", f"Write 1 to {depth}")
    elif stem.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(stem):
        raise places.fault(
            steps,
            f"{shown(backbone)} is neither in the catalogue nor a folder nor a hub id (OWNER/NAME)",
            nearest(stem, catalogue_backbones()) or "`posology backbones` lists the catalogue",
        )


def _check_fields(
    values: dict[str, Any], steps: Steps, methods: Sequence[str], places: Places, extra: Iterable[str] = ()
) -> None:
    """Raises UserError for a field that none of the methods has, or a value that one of them cannot take."""
    for name, value in values.items():
        _check_field(name, (*steps, name), methods, places, extra)
        _check_value(name, value, (*steps, name), methods, places)


def _check_field(name: str, steps: Steps, methods: Sequence[str], places: Places, extra: Iterable[str] = ()) -> None:
    from posology.engine.recipe import Recipe

    own = dict.fromkeys(field for method in methods for field in sorted(fields_of(method)) if field != RATIO)
    if name in own or name in extra:
        return
    allowed = [*extra, *own]
    if name in (*Recipe.model_fields, RATIO):
        which = "is there for searches only" if name == RATIO else f"does nothing for {', '.join(methods)}"
        raise places.fault(steps, which, "Take it out")
    raise places.fault(
        steps,
        f"there is no such field; there are {', '.join(allowed) or 'none for these methods'}",
        nearest(name, allowed) or "Choose one of these",
    )


def _check_value(name: str, value: Any, steps: Steps, methods: Sequence[str], places: Places) -> None:
    for method in methods:
        if name in fields_of(method):
            try:
                field_value(method, name, value)
            except ValueError as error:
                allowed = re.findall(r"'([^']+)'", str(error))
                mend = nearest(value, allowed) if isinstance(value, str) else None
                raise places.fault(steps, f"found {shown(value)}: {error}", mend or "Correct the value") from None


def _meant(name: str, values: Sequence[Any], methods: Sequence[str]) -> list[Any]:
    """Values as recipes hold them, so that 8 and "8" are the same."""
    method = next((method for method in methods if name in fields_of(method)), None)
    return [value if method is None else field_value(method, name, value) for value in values]


def _matched(study: StudyFile, match: Match, steps: Steps, places: Places) -> list[str]:
    """The methods of the cells that a pattern matches.

    Raises:
        UserError: it matches nothing, or one of its parts does not.
    """
    names = {"task": list(study.tasks), "backbone": list(study.backbones), "method": list(study.methods)}
    for key, have in names.items():
        patterns = getattr(match, key) or ()
        for number, pattern in enumerate(patterns):
            if not any(fnmatchcase(name, pattern) for name in have):
                where = (*steps, key, number) if (*steps, key, number) in places.lines else (*steps, key)
                raise places.fault(
                    where,
                    f"{shown(pattern)} matches no {key} of this study; there are {', '.join(have) or 'none'}",
                    nearest(pattern, have) or "Correct the pattern",
                )
    methods = dict.fromkeys(
        method for task, backbone, method in combinations(study) if matches(match, task, backbone, method)
    )
    if not methods:
        raise places.fault(steps, "matches no run: its patterns never meet", "Loosen one of them")
    return list(methods)


def _check_overrides(study: StudyFile, places: Places) -> None:
    for number, override in enumerate(study.overrides):
        steps: Steps = ("overrides", number)
        if override.skip == bool(override.set):
            found = "both `set` and `skip: true`" if override.skip else "neither `set` nor `skip: true`"
            raise places.fault(steps, f"found {found}", "Give one of the two")
        methods = _matched(study, override.match, (*steps, "match"), places)
        _check_fields(override.set, (*steps, "set"), methods, places)


def _check_sweeps(study: StudyFile, places: Places) -> None:
    for number, sweep in enumerate(study.sweep):
        steps: Steps = ("sweep", number) if ("sweep", number) in places.lines else ("sweep",)
        methods = _matched(study, sweep.match, (*steps, "match"), places)
        if not sweep.values:
            raise places.fault(
                steps, "varies nothing", f"Give a list of values: {', '.join(LIMITS)}, or a recipe field"
            )
        for name, values in sweep.values.items():
            here = (*steps, name)
            if name not in LIMITS:
                _check_field(name, here, methods, places, LIMITS)
            if not isinstance(values, list) or not values:
                raise places.fault(here, f"found {shown(values)}: a list of values is needed", f"Write {name}: [...]")
            for index, value in enumerate(values):
                if name in LIMITS:
                    _check_limit(name, value, (*here, index), places)
                else:
                    _check_value(name, value, (*here, index), methods, places)
            _check_once(_meant(name, values, methods), here, places, values)


def _check_limit(name: str, value: Any, steps: Steps, places: Places) -> None:
    if name == TEACHER:
        if value is not None and not isinstance(value, str):
            raise places.fault(
                steps, f"found {shown(value)}: the folder of an artifact is needed, or null", "Correct the value"
            )
        return
    kinds, needed = ((int,), "a whole number from 1") if name == "shots" else ((int, float), "a number greater than 0")
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf):
        raise places.fault(
            steps, f"found {shown(value)}: {needed} is needed, or null for no limit", "Correct the value"
        )


def _check_search(study: StudyFile, search: Search, places: Places) -> None:
    from posology.engine.baselines import BASELINES
    from posology.tasks.prepared import METRICS

    if study.executor != "local":
        raise places.fault(("executor",), "searches run on this machine", "Take it out, or `search`")
    if baselines := [method for method in study.methods if method in BASELINES]:
        number = study.methods.index(baselines[0])
        raise places.fault(
            ("methods", number), f"{baselines[0]} has no backbone, and `search` tunes those that have", "Take one out"
        )
    if search.objective not in (("metric",), ("metric", "cost")):
        raise places.fault(
            ("search", "objective"),
            f"found {shown(list(search.objective))}: allowed are metric, and [metric, cost]",
            "Choose one of these",
        )
    if search.pruner == "halving" and len(search.objective) > 1:
        raise places.fault(
            ("search", "pruner"), "halving compares one score, and there are two objectives", "Choose pruner: none"
        )
    metrics = list(dict.fromkeys(name for names in METRICS.values() for name in names))
    if search.metric is not None and search.metric not in metrics:
        raise places.fault(
            ("search", "metric"),
            f"there is no metric {shown(search.metric)}; there are {', '.join(metrics)}",
            nearest(search.metric, metrics) or "Choose one of these",
        )
    swept = {name for sweep in study.sweep for name in sweep.values}
    for name, values in search.space.items():
        steps: Steps = ("search", "space", name)
        extra = (RATIO,) if any(RATIO in fields_of(method) for method in study.methods) else ()
        _check_field(name, steps, study.methods, places, extra)
        if name in swept:
            raise places.fault(steps, "is swept too", "Take it out of `sweep` or of `search`")
        if name == "alpha" and RATIO in search.space:
            raise places.fault(steps, f"is given by {RATIO} too", "Take one of them out")
        if not isinstance(values, tuple):
            _check_range(name, values, steps, study.methods, places)
            continue
        for index, value in enumerate(values):
            _check_value(name, value, (*steps, index), study.methods, places)
        _check_once(_meant(name, values, study.methods), steps, places, values)
    for number, method in enumerate(study.methods):
        if not any(name in fields_of(method) for name in search.space):
            raise places.fault(
                ("methods", number), f"{method} has nothing of the search's space", "Take it out, or add learning_rate"
            )


def _check_range(name: str, values: Range, steps: Steps, methods: Sequence[str], places: Places) -> None:
    for end in ("low", "high"):
        _check_value(name, getattr(values, end), (*steps, end), methods, places)
    if not values.low < values.high:
        raise places.fault(
            (*steps, "high"), f"found {values.high}, which is not above low, {values.low}", "Give a higher one"
        )
    if values.log and not values.low > 0:
        raise places.fault(
            (*steps, "low"), f"found {values.low}: logarithms need more than 0", "Raise it, or leave log out"
        )
