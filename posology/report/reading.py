"""From a ledger to what a report says: runs, configurations, and comparisons on the same documents.

    Ledger.results()  -> Run             one for each run that is done
                      -> Configuration   those that differ in their seed alone
                      -> TaskResults     compared (`posology.report.comparing`) and put in words

The ledger is read once, from front to end. Answers by document are read for the configurations that are compared, and no
others, so that a ledger of ten thousand runs is a matter of seconds.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from posology import catalog, console
from posology.errors import UserError
from posology.measure import money
from posology.report import comparing
from posology.report.results import Configuration, Results, Run, Score, TaskResults
from posology.report.text import metric_label
from posology.study.ledger import Ledger

_RUNG = re.compile(r"prescribe [0-9a-f]+ rung ")
_SAMPLES = "samples"
"""The folder in which a prescription keeps samples of its training set."""
_PAPER_NAMES = {"mimic-triage": "icd9-triage"}
"""Tasks that the paper's tables call otherwise than `posology prepare`."""
_NEAR = 0.5
"""A task with less than this share of the paper's documents is a subset, or made of something else."""
_FIRST = ("shots", "max_seconds", "rank")
"""What people look for first in the name of a configuration."""
_POINTS = "A point is a hundredth of the score: 0.80 and 0.81 differ by one point."


class _Task(NamedTuple):
    """What is known of a prepared task.

    Attributes:
        identity: equal for equal tasks, wherever they lie.
        found: the task; None where it is not where it was.
    """

    identity: str
    found: Any


def read(
    ledger: Path | str,
    *,
    studies: Sequence[str] | None = None,
    price: str = money.DEFAULT,
    prices: Path | None = None,
    title: str | None = None,
) -> Results:
    """Reads a ledger and compares what is in it; the ledger may be in use by a study.

    Args:
        ledger: the file.
        studies: names of those to report; all where None.
        price: what an hour of the machine costs, by its name in prices.yaml.
        prices: a file of one's own in the form of prices.yaml.
        title: of the report; made from the studies where None.

    Raises:
        UserError: there is no such ledger, study or price, or no run is done.
    """
    rate = money.rate(price, prices)
    with Ledger(ledger) as opened:
        known = [each["name"] for each in opened.studies()]
        for name in studies or ():
            opened.keys(name)  # says which there are, where this is none of them
        wanted = set(known if studies is None else studies)
        rows: list[tuple[dict[str, Any], Run]] = []
        trained: dict[str, str | None] = {}
        on_samples = 0
        for row in opened.results():
            if wanted.isdisjoint(row["studies"]):
                continue
            if _on_sample(row):
                on_samples += 1
                continue
            rows.append((row["cell"], _run(row, opened.artifacts, rate)))
            trained[row["key"]] = row["result"].get("fingerprint")
        states = _states(opened, wanted)
    if not rows:
        waiting = ", ".join(f"{count} {state}" for state, count in states.items() if count) or "none at all"
        raise UserError(f"has no run that is done ({waiting})", "Run a study, or name another one", ledger)
    tasks = _tasks(rows, trained)
    reported = [name for name in known if name in wanted and not _RUNG.match(name)] or sorted(wanted)
    notes = _notes([run for _, run in rows], tasks, states, on_samples, price, rate)
    return Results(title or _title(reported), tasks, notes)


def _on_sample(row: Mapping[str, Any]) -> bool:
    """Whether a run was trained on a sample of its task, to choose among candidates: its test split means nothing."""
    return Path(row["cell"]["data"]).parent.name == _SAMPLES and all(_RUNG.match(name) for name in row["studies"])


def _states(ledger: Ledger, studies: set[str]) -> dict[str, int]:
    """Runs that are not done, by state."""
    found: dict[str, dict[str, None]] = {"failed": {}, "running": {}, "pending": {}}
    for study in studies:
        for state, keys in found.items():
            keys.update(dict.fromkeys(ledger.keys(study, state)))
    return {state: len(keys) for state, keys in found.items()}


def _title(studies: Sequence[str]) -> str:
    if len(studies) == 1:
        return f"Report on {studies[0]}"
    return f"Report on {len(studies)} studies" if len(studies) > 3 else f"Report on {', '.join(studies)}"


# --- runs -------------------------------------------------------------------------------------------------------------


def _run(row: Mapping[str, Any], artifacts: Path, rate: money.Rate) -> Run:
    cell, result = row["cell"], row["result"]
    adapted = cell["backbone"] is not None and result["backbone_parameters"] > 0
    training = result["training"]
    per_second, documents_per_second = training.get("tokens_per_second"), training.get("examples_per_second")
    folders = (Path(row["artifact"] or artifacts / row["key"]), artifacts / row["key"])
    return Run(
        key=row["key"],
        studies=tuple(row["studies"]),
        task=cell["task"],
        kind=result["kind"],
        metric=result["metric"],
        backbone=result["backbone"] if adapted else None,
        backbone_parameters=result["backbone_parameters"],
        domain=(result.get("domain") or _domain(result["backbone"])) if adapted else None,
        method=result["method"],
        seed=cell["seed"],
        shots=cell["shots"],
        max_seconds=cell["max_seconds"],
        overrides=cell["overrides"],
        scores={
            name: Score(entry["value"], entry.get("low"), entry.get("high"))
            for name, entry in result["metrics"].items()
        },
        validation=(result["validation"] or {}).get(result["metric"]),
        per_label=result.get("per_label") or {},
        curve=tuple(each for each in training.get("evaluations") or () if "step" in each),
        trainable_parameters=result["trainable_parameters"],
        adapter_bytes=result.get("adapter_bytes") or 0,
        seconds=result["seconds"],
        tokens_per_second=per_second,
        peak_memory=row["peak_memory"],
        coverage=(result.get("coverage") or {}).get("test"),
        measures=result.get("measures") or {},
        cost=result["seconds"] / 3600 * rate.per_hour,
        currency=rate.currency,
        artifact=next((folder for folder in folders if folder.is_dir()), None),
        recipe_name=cell["recipe"],
        tokens_per_document=per_second / documents_per_second if per_second and documents_per_second else None,
        ended_early=training.get("stopped") == "pruned",
        ended=row["ended"],
        version=row["version"],
        pretraining=result.get("pretraining"),
        distilled_from=result.get("distilled_from"),
        family=result.get("family"),
    )


def _domain(backbone: str) -> str | None:
    """Of a backbone of the catalogue, or of its first layers."""
    entry = catalog.find(re.sub(r":\d+$", "", backbone))
    return entry.domain if entry is not None else None


# --- configurations ---------------------------------------------------------------------------------------------------


def _tasks(rows: Iterable[tuple[Mapping[str, Any], Run]], trained: Mapping[str, str | None]) -> tuple[TaskResults, ...]:
    """Runs by task, the tasks in order of appearance; a task is its data and its metric, whatever a study calls it.

    Its data are those that a run was trained on: the folder may hold others now. `trained` has their fingerprints by the
    runs' keys, as far as results say them.
    """
    known: dict[str, _Task] = {}
    by_task: dict[tuple[str, str], list[tuple[Mapping[str, Any], Run]]] = defaultdict(list)
    for cell, run in rows:
        data = cell["data"]
        if data not in known:
            known[data] = _task(data)
        identity = trained[run.key] or _trained_on(run) or known[data].identity
        by_task[identity, run.metric].append((cell, run))
    names = _unique([_task_name(own, by_task) for own in by_task.values()])
    built = []
    with console.progress("comparing", len(by_task)) as advance:
        for name, ((identity, _), own) in zip(names, by_task.items(), strict=True):
            there = (known[cell["data"]] for cell, _ in own)
            found = next((task.found for task in there if task.identity == identity), None)
            configurations, differences, verdict = comparing.compare(_configurations(own), advance)
            run = own[0][1]
            built.append(
                TaskResults(
                    task=name,
                    kind=run.kind,
                    metric=run.metric,
                    labels=tuple(found.labels if found is not None else run.per_label),
                    configurations=configurations,
                    differences=differences,
                    sentences=verdict.sentences,
                    best=verdict.best,
                    cheapest=verdict.cheapest,
                    **({} if found is None else _facts(found)),
                )
            )
    return tuple(built)


def _task(data: str) -> _Task:
    from posology.tasks.prepared import PreparedTask

    try:
        found = PreparedTask.open(data)
    except UserError:
        return _Task(data, None)
    return _Task(found.fingerprint, found)


def _trained_on(run: Run) -> str | None:
    """The fingerprint of a run's task, by its artifact; results of before say none."""
    task = _of_artifact(run.artifact).get("task")
    return task.get("fingerprint") if isinstance(task, dict) else None


def _of_artifact(artifact: Path | None) -> dict[str, Any]:
    """What an artifact says of itself; nothing where it cannot be read."""
    try:
        found = json.loads((artifact / "posology.json").read_text(encoding="utf-8")) if artifact is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _task_name(own: Sequence[tuple[Mapping[str, Any], Run]], by_task: Mapping[tuple[str, str], Any]) -> str:
    """What its first study calls it, and the metric where it is judged by several."""
    first = own[0][1]
    metrics = {metric for (_, metric), rows in by_task.items() if rows[0][1].task == first.task}
    return f"{first.task} ({metric_label(first.metric)})" if len(metrics) > 1 else first.task


def _facts(task: Any) -> dict[str, Any]:
    """What a prepared task says of itself; see `TaskResults`."""
    published = task.notes.get("published") or {}
    facts = {"counts": task.counts, "protocol": task.protocol, "source": task.source.get("format")}
    facts["fingerprint"] = task.fingerprint
    if task.source.get("synthetic"):
        facts["source"] = f"{facts['source']}, synthetic"
    if published:
        facts["tags"] = published["classes"]["here"]
        sizes = (published["train"], published["evaluation"])
        whole = all(size["here"] >= _NEAR * size["paper"] for size in sizes)
        if whole and not task.source.get("synthetic"):
            facts["published"] = _PAPER_NAMES.get(task.name, task.name)
    return facts


def _configurations(rows: Sequence[tuple[Mapping[str, Any], Run]]) -> list[Configuration]:
    groups: dict[str, dict[int, tuple[Mapping[str, Any], Run]]] = defaultdict(dict)
    for cell, run in rows:
        same = {name: value for name, value in cell.items() if name not in ("task", "data", "seed", "max_memory")}
        if same.get("distilled_from") is None:  # ledgers of before have no such field
            same.pop("distilled_from", None)
        key = json.dumps([same, run.ended_early], sort_keys=True)
        before = groups[key].get(run.seed)
        # The same run on a changed backbone folder has a key of its own: the later one is what is there now.
        if before is None or (before[1].ended or 0) <= (run.ended or 0):
            groups[key][run.seed] = cell, run
    own = [[entry for _, entry in sorted(group.items())] for group in groups.values()]
    names = _names([group[0] for group in own])
    return [
        _configuration(name, _with_recipe(group[0][0], [run for _, run in group]))
        for name, group in zip(names, own, strict=True)
    ]


def _configuration(name: str, runs: Sequence[Run]) -> Configuration:
    from posology.evaluation.seeds import median_sd

    values = [run.score.value for run in runs if run.score.value is not None]
    if not values:
        return Configuration(name, tuple(runs), None, None, Score(None))
    found = median_sd(values)
    mean = comparing.rough_mean([run.score for run in runs])
    return Configuration(name, tuple(runs), found["median"], found["sd"], mean)


def _with_recipe(cell: Mapping[str, Any], runs: Sequence[Run]) -> list[Run]:
    """The runs of a configuration with the hyper-parameters that its artifacts name, or else those that it asks for."""
    from dataclasses import replace

    recipe = next((found for run in runs if (found := _of_artifact(run.artifact).get("recipe"))), None)
    return [replace(run, recipe=recipe or cell["overrides"]) for run in runs]


def _names(firsts: Sequence[tuple[Mapping[str, Any], Run]]) -> list[str]:
    """What configurations of a task are called: method and backbone, and as little more as tells those from each other.

    A field that is not named has its default.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for position, (_, run) in enumerate(firsts):
        alike[run.name].append(position)
    names = [""] * len(firsts)
    for name, positions in alike.items():
        fields = [_fields(*firsts[position]) for position in positions]
        order = dict.fromkeys(field for own in fields for field in own)
        taken: list[str] = []
        distinct = 1
        for field in sorted(order, key=lambda field: field not in _FIRST):
            more = len({json.dumps([own.get(each) for each in (*taken, field)]) for own in fields})
            if more > distinct:
                taken.append(field)
                distinct = more
        for position, own in zip(positions, fields, strict=True):
            said = [_said(field, own[field]) for field in taken if own.get(field) not in (None, False)]
            names[position] = ", ".join([name, *said])
    return _unique(names)


def _fields(cell: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """What may tell a configuration from another one of its method and backbone."""
    limits: dict[str, Any] = {"shots": run.shots, "max_seconds": run.max_seconds}
    recipe = None if run.recipe_name == "standard" else run.recipe_name
    teacher = cell.get("distilled_from")
    limits["distilled from"] = None if teacher is None else Path(teacher).name
    last = {"recipe": recipe, "evaluate_seconds": cell["evaluate_seconds"], "ended early": run.ended_early}
    return limits | dict(run.overrides) | last


def _said(field: str, value: Any) -> str:
    if field == "ended early":
        return field
    if field in ("recipe", "distilled from"):
        return f"{field} {value}"
    units = {"shots": "shots", "max_seconds": "s", "evaluate_seconds": "s between evaluations"}
    if field in units:
        return f"{value:g} {units[field]}"
    if isinstance(value, float):
        return f"{field}={value:.3g}"
    return f"{field}={'+'.join(map(str, value)) if isinstance(value, list) else value}"


def _unique(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


# --- notes ------------------------------------------------------------------------------------------------------------


def _notes(
    runs: Sequence[Run],
    tasks: Sequence[TaskResults],
    states: Mapping[str, int],
    on_samples: int,
    price: str,
    rate: money.Rate,
) -> tuple[str, ...]:
    notes = [
        "Validation chose each run's checkpoint, and the test split was scored once. All scores here are on test. "
        "Intervals are of 95 % and over groups (patients, where the data name them); where a configuration has several "
        "seeds they take these in as well.",
        f"Configurations are compared in pairs on the same documents, and p values corrected by Holm's method for all "
        f"comparisons that are made on a task. {_POINTS}",
        "The configuration with the highest test score was found by looking at test scores, so its own score is a little "
        "flattering, the more so the more there are; what validation would have chosen is named beside it.",
    ]
    if any(len(each.runs) > 1 for task in tasks for each in task.configurations):
        notes.append(comparing.ROUGH)
    for state, what in (("failed", "failed"), ("running", "still under way"), ("pending", "not begun")):
        if count := states[state]:
            notes.append(f"Not in here: {_runs(count)} {what}.")
    if on_samples:
        notes.append(
            f"{_runs(on_samples)} of prescriptions, on samples of a training set, "
            f"{'is' if on_samples == 1 else 'are'} left out: they choose among candidates on validation, and say nothing "
            "about test."
        )
    if gone := sum(run.artifact is None for run in runs):
        notes.append(f"The artifacts of {_runs(gone)} are no longer there.")
    synthetic = [task.task for task in tasks if task.source and task.source.endswith("synthetic")]
    if synthetic:
        notes.append(
            f"Synthetic notes: {', '.join(synthetic)}. No patient stands behind them; they show how configurations "
            "compare, not how well any of them does on real notes."
        )
    notes.append(
        f"Money is training time at {rate.per_hour:.4g} {rate.currency} an hour (price `{price}`), evaluations excluded."
    )
    versions = sorted({run.version for run in runs if run.version})
    ended = [run.ended for run in runs if run.ended is not None]
    notes.append(
        f"{_runs(len(runs))} of Posology {', '.join(versions) or 'of unknown version'}"
        + (f", done from {_day(min(ended))} to {_day(max(ended))}." if ended else ".")
    )
    return tuple(notes)


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


def _day(seconds: float) -> str:
    return datetime.date.fromtimestamp(math.floor(seconds)).isoformat()
