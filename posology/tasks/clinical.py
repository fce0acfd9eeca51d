"""`posology prepare` for the seven tasks of the study, from MIMIC-III and i2b2 as they are downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posology.catalog import paper_table
from posology.console import say
from posology.corpus.document import Document
from posology.corpus.relations import Markers
from posology.errors import UserError
from posology.synthetic import MARKER
from posology.tasks.built import Built, Protocol
from posology.tasks.i2b2_entities import View
from posology.tasks.leaks import shared_groups
from posology.tasks.prepared import SPLITS, PreparedTask, check_metric, write_prepared
from posology.tasks.sources import Part, describe

_SHOWN_PROBLEMS = 5
_KEPT_PROBLEMS = 1000


@dataclass(frozen=True, slots=True)
class ClinicalTask:
    """A task of the study.

    Attributes:
        kind: of the task.
        predicts: in a few words.
        corpus: `mimic-iii`, `i2b2-2010`, `i2b2-2012` or `i2b2-2014`.
        published: its name in the study's table of datasets.
        builder: module whose `build` makes it.
        options: which of `view`, `markers` and `seed` mean something, by protocol.
    """

    kind: str
    predicts: str
    corpus: str
    published: str
    builder: str
    options: Mapping[Protocol, tuple[str, ...]]


_CLASSES, _ENTITIES = "sequence-classification", "token-classification"
_Built = tuple[str, Mapping[Protocol, tuple[str, ...]]]
_MIMIC: _Built = ("posology.tasks.mimic", {"standard": ("splits",), "paper": ("splits",)})
_MENTIONS: _Built = ("posology.tasks.i2b2_entities", {"standard": ("splits", "seed", "view"), "paper": ()})
_PAIRS: _Built = ("posology.tasks.i2b2_relations", {"standard": ("splits", "seed", "markers"), "paper": ("seed",)})

TASKS: dict[str, ClinicalTask] = {
    "mimic-mp": ClinicalTask(
        _CLASSES, "death in hospital, from what is known at admission", "mimic-iii", "MIMIC-III MP", *_MIMIC
    ),
    "mimic-los": ClinicalTask(
        _CLASSES,
        "length of stay in four classes, from what is known at admission",
        "mimic-iii",
        "MIMIC-III LoS",
        *_MIMIC,
    ),
    "mimic-triage": ClinicalTask(
        _CLASSES, "department, by groups of 20 frequent ICD-9 codes", "mimic-iii", "MIMIC-III ICD-9 Triage", *_MIMIC
    ),
    "i2b2-2010-re": ClinicalTask(_CLASSES, "relation of two concepts on a line", "i2b2-2010", "I2B2 2010 RE", *_PAIRS),
    "i2b2-2010-ner": ClinicalTask(_ENTITIES, "problems, tests and treatments", "i2b2-2010", "I2B2 2010", *_MENTIONS),
    "i2b2-2012-ner": ClinicalTask(_ENTITIES, "clinical events of six types", "i2b2-2012", "I2B2 2012", *_MENTIONS),
    "i2b2-2014-ner": ClinicalTask(_ENTITIES, "identifiers (de-identification)", "i2b2-2014", "I2B2 2014", *_MENTIONS),
}


def prepare(
    task: str,
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    protocol: Protocol = "standard",
    splits: Path | None = None,
    view: View = "lines",
    markers: Markers = "around",
    metric: str | None = None,
    seed: int = 42,
    overwrite: bool = False,
) -> tuple[PreparedTask, dict[str, list[Document]]]:
    """Builds one of `TASKS`, says how it came about, and writes it. The arguments are those of `generic.prepare`.

    Returns:
        The task, and the documents it was written from.

    Raises:
        UserError: anything the user can mend; nothing has been written then.
    """
    known = TASKS[task]
    if not source.is_dir():
        raise UserError("there is no such folder", f"Name the folder of {known.corpus} as it was downloaded", source)
    if metric is not None:
        check_metric(metric, known.kind)
    given = {"splits": splits, "view": view, "markers": markers, "seed": seed}
    taken = {option: given[option] for option in known.options[protocol]}
    build = importlib.import_module(known.builder).build
    by_task = {} if task == "i2b2-2010-re" else {"task": task}
    built: Built = build(source=source, protocol=protocol, **by_task, **taken)
    overlap = _overlap(built)
    if overlap and protocol == "standard":
        whose, mend = "the official sets share patients", "Name the folder as it was downloaded, or give --splits"
        if splits is not None:
            whose, mend = "the lists put the same patient or record into two splits", "Give lists of patients, or none"
        raise UserError(f"{whose} ({_listed(overlap)})", mend, splits or source)
    notes = _notes(built, task, protocol, overlap, source)
    prepared = write_prepared(
        out,
        name=name or task,
        kind=built.kind,
        labels=built.labels,
        metric=metric or built.metric,
        protocol=protocol,
        splits=built.splits,
        source=_source(known.corpus, built, source) | {"options": _recorded(taken)},
        notes=notes,
        unit=built.unit,
        overwrite=overwrite,
    )
    _tell(notes, overlap)
    return prepared, built.splits


def _overlap(built: Built) -> dict[str, int]:
    """Documents of the later split whose patient (or record) the earlier one has too, for each pair of splits."""
    return {pair: number for pair, number in shared_groups(built.splits).items() if number}


def _notes(built: Built, task: str, protocol: Protocol, overlap: Mapping[str, int], source: Path) -> dict[str, Any]:
    groups = {split: len({document.group for document in built.splits[split]}) for split in SPLITS}
    return {
        "flow": built.flow.as_json() if built.flow else None,
        "counts": {key: number for key, number in sorted(built.counts.items()) if number},
        "groups": groups,
        "group_overlap": dict(overlap),
        "published": published(task, built, protocol),
        "defects": list(built.defects),
        "remarks": list(built.remarks),
        "problems": [[_inside(place, source), what] for place, what in built.problems[:_KEPT_PROBLEMS]],
        "problems_found": len(built.problems),
    }


def published(task: str, built: Built, protocol: Protocol) -> dict[str, dict[str, int]]:
    """The study's counts of this task beside ours: for `train`, `evaluation` and `classes`, `here`, `paper` and their
    `difference`.

    The study's table counts the whole official test set of i2b2 relations, which its protocol halves into validation
    and test. Classes of entity tasks are tags: B- and I- of every type, and O.
    """
    (row,) = (row for row in paper_table("table2_datasets") if row["dataset"] == TASKS[task].published)
    sizes = {split: len(documents) for split, documents in built.splits.items()}
    evaluated = sizes["test"]
    if task == "i2b2-2010-re" and protocol == "paper":
        evaluated += sizes["validation"]
    classes = len(built.labels)
    if built.kind == _ENTITIES:
        classes = built.counts.get("tags_seen", 2 * classes + 1)
    here = {"train": sizes["train"], "evaluation": evaluated, "classes": classes}
    paper = {"train": int(row["train"]), "evaluation": int(row["eval"]), "classes": int(row["classes"])}
    return {key: {"here": here[key], "paper": paper[key], "difference": here[key] - paper[key]} for key in here}


def _source(corpus: str, built: Built, source: Path) -> dict[str, Any]:
    parts = [Part(source / name, None, name) for name in built.files] or [Part(source, None, "")]
    made_up = {"synthetic": True} if (source.absolute().parent / MARKER).is_file() else {}
    return describe(corpus, parts, source) | made_up


def _recorded(options: Mapping[str, Any]) -> dict[str, str]:
    return {key: value.absolute().name if isinstance(value, Path) else str(value) for key, value in options.items()}


def _inside(place: str, source: Path) -> str:
    """A place without the folders above the source, which are nobody else's business."""
    return source.absolute().name if place == str(source) else place.removeprefix(f"{source}/")


def _tell(notes: Mapping[str, Any], overlap: Mapping[str, int]) -> None:
    from posology.tasks.card import flow_rows, published_rows

    if notes["flow"]:
        say("\n".join(f"{number:>12,}  {what}" for what, number in flow_rows(notes["flow"])))
    for key, number in notes["counts"].items():
        say(f"{number:>12,}  {key.replace('_', ' ')}")
    say("\n".join(published_rows(notes["published"])))
    if overlap:
        say(f"The same patient or record is in two splits, as in the publication: {_listed(overlap)}.")
    found = notes["problems_found"]
    for place, what in notes["problems"][:_SHOWN_PROBLEMS]:
        say(f"{place}: {what}")
    if found > _SHOWN_PROBLEMS:
        say(f"... and {found - _SHOWN_PROBLEMS} more such places, listed in task.json")


def _listed(overlap: Mapping[str, int]) -> str:
    return "; ".join(f"{pair}: {number:,} documents of the latter" for pair, number in overlap.items())
