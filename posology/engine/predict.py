"""An artifact at work: documents in, labels or entities with scores out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from posology import console
from posology.corpus import tabular
from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.corpus.textfile import read_text
from posology.engine.artifact import load
from posology.engine.decode import softmax
from posology.engine.model import Model
from posology.errors import UserError
from posology.files import check_writable, staged_file

_INPUTS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
_OUTPUTS = (".jsonl", ".csv", ".parquet")


def predict(
    artifact: Path | str,
    input: Path | str,
    out: Path | str,
    *,
    text: str | None = None,
    id: str | None = None,
    text_pair: str | None = None,
    encoding: str = "utf-8",
    quoting: bool = True,
    drop_empty: bool = False,
    backbone: str | None = None,
    with_text: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Predicts for every document of a file or folder, in its order.

    The output, readable by its owner only, has for each document `id` and, for a classifier, `label`, `score` and
    `probabilities` (by label); for a tagger `spans`, each with start, end, label and score, in characters of the text.
    In CSV the nested columns are JSON.

    Args:
        artifact: a folder that `train` wrote.
        input: JSON Lines, CSV, TSV or Parquet (also .gz for the text formats), or a folder of .txt files.
        out: .jsonl, .csv or .parquet.
        text: column of the text; guessed where only one is called text, sentence or note.
        id: column of the id; rows are numbered without it. In a folder the file's name is the id.
        text_pair: column of a second text.
        encoding: of text files.
        quoting: whether double quotes enclose fields of CSV and TSV.
        drop_empty: leave out rows without text instead of refusing them.
        backbone: where the backbone is, if not where it was in training.
        with_text: copy the text into the output.
        overwrite: replace `out`.

    Returns:
        `out`, `documents`, `coverage` and, by label, how often it was found.

    Raises:
        UserError: the input cannot be read; nothing is written.
    """
    out = Path(out)
    if out.suffix not in _OUTPUTS:
        raise UserError(f"has the ending {out.suffix!r}", f"Give a name that ends in {', '.join(_OUTPUTS)}", out)
    if out.exists() and not overwrite:
        raise UserError("exists", "Name another file or add --overwrite", out)
    source = Path(input)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError("is the input", "Name another file for the answers", out)
    check_writable(out, 0)
    columns = tabular.Columns(text=text, id=id, text_pair=text_pair)
    documents = read_inputs(source, columns, encoding=encoding, quoting=quoting, drop_empty=drop_empty)
    model = load(artifact, backbone=backbone)
    _check_pairs(model, documents, artifact)
    rows, coverage = answer(model, documents)
    if with_text:
        for row, document in zip(rows, documents, strict=True):
            row["text"] = document.text
    _write(out, rows)
    found: dict[str, int] = dict.fromkeys(model.labels, 0)
    for row in rows:
        for label in [row["label"]] if "label" in row else [span["label"] for span in row["spans"]]:
            found[label] += 1
    console.say(f"{len(rows):,} documents, {coverage:.1%} of their text read")
    return {"out": str(out), "documents": len(rows), "coverage": coverage, "found": found}


def _check_pairs(model: Model, documents: Sequence[Document], folder: Path | str) -> None:
    paired = any(document.text_pair is not None for document in documents)
    if paired != model.text_pair:
        found, wanted = ("pairs", "single texts") if paired else ("single texts", "pairs")
        raise UserError(
            f"was trained on {wanted}, and the input has {found}",
            "Name, or leave out, the column with --text-pair",
            folder,
        )


def answer(model: Model, documents: Sequence[Document]) -> tuple[list[dict[str, Any]], float]:
    """The rows of the output for some documents, and the share of their text that was read."""
    if model.kind == "token-classification":
        for document in documents:
            document.words = document.words or words_of(document.text)
    _, logits, coverage = model.answer(documents)
    rows: list[dict[str, Any]] = []
    if model.kind == "sequence-classification":
        for document, probabilities in zip(documents, softmax(np.stack(logits)), strict=True):
            best = int(probabilities.argmax())
            by_label = {label: float(value) for label, value in zip(model.labels, probabilities, strict=True)}
            rows.append(
                {
                    "id": document.id,
                    "label": model.labels[best],
                    "score": float(probabilities[best]),
                    "probabilities": by_label,
                }
            )
    else:
        for document, (spans, scores) in zip(documents, model.spans(documents, logits), strict=True):
            found = [{**span._asdict(), "score": score} for span, score in zip(spans, scores, strict=True)]
            rows.append({"id": document.id, "spans": found})
    return rows, coverage


def read_inputs(
    source: Path, columns: tabular.Columns, *, encoding: str = "utf-8", quoting: bool = True, drop_empty: bool = False
) -> list[Document]:
    """Unlabelled documents of a table or of a folder of .txt files.

    Raises:
        UserError: nothing readable is there.
    """
    if source.is_dir():
        paths = sorted(source.glob("*.txt"))
        if not paths:
            raise UserError("has no .txt files", "Give a folder of .txt files, or a table", source)
        return [Document(id=path.stem, text=read_text(path, encoding), place=str(path)) for path in paths]
    if not source.is_file():
        raise UserError("does not exist", "Check the path", source)
    bare = source.with_suffix("") if source.suffix == ".gz" else source
    if bare.suffix not in _INPUTS:
        raise UserError(
            f"has the ending {bare.suffix!r}", f"Give one of {', '.join(_INPUTS)}, or a folder of .txt files", source
        )
    records = tabular.read_records(source, _INPUTS[bare.suffix], quoting=quoting, encoding=encoding)
    known = tabular.resolve(columns, records, needs_label=False, place=source)
    found = list(tabular.documents(records, known, name=bare.stem, drop_empty=drop_empty))
    if not found:
        raise UserError("has no row with text", "Give a file with at least one document", source)
    return found


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    with staged_file(out) as staging:
        if out.suffix == ".jsonl":
            with open(staging, "w", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif out.suffix == ".csv":
            flat = [
                {
                    key: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
                    for key, value in row.items()
                }
                for row in rows
            ]
            pl.DataFrame(flat).write_csv(staging)
        else:
            span = pl.Struct({"start": pl.Int64, "end": pl.Int64, "label": pl.String, "score": pl.Float64})
            pl.DataFrame(rows, schema_overrides={"spans": pl.List(span)} if "spans" in rows[0] else None).write_parquet(
                staging
            )
        os.chmod(staging, 0o600)
