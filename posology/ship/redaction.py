"""`posology redact`: identifiers replaced in files of any size."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from posology import __version__, console
from posology.corpus import tabular
from posology.engine.artifact import read_record
from posology.engine.inputs import Block, Inputs
from posology.engine.journal import Entry, Journal, fingerprint_of
from posology.engine.model import Answers, Model
from posology.engine.outputs import ENDINGS, Table
from posology.engine.predict import carry_out, concatenate, rejected_of, totals
from posology.engine.shared import Readers
from posology.errors import UserError
from posology.files import write_json
from posology.ship import recall as recalls
from posology.ship.exported import load_any
from posology.ship.predict import check_out
from posology.ship.redact import Redacted, Redactor, Style, check_covered
from posology.ship.surrogates import KINDS
from posology.tasks.prepared import PreparedTask

_LEAST_KEY = 16
_SCHEMA = {"id": pl.String, "text": pl.String}
_KEY = "key"
"""The file among the parts that holds a random key until the job is done."""


def redact(
    artifact: Path | str,
    input: Path | str,
    *,
    out: Path | str,
    style: Style = "tags",
    key_file: Path | None = None,
    recall: float | None = None,
    data: Path | None = None,
    offsets: bool = False,
    text: str | None = None,
    id: str | None = None,
    group: str | None = None,
    encoding: str = "utf-8",
    quoting: bool = True,
    drop_empty: bool = False,
    backbone: str | None = None,
    strict: bool = False,
    fresh: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """De-identifies every document of a file or folder: what the artifact takes for an identifier is replaced.

    Every other character stays as it is. No tagger finds every identifier: look at --recall, and at a sample.

    The output has `id` and `text` of each document, or, for a folder, a file of each name; other columns are left out,
    since they may identify too. So may ids: name a column without names in it, or none. Beside it lies
    OUT.audit.json: counts by category and what was set, no text. What is done is kept until the output is complete, and
    the same command goes on from there; rows that cannot be read are listed in OUT.rejected.jsonl.

    Args:
        artifact: a tagger, as trained on `i2b2-2014-ner`; or its export in the ONNX format.
        input: JSON Lines, CSV, TSV or Parquet (also .gz for the text formats), or a folder of .txt files.
        out: .jsonl, .csv or .parquet; for a folder of .txt files also a folder.
        style: tags ([DATE]), asterisks, or surrogates: other names, the same for the same throughout a patient's documents,
            and dates moved by the same number of days.
        key_file: a secret of 16 bytes or more that surrogates follow from: equal in every job with it. Without, they differ
            from job to job.
        recall: the share of the identifiers' words in the validation split of --data that is to be found, such as 0.98:
            the threshold is lowered as far as it takes, and what that costs in precision is told.
        data: the prepared task that --recall is reached on.
        offsets: write OUT.offsets.jsonl: for each document where its identifiers were, and where what replaces them is.
        text: column of the text; guessed where only one is called text, sentence or note.
        id: column of the id; rows are numbered without it. In a folder the file's name is the id.
        group: column of the patient; without it, each document is a patient of its own.
        encoding: of text files.
        quoting: whether double quotes enclose fields of CSV and TSV.
        drop_empty: leave out rows without text instead of rejecting them.
        backbone: where the backbone is, if not where it was in training.
        strict: read the input beforehand, and refuse all of it where one row cannot be read.
        fresh: start over, even where an interrupted run could be continued.
        overwrite: replace `out`.

    Returns:
        `out`, `audit` (its name), `documents`, `rejected`, `repeated`, `seconds`, `documents_per_second`, `identifiers` by
        category, and with --recall `recall` and `precision` of words on validation.

    Raises:
        UserError: the input cannot be read, the recall cannot be reached, or what is there was begun otherwise.
    """
    out, source = Path(out), Path(input)
    check_out(out, source, overwrite)
    into_folder = _check_kind(out, source, overwrite)
    if (recall is None) != (data is None):
        raise UserError("--recall and --data go together", "Give both, or none", "--recall")
    key = _read_key(key_file) if key_file is not None else None
    columns = tabular.Columns(text=text, id=id, group=group)
    reading: dict[str, Any] = {"encoding": encoding, "quoting": quoting, "drop_empty": drop_empty, "strict": strict}
    inputs = Inputs(source, columns, **reading)
    model = load_any(artifact, backbone=backbone)
    Redactor(model, style=style)  # refuses what is no tagger, before any work
    identity, rows = inputs.fingerprint()
    settings = {"style": style, "recall": recall, "offsets": offsets, "key": "file" if key else "random"}
    made_of = {
        "the input": identity,
        "the artifact": fingerprint_of(Path(artifact)),
        "the options": {**reading, "text": text, "id": id, "group": group, **settings},
        "the key": _check_of(key),
        "--data": PreparedTask.open(data).fingerprint if data is not None else None,
    }
    readers = Readers([model])
    table = Table(out if not into_folder else Path("parts.jsonl"), _SCHEMA)
    with Journal(out, made_of, fresh=fresh, overwrite=overwrite) as journal:
        prices = _prices(readers, PreparedTask.open(data), recall) if data is not None and recall is not None else None
        offset = prices["offset"] if prices is not None else 0.0
        redactor = Redactor(model, style=style, recall_offset=offset, key=key or _random_key(journal))
        _say_limits(model, style, key)
        pace = carry_out(readers, inputs, journal, _content(redactor, table, offsets), "redacting", rows)
        entries = list(journal.entries)
        result = {"out": str(out), **totals(entries, pace)}
        audit = _audit(Path(artifact), entries, result, settings, prices)
        write_json(audit_of(out), audit)
        _finish(journal, table, into_folder, offsets)
    told = {"audit": str(audit_of(out)), "identifiers": audit["identifiers"]}
    if prices is not None:
        told |= {name: prices["wanted"]["word"][name] for name in ("recall", "precision")}
    return result | told


def audit_of(out: Path) -> Path:
    """Where it is written what was replaced and how."""
    return out.with_name(f"{out.name}.audit.json")


def offsets_of(out: Path) -> Path:
    """Where it is written what stood and stands where."""
    return out.with_name(f"{out.name}.offsets.jsonl")


def _check_kind(out: Path, source: Path, overwrite: bool) -> bool:
    """Whether the output is a folder.

    Raises:
        UserError: it is one for a table, or holds something else.
    """
    if out.suffix in ENDINGS:
        return False
    if not source.is_dir():
        raise UserError("is no name of a table", f"Give a name that ends in {', '.join(ENDINGS)}", out)
    if out.is_dir() and any(out.iterdir()) and overwrite and not audit_of(out).is_file():
        raise UserError("has no audit beside it, so --overwrite does not replace it", "Name another folder", out)
    return True


def _read_key(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", "Check its name and permissions", path) from error
    if len(key) < _LEAST_KEY:
        raise UserError(
            f"has {len(key)} bytes, and whoever guesses the key can test names",
            f"Put {_LEAST_KEY} random bytes or more into it, such as `openssl rand -hex 32` prints",
            path,
        )
    return key


def _check_of(key: bytes | None) -> str | None:
    """Tells whether a key is the one of the parts that are there; nobody learns the key from it."""
    return None if key is None else hmac.digest(key, b"posology redact", hashlib.sha256).hex()[:16]


def _random_key(journal: Journal) -> bytes:
    """The job's own key: among its parts until it is done, so that what was stopped goes on with the same."""
    path = journal.folder / _KEY
    if journal.entries and path.is_file():
        return path.read_bytes()
    key = secrets.token_bytes(32)
    path.touch(mode=0o600)
    path.write_bytes(key)
    return key


def _say_limits(model: Model, style: Style, key: bytes | None) -> None:
    if style != "surrogates":
        return
    if key is None:
        console.say("without --key-file, surrogates differ from job to job")
    unknown = [label for label in model.labels if label.upper() not in KINDS]
    if unknown:
        console.say(f"there are no surrogates for {', '.join(unknown)}: these become tags")


def _prices(readers: Readers, task: PreparedTask, wanted: float) -> dict[str, Any]:
    """What the wanted recall takes, and what it and others cost, on validation."""
    (model,) = readers.models
    unknown = sorted(set(task.labels) ^ set(model.labels))
    if task.kind != model.kind or unknown:
        raise UserError("does not have the labels of the artifact", "Name the task it was trained on", task.folder)
    documents = task.documents("validation")
    if not documents:
        raise UserError("has no validation documents", "Prepare it with a validation split", task.folder)
    with console.progress("validating", len(documents)) as advance:
        (answers,) = readers.answer(documents, advance)
    check_covered(answers.coverage)
    labelled = recalls.Labelled.of(model, documents, answers.logits)
    offset = recalls.fit(labelled, wanted)
    before, after = recalls.price(labelled, 0.0), recalls.price(labelled, offset)
    own = {name: after["word"][name] for name in ("recall", "precision")}
    console.say(
        f"recall of identifiers' words on validation {_interval(before['word']['recall'])}, then {_interval(own['recall'])}; "
        f"precision {_interval(before['word']['precision'])}, then {_interval(own['precision'])}"
    )
    table = [{"target": None, **before}]
    for target in sorted({*recalls.TARGETS, wanted}):
        if target == wanted:
            table.append({"target": target, **after})
        elif before["word"]["recall"]["value"] < target <= labelled.most:
            table.append({"target": target, **recalls.price(labelled, recalls.fit(labelled, target))})
    return {"offset": offset, "wanted": after, "table": table, "documents": len(documents), "data": task.fingerprint}


def _interval(entry: dict[str, Any]) -> str:
    limits = "" if entry["low"] is None else f" ({entry['low']:.4f} to {entry['high']:.4f})"
    return f"{entry['value']:.4f}{limits}"


def _content(redactor: Redactor, table: Table, with_offsets: bool) -> Any:
    def content(block: Block, answers: Sequence[Answers]) -> tuple[dict[str, bytes], Entry]:
        (own,) = answers
        check_covered(own.coverage)
        redacted = redactor.from_logits(block.documents, own.logits)
        counts, as_tags = Counter[str](), Counter[str]()
        for one in redacted:
            counts.update(one.counts)
            as_tags.update(one.as_tags)
        parts = {"part": table.part([{"id": one.id, "text": one.text} for one in redacted])}
        if with_offsets:
            parts["offsets"] = "".join(map(_offsets_line, redacted)).encode()
        return parts, {"counts": dict(counts), "as_tags": dict(as_tags)}

    return content


def _offsets_line(one: Redacted) -> str:
    spans = [
        {"start": start, "end": end, "new_start": new_start, "new_end": new_end, "label": span.label}
        for span, (start, end, new_start, new_end) in zip(one.spans, one.offsets, strict=True)
    ]
    return json.dumps({"id": one.id, "spans": spans}, ensure_ascii=False) + "\n"


def _audit(
    artifact: Path,
    entries: Sequence[Entry],
    result: dict[str, Any],
    settings: dict[str, Any],
    prices: dict[str, Any] | None,
) -> dict[str, Any]:
    counts, as_tags = Counter[str](), Counter[str]()
    for entry in entries:
        counts.update(entry["counts"])
        as_tags.update(entry["as_tags"])
    record = _record_of(artifact)
    return {
        **{name: result[name] for name in ("documents", "rejected", "repeated")},
        "identifiers": dict(sorted(counts.items())),
        "without_surrogate": dict(sorted(as_tags.items())),
        "settings": {**settings, "recall_offset": prices["offset"] if prices is not None else 0.0},
        "artifact": {"name": artifact.resolve().name, "sha256": fingerprint_of(artifact), **record},
        "validation": None if prices is None else {key: prices[key] for key in ("data", "documents", "table")},
        "posology": __version__,
    }


def _record_of(artifact: Path) -> dict[str, Any]:
    try:
        record = read_record(artifact)
    except UserError:  # an export
        return {}
    return {"task": record["task"].get("name"), "method": record["method"]}


def _finish(journal: Journal, table: Table, into_folder: bool, offsets: bool) -> None:
    def join(kind: str, whole: Path) -> None:
        parts = journal.parts(kind)
        if kind != "part":
            concatenate(parts, whole)
        elif into_folder:
            _write_files(parts, whole)
        else:
            table.join(parts, whole)

    beside = {rejected_of(journal.out): "rejected"}
    if offsets:
        beside[offsets_of(journal.out)] = "offsets"
    journal.finish(join, beside)


def _write_files(parts: Sequence[Path], folder: Path) -> None:
    """One file for each document."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    for part in parts:
        with open(part, encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                path = folder / f"{row['id']}.txt"
                path.touch(mode=0o600)
                path.write_bytes(row["text"].encode("utf-8"))  # as it was: line ends too
