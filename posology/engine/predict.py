"""Artifacts at work: documents in, labels or entities with scores out, whatever the size of the input.

input ── blocks ── texts, each once ── models ── rows ── parts (`journal`) ── output
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl

from posology import console
from posology.corpus.document import Document
from posology.engine.inputs import Block, Inputs, Rejected
from posology.engine.journal import Entry, Journal
from posology.engine.model import Answers, Model
from posology.engine.outputs import Row, Table
from posology.engine.shared import Readers
from posology.errors import UserError

_NOTE_EVERY_SECONDS = 0.5


def predict_documents(
    readers: Readers,
    names: Sequence[str],
    inputs: Inputs,
    table: Table,
    journal: Journal,
    with_text: bool,
    rows: int | None = None,
) -> dict[str, Any]:
    """Answers all documents of an input; see `posology.ship.predict.predict`.

    Args:
        readers: the models.
        names: what they are called in the output.
        inputs: the documents.
        table: the output, with the columns of `schema_of`.
        journal: of this work; it is finished at the end.
        with_text: copy the text into the output.
        rows: of the input, about.

    Returns:
        `out`, `documents`, `rejected`, `repeated`, `seconds`, `documents_per_second`; `coverage` and `found`, or those
        under `artifacts` by name.

    Raises:
        UserError: no row can be read, or the output cannot be written.
    """

    def content(block: Block, answers: Sequence[Answers]) -> tuple[dict[str, bytes], Entry]:
        found = [rows_of(model, own) for model, own in zip(readers.models, answers, strict=True)]
        rows = _joined(block.documents, names, found, with_text)
        tallies = [_tally(own, each) for own, each in zip(answers, found, strict=True)]
        return {"part": table.part(rows)}, {"tallies": tallies}

    pace = carry_out(readers, inputs, journal, content, "predicting", rows)
    entries = list(journal.entries)
    finish(journal, table)
    result = {"out": str(journal.out), **totals(entries, pace)}
    records = [
        _record(model, [entry["tallies"][position] for entry in entries])
        for position, model in enumerate(readers.models)
    ]
    least = min(record["coverage"] for record in records)
    console.say(
        f"{result['documents']:,} documents, {least:.1%} of their text read; {result['documents_per_second']:,.0f} a second"
    )
    if len(records) == 1:
        return result | records[0]
    return result | {"artifacts": dict(zip(names, records, strict=True))}


def carry_out(
    readers: Readers,
    inputs: Inputs,
    journal: Journal,
    content: Callable[[Block, Sequence[Answers]], tuple[Mapping[str, bytes], Entry]],
    description: str,
    rows: int | None = None,
) -> Pace:
    """Does what is left of an input, block by block; a text that occurs several times in a block is read once.

    Args:
        readers: the models.
        inputs: the documents.
        journal: where parts go, with the kind `rejected` beside those of `content`.
        content: gives the contents of a part, by kind, and what its entry in the journal is to hold; runs in a thread
            beside the model.
        description: of the progress bar.
        rows: of the input, about.

    Raises:
        UserError: no row can be read.
    """
    if journal.entries:
        console.say(f"going on after row {journal.rows:,}")

    def write(block: Block, answers: Sequence[Answers], repeated: int) -> None:
        contents, entry = content(block, answers)
        lines = "".join(f"{json.dumps(one._asdict(), ensure_ascii=False)}\n" for one in block.rejected)
        counts = {"rows": block.rows, "documents": len(block.documents), "rejected": len(block.rejected)}
        if block.rejected:
            entry = entry | {"first": block.rejected[0]._asdict()}
        journal.add({**contents, "rejected": lines.encode()}, {**counts, "repeated": repeated, **entry})

    with (
        ThreadPoolExecutor(1) as writer,
        console.progress(description, rows, journal.rows) as progress,
    ):
        pace = Pace(readers, progress)
        pending: Future[None] | None = None
        for block in inputs.blocks(journal.rows):
            answers, repeated = _each_once(readers, block.documents, pace.advance)
            pace.advance(repeated + len(block.rejected))
            pace.documents += len(block.documents)
            if pending is not None:
                pending.result()
            pending = writer.submit(write, block, answers, repeated)
        if pending is not None:
            pending.result()
    if not any(entry["documents"] for entry in journal.entries):
        first = next((Rejected(**entry["first"]) for entry in journal.entries if "first" in entry), None)
        journal.entries.clear()  # nothing is worth being kept
        why = "" if first is None else f" (row {first.row}: {first.reason})"
        raise UserError(
            f"has no row with text that can be read{why}", "Mend the file, or name its columns", inputs.source
        )
    return pace


class Pace:
    """How fast it goes.

    Args:
        readers: count the pieces they read.
        progress: as `console.progress` yields it.

    Attributes:
        documents: done by this process.
    """

    def __init__(self, readers: Readers, progress: Callable[..., None]):
        self._readers, self._progress, self._models = readers, progress, len(readers.models)
        self._started, self._before, self._noted = time.monotonic(), readers.pieces, 0.0
        self._done = 0.0
        self.documents = 0

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._started

    def advance(self, amount: float) -> None:
        """Tells of so many rows more."""
        self._done += amount
        if self.seconds - self._noted < _NOTE_EVERY_SECONDS:
            self._progress(amount)
            return
        self._noted = self.seconds
        note = f"{self._done / self.seconds:,.0f} documents/s"
        if pieces := self._readers.pieces - self._before:
            note += f", {pieces / self.seconds:,.0f} tokens/s"
        self._progress(amount, note)


def _each_once(
    readers: Readers, documents: Sequence[Document], advance: Callable[[float], None]
) -> tuple[list[Answers], int]:
    """The answers to documents, and how many of them have the text of an earlier one."""
    numbers: dict[tuple[str, str | None], int] = {}
    which = [numbers.setdefault((document.text, document.text_pair), len(numbers)) for document in documents]
    repeated = len(documents) - len(numbers)
    share = 1 / len(readers.models)
    if not documents:
        return [Answers([], [], 1.0) for _ in readers.models], 0
    if not repeated:
        return readers.answer(documents, lambda amount: advance(amount * share)), 0
    firsts: list[Document] = []
    for document, number in zip(documents, which, strict=True):
        if number == len(firsts):
            firsts.append(document)
    answers = readers.answer(firsts, lambda amount: advance(amount * share))
    for document, number in zip(documents, which, strict=True):
        document.words = firsts[number].words
    return [_answers_of(own, documents, which) for own in answers], repeated


def _answers_of(answers: Answers, documents: Sequence[Document], which: Sequence[int]) -> Answers:
    """The answers to documents that have the texts `which` of those that were answered."""
    return Answers(documents, [answers.logits[number] for number in which], answers.coverage)


def finish(journal: Journal, table: Table, beside: Mapping[Path, str] | None = None) -> None:
    """Makes the output, and the list of rejected rows beside it."""

    def join(kind: str, whole: Path) -> None:
        if kind == "part":
            table.join(journal.parts(kind), whole)
        else:
            concatenate(journal.parts(kind), whole)

    journal.finish(join, {rejected_of(journal.out): "rejected", **(beside or {})})


def concatenate(parts: Sequence[Path], whole: Path) -> None:
    """One file of several."""
    with open(whole, "wb") as stream:
        for part in parts:
            with open(part, "rb") as content:
                shutil.copyfileobj(content, stream, 2**20)


def rejected_of(out: Path) -> Path:
    """Where the rows that cannot be read are listed."""
    return out.with_name(f"{out.name}.rejected.jsonl")


def totals(entries: Sequence[Entry], pace: Pace) -> dict[str, Any]:
    """What every command over files returns, and a word about rejected rows."""
    found = {name: sum(entry[name] for entry in entries) for name in ("documents", "rejected", "repeated")}
    if found["rejected"]:
        console.say(f"{found['rejected']:,} rows could not be read; a list with reasons lies beside the output")
    speed = pace.documents / pace.seconds if pace.seconds else 0.0
    return {**found, "seconds": pace.seconds, "documents_per_second": speed}


def check_pairs(model: Model, paired: bool, folder: Path) -> None:
    """Raises UserError where a model and the input differ in whether texts come in pairs."""
    if paired != model.text_pair:
        found, wanted = ("pairs", "single texts") if paired else ("single texts", "pairs")
        raise UserError(
            f"was trained on {wanted}, and the input has {found}",
            "Name, or leave out, the column with --text-pair",
            folder,
        )


def _tally(answers: Answers, rows: Sequence[Row]) -> dict[str, Any]:
    """What one model found in a block."""
    found = Counter(
        label
        for row in rows
        for label in ([row["label"]] if "label" in row else [span["label"] for span in row["spans"]])
    )
    size = sum(len(document.text) + len(document.text_pair or "") for document in answers.documents)
    return {"found": dict(found), "read": answers.coverage * size, "all": size}


def _record(model: Model, tallies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `predict` returns of one model."""
    read, everything = (sum(tally[name] for tally in tallies) for name in ("read", "all"))
    found = {label: sum(tally["found"].get(label, 0) for tally in tallies) for label in model.labels}
    return {"coverage": read / everything if everything else 1.0, "found": found}


def rows_of(model: Model, answers: Answers) -> list[Row]:
    """What a model says of each document: `label`, `score` (its probability) and `probabilities`, or `spans`."""
    if model.kind == "sequence-classification":
        probabilities = model.probabilities(answers.logits)
        best = model.classes(probabilities)
        return [
            {
                "label": model.labels[top],
                "score": values[top],
                "probabilities": dict(zip(model.labels, values, strict=True)),
            }
            for top, values in zip(best.tolist(), probabilities.tolist(), strict=True)
        ]
    # Most sentences have no entity: where O is every word's most probable tag there is nothing to decode.
    some = [bool((values.argmax(axis=1) != 0).any()) for values in answers.logits]
    chosen = [position for position, any_entity in enumerate(some) if any_entity]
    decoded = model.spans(
        [answers.documents[position] for position in chosen], [answers.logits[position] for position in chosen]
    )
    rows: list[Row] = [{"spans": []} for _ in answers.logits]
    for position, (spans, scores) in zip(chosen, decoded, strict=True):
        rows[position]["spans"] = [
            {**span._asdict(), "score": score} for span, score in zip(spans, scores, strict=True)
        ]
    return rows


def _joined(
    documents: Sequence[Document], names: Sequence[str], found: Sequence[Sequence[Row]], with_text: bool
) -> list[Row]:
    """Rows of the output, from what each model says of each document."""
    rows = []
    for document, *own in zip(documents, *found, strict=True):
        row = {"id": document.id, **(own[0] if len(own) == 1 else dict(zip(names, own, strict=True)))}
        rows.append(row | {"text": document.text} if with_text else row)
    return rows


def schema_of(models: Sequence[Model], names: Sequence[str], with_text: bool) -> dict[str, Any]:
    """The columns of the output."""
    span = pl.Struct({"start": pl.Int64, "end": pl.Int64, "label": pl.String, "score": pl.Float64})
    columns: list[dict[str, Any]] = [
        {
            "label": pl.String,
            "score": pl.Float64,
            "probabilities": pl.Struct(dict.fromkeys(model.labels, pl.Float64)),
        }
        if model.kind == "sequence-classification"
        else {"spans": pl.List(span)}
        for model in models
    ]
    own = columns[0] if len(models) == 1 else dict(zip(names, map(pl.Struct, columns), strict=True))
    return {"id": pl.String, **own, **({"text": pl.String} if with_text else {})}
