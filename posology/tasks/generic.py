"""`posology prepare`: any labelled text in a known format to a prepared task; the study's tasks go to `clinical`."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

from posology import files
from posology.console import say
from posology.corpus import brat, relations
from posology.corpus.document import Document, Span
from posology.corpus.tags import SCHEMES, covering_words, first_overlap, keep_longest, snap
from posology.errors import UserError
from posology.tasks import clinical, sources
from posology.tasks.built import Protocol
from posology.tasks.i2b2_entities import View
from posology.tasks.leaks import LeakRule, count_conflicts, handle_leaks
from posology.tasks.prepared import (
    METRICS,
    SPLITS,
    TASK_FILE,
    PreparedTask,
    check_metric,
    check_span,
    check_unique,
    overlap_error,
    write_prepared,
)
from posology.tasks.split import apply_lists, complete

Task = Literal[
    "classification", "entities", "relations",
    "mimic-mp", "mimic-los", "mimic-triage", "i2b2-2010-re", "i2b2-2010-ner", "i2b2-2012-ner", "i2b2-2014-ner",
]  # fmt: skip
Format = Literal["csv", "tsv", "jsonl", "parquet", "folders", "conll", "brat", "datasets"]
Scheme = Literal["iob1", "iob2", "bioes"]

_TASKS = ("classification", "entities", "relations")
_SUMMARY_ROWS = 27
_TABLES = (*sources.TABLES, "datasets")
# Of generic tasks, the formats for which an option means something, by task.
_APPLIES: dict[str, dict[str, Sequence[str]]] = {
    "text": dict.fromkeys(_TASKS, _TABLES),
    "label": {"classification": _TABLES, "relations": _TABLES, "entities": ("datasets",)},
    "group": dict.fromkeys(_TASKS, _TABLES),
    "id": dict.fromkeys(_TASKS, _TABLES),
    "text_pair": {"classification": _TABLES},
    "quoting": dict.fromkeys(("classification", "relations"), ("csv", "tsv")),
    "encoding": dict.fromkeys(_TASKS, ("csv", "tsv", "jsonl", "folders", "conll", "brat")),
    "token_column": {"entities": ("conll",)},
    "tag_column": {"entities": ("conll",)},
    "scheme": {"entities": ("conll", "datasets")},
    "repair": {"entities": ("conll", "datasets")},
    "discontinuous": {"entities": ("brat",)},
    "overlaps": {"entities": ("jsonl", "parquet", "brat", "datasets")},
    "markers": {"relations": sources.FORMATS["relations"]},
    "marks": {"relations": _TABLES},
    "arguments": {"relations": ("brat",)},
    "negative": {"relations": ("brat",)},
    "sentences": {"relations": ("brat",)},
    "online": dict.fromkeys(_TASKS, ("datasets",)),
}
_CHOICES: dict[str, Sequence[str]] = {
    "task": get_args(Task),
    "protocol": get_args(Protocol),
    "view": get_args(View),
    "format": get_args(Format),
    "scheme": SCHEMES,
    "discontinuous": get_args(brat.Discontinuous),
    "overlaps": ("refuse", "longest"),
    "markers": get_args(relations.Markers),
    "sentences": get_args(relations.Sentences),
    "unknown_labels": ("refuse", "drop"),
    "leaks": get_args(LeakRule),
}


def prepare(
    task: Task,
    source: Path | str,
    out: Path,
    *,
    name: str | None = None,
    protocol: Protocol = "standard",
    view: View = "lines",
    format: Format | None = None,
    text: str | None = None,
    label: str | None = None,
    group: str | None = None,
    id: str | None = None,
    text_pair: str | None = None,
    quoting: bool = True,
    encoding: str = "utf-8",
    drop_empty: bool = False,
    token_column: int = 0,
    tag_column: int = -1,
    scheme: Scheme | None = None,
    repair: bool = False,
    discontinuous: brat.Discontinuous = "hull",
    overlaps: Literal["refuse", "longest"] = "refuse",
    markers: relations.Markers = "around",
    marks: str = relations.MARKS,
    arguments: Sequence[str] | None = None,
    negative: str = "false",
    sentences: relations.Sentences = "sentence",
    train: Path | None = None,
    validation: Path | None = None,
    test: Path | None = None,
    splits: Path | None = None,
    unknown_labels: Literal["refuse", "drop"] = "refuse",
    leaks: LeakRule = "refuse",
    metric: str | None = None,
    online: bool = False,
    seed: int = 42,
    overwrite: bool = False,
) -> PreparedTask:
    """Reads labelled text, checks it, splits it and writes a prepared task.

    Args:
        task: what to predict: a class of a text, entities in it, or the relation of two marked arguments; or a task of
            the study (`posology tasks`), from MIMIC-III or i2b2 as downloaded.
        source: a file, or a folder with files called train, dev and test, sub-folders of these names, one folder for
            each class, BRAT pairs, or a saved Hugging Face dataset; with `online`, an id on the hub.
        out: the folder to write; must be new or empty.
        name: what to call the task; by default the name of `out`, or the study's task.
        protocol: of a task of the study: `standard`, or `paper` to do as its code did, defects included.
        view: of the study's entity tasks: one document for each line, or for each record.
        format: the format of the files, where their extensions do not tell.
        text: column of the text (of the tokens, in a dataset with token tags); guessed if one is called text,
            sentence or note.
        label: column of the class (of the tags); guessed if one is called label, class, category or target.
        group: column of the patient or whatever else splits must not cut through.
        id: column of the document's id, unique in the whole source; by default rows are numbered.
        text_pair: column of a second text.
        quoting: whether double quotes enclose fields of CSV and TSV.
        encoding: of text files.
        drop_empty: leave out documents without text or label instead of refusing them.
        token_column: column of the token in CoNLL files, from 0.
        tag_column: column of the tag; -1 is the last.
        scheme: tagging scheme of CoNLL files; detected by default.
        repair: read an I- that has no B- before it as a B-.
        discontinuous: what becomes of BRAT entities in several fragments: their hull, one entity for each, or nothing.
        overlaps: what to do with overlapping entities: refuse them or keep the longest.
        markers: put typed markers around the arguments of a relation or instead of them.
        marks: how marked sentences mark the first and the second argument.
        arguments: types of the arguments to pair, such as Chemical:Gene; by default those that some relation has.
        negative: label of pairs without a relation.
        sentences: pair entities within sentences or within whole lines.
        train: file or folder that makes the training split, whatever its name.
        validation: likewise for validation.
        test: likewise for test.
        splits: folder with lists of ids or groups (patients): train.txt, validation.txt, test.txt.
        unknown_labels: what to do with labels that training lacks: refuse them, or drop the documents (entities).
        leaks: what to do with the same text or group in two splits: refuse, allow, or drop from the earlier split.
        metric: chooses checkpoints in training; by default macro_f1, or entity_f1 for entities.
        online: allow `source` to be fetched from the Hugging Face hub.
        seed: of splits that are made.
        overwrite: replace `out`.

    Raises:
        UserError: anything the user can mend; nothing has been written then.
    """
    options = dict(locals())
    _check_choices(options)
    if task in clinical.TASKS:
        return _prepare_clinical(options)
    kind: str = "token-classification" if task == "entities" else "sequence-classification"
    check_metric(metric or METRICS[kind][0], kind)
    out = Path(out)
    _check_out(out, [source, train, validation, test, splits], overwrite)
    explicit = {"train": train, "validation": validation, "test": test}
    format_found, parts = sources.find(task, source, format=format, explicit=explicit, online=online)
    given = _check_options(options, task, format_found)
    for option in ("protocol", "view"):
        if options[option] != _default(option):
            raise UserError(f"means nothing for task {task!r}", "Leave it out", _flag(option))
    if splits is None:
        sources.tell_splits(parts)
    counts: Counter[str] = Counter()
    how = sources.Reading(**{field.name: options[field.name] for field in fields(sources.Reading)})
    documents = _tidy(sources.read(task, format_found, parts, how, counts), kind, drop_empty, overlaps, counts, source)
    notes: dict[str, Any] = {}
    if splits is not None:
        notes |= apply_lists(documents, Path(splits))
    by_split, notes["splits"] = complete(documents, seed=seed, place=source)
    _tell_made(notes["splits"])
    by_split, leak_notes = handle_leaks(by_split, leaks, source)
    by_split = {split: _known_labels(by_split[split], by_split["train"], unknown_labels, counts) for split in SPLITS}
    notes |= leak_notes | {"counts": {key: number for key, number in sorted(counts.items()) if number}}
    if kind == "sequence-classification":
        notes["same_text_other_label"] = _tell_conflicts(by_split)
    prepared = write_prepared(
        out,
        name=name or out.name,
        kind=kind,
        labels=sorted(_labels(by_split["train"])),
        metric=metric,
        splits=by_split,
        source=sources.describe(format_found, parts, source) | {"options": given},
        notes=notes,
        overwrite=overwrite,
    )
    _summarise(prepared, by_split, notes["counts"])
    return prepared


def _prepare_clinical(options: Mapping[str, Any]) -> PreparedTask:
    """Refuses the options that mean nothing for the task and protocol, and builds it."""
    task, protocol = options["task"], options["protocol"]
    for_all = {"task", "source", "out", "name", "protocol", "metric", "overwrite"}
    taken = for_all | set(clinical.TASKS[task].options[protocol])
    for option, value in options.items():
        if option not in taken and value != _default(option):
            raise UserError(f"means nothing for task {task!r}, protocol {protocol!r}", "Leave it out", _flag(option))
    source, out = Path(options["source"]), Path(options["out"])
    _check_out(out, [source, options["splits"]], options["overwrite"])
    known = inspect.signature(clinical.prepare).parameters
    given = {option: value for option, value in options.items() if option in known}
    prepared, by_split = clinical.prepare(**given | {"source": source, "out": out})
    _summarise(prepared, by_split, {})
    return prepared


def _default(option: str) -> Any:
    return inspect.signature(prepare).parameters[option].default


def _check_choices(options: Mapping[str, Any]) -> None:
    for option, choices in _CHOICES.items():
        value = options[option]
        if value is not None and value not in choices:
            raise UserError(f"{value!r} is unknown", f"Choose one of {', '.join(choices)}", _flag(option))


def _check_out(out: Path, inputs: Sequence[Path | str | None], overwrite: bool) -> None:
    files.check_free(out, marker=TASK_FILE, overwrite=overwrite)
    for path in inputs:
        if path is not None and Path(path).exists() and Path(path).resolve().is_relative_to(out.resolve()):
            raise UserError("--out would replace the source", "Name another folder", out)


def _check_options(options: Mapping[str, Any], task: str, format: str) -> dict[str, Any]:
    """Refuses options without meaning here; gives those that were set, as far as they say how the source was read."""
    if format not in sources.FORMATS[task]:
        fitting = ", ".join(sources.FORMATS[task])
        raise UserError(f"task {task!r} cannot be read from {format}", f"Choose one of {fitting}", "--format")
    if options["splits"] is not None and any(options[split] is not None for split in SPLITS):
        raise UserError("lists of ids and files for each split exclude each other", "Leave out one of them", "--splits")
    if options["repair"] and options["scheme"] not in (None, "iob2"):
        raise UserError(f"--repair mends IOB2 tags, not {options['scheme']}", "Leave out one of the two", "--repair")
    given = {option: options[option] for option in _APPLIES if options[option] != _default(option)}
    for option in given:
        if task not in _APPLIES[option]:
            raise UserError(f"means nothing for task {task!r}", "Leave it out", _flag(option))
        if format not in _APPLIES[option][task]:
            mend = "Leave it out, or name another format with --format"
            raise UserError(f"means nothing for task {task!r} read from {format}", mend, _flag(option))
    return given | ({"drop_empty": True} if options["drop_empty"] else {})


def _flag(option: str) -> str:
    return "TASK" if option == "task" else f"--{option.replace('_', '-')}"


def _tidy(
    documents: Sequence[Document], kind: str, drop_empty: bool, overlaps: str, counts: Counter[str], source: object
) -> list[Document]:
    """Refuses or drops empty documents, and settles spans that repeat, overlap or cover no word."""
    kept = []
    seen: dict[str, str] = {}
    for document in documents:
        check_unique(document, document.place, seen)
        entities = kind == "token-classification"
        if not (document.words if entities else document.text.strip()):
            if not drop_empty:
                raise UserError(
                    "the document has no text", "Remove it, or add --drop-empty to leave such ones out", document.place
                )
            counts["dropped_empty"] += 1
            continue
        if entities:
            document.spans = _settled(document, overlaps, counts)
        kept.append(document)
    if not kept:
        raise UserError("has no documents", "Check that it is the right source", source)
    return kept


def _settled(document: Document, overlaps: str, counts: Counter[str]) -> list[Span]:
    for span in document.spans:
        check_span(span, len(document.text), document.place)
    spans = sorted(set(document.spans))
    counts["repeated_entities"] += len(document.spans) - len(spans)
    overlap = first_overlap(spans)
    if overlap and overlaps == "refuse":
        raise overlap_error(document.id, *overlap, document.place)
    if overlap:
        longest = keep_longest(spans)
        counts["overlapping_entities_dropped"] += len(spans) - len(longest)
        spans = longest
    visible = covering_words(document.words, spans)
    counts["entities_without_words"] += len(spans) - len(visible)
    counts["entities_sharing_a_word"] += len(visible) - len(snap(document.words, visible))
    return visible


def _labels(documents: Sequence[Document]) -> set[str]:
    found = {span.label for document in documents for span in document.spans}
    return found | {document.label for document in documents if document.label is not None}


def _known_labels(
    documents: list[Document], train: Sequence[Document], rule: str, counts: Counter[str]
) -> list[Document]:
    """With the rule `drop`, the documents without those (or without their entities) of labels that training lacks."""
    if rule == "refuse":  # by `write_prepared`, which knows the place
        return documents
    known = _labels(train)
    kept = []
    for document in documents:
        if document.label is not None and document.label not in known:
            counts["documents_with_unknown_label_dropped"] += 1
            continue
        spans = [span for span in document.spans if span.label in known]
        counts["entities_with_unknown_label_dropped"] += len(document.spans) - len(spans)
        document.spans = spans
        kept.append(document)
    return kept


def _tell_made(notes: Mapping[str, Any]) -> None:
    if "made" in notes:
        shares = ", ".join(f"{10 * tenths} % for {split}" for split, tenths in notes["made"].items())
        say(f"Made by group and label with seed {notes['seed']}: {shares}, cut from training.")
    if not notes.get("copies_kept_together", True):
        say("Some texts occur in most groups, so their copies could not be kept in one split.")


def _tell_conflicts(by_split: Mapping[str, Sequence[Document]]) -> dict[str, int]:
    conflicts = {split: count_conflicts(by_split[split]) for split in SPLITS}
    if any(conflicts.values()):
        found = ", ".join(f"{number} in {split}" for split, number in conflicts.items() if number)
        say(f"Documents whose text occurs again with another label: {found}. No model can get all of them right.")
    return conflicts


def _summarise(task: PreparedTask, by_split: Mapping[str, Sequence[Document]], counts: Mapping[str, int]) -> None:
    entities = task.kind == "token-classification"
    frequency = {split: Counter[str]() for split in SPLITS}
    for split in SPLITS:
        for document in by_split[split]:
            frequency[split].update([span.label for span in document.spans] if entities else [document.label or ""])
    rows = [("", *SPLITS), ("documents", *(f"{task.counts[split]:,}" for split in SPLITS))]
    for label in sorted(task.labels, key=lambda label: (-frequency["train"][label], label)):
        rows.append((f"  {label}", *(f"{frequency[split][label]:,}" for split in SPLITS)))
    shown = rows[:_SUMMARY_ROWS]
    widths = [max(len(row[column]) for row in shown) + 2 for column in range(len(rows[0]))]
    lines = []
    for first, *cells in shown:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("".join([first.ljust(widths[0]), *aligned]))
    if len(rows) > len(shown):
        lines.append(f"  and {len(rows) - len(shown)} more labels")
    lines += [f"{key.replace('_', ' ')}: {number:,}" for key, number in counts.items()]
    say("\n".join([*lines, f"Prepared {task.name!r} ({task.kind}) in {task.folder}"]))
