"""`posology predict`: artifacts and exports at work on files of any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posology.corpus import tabular
from posology.engine.inputs import Inputs
from posology.engine.journal import Journal, fingerprint_of
from posology.engine.outputs import Table
from posology.engine.predict import check_pairs, predict_documents, schema_of
from posology.engine.shared import Readers
from posology.errors import UserError
from posology.files import check_writable
from posology.ship.exported import load_any


def predict(
    artifact: Path | str,
    input: Path | str,
    out: Path | str,
    *,
    also: list[Path] | None = None,
    text: str | None = None,
    id: str | None = None,
    text_pair: str | None = None,
    encoding: str = "utf-8",
    quoting: bool = True,
    drop_empty: bool = False,
    backbone: str | None = None,
    with_text: bool = False,
    strict: bool = False,
    fresh: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Predicts for every document of a file or folder, in its order; they may be more than fit into memory.

    The output, readable by its owner only, has for each document `id` and, for a classifier, `label`, `score` and
    `probabilities` (by label); for a tagger `spans`, each with start, end, label and score, in characters of the text.
    Probabilities are at the artifact's temperature; where it has a threshold, that decides the label, whose score can
    then be below one half.
    In CSV the nested columns are JSON. Several artifacts (`also`) read each text together; then a row has, beside
    `id`, such an object for each artifact under its folder's name.

    What is done lies in a folder beside the output until it is complete: the same command, given again after it was
    stopped or killed, goes on from there. Rows that cannot be read are listed in OUT.rejected.jsonl with their number, id
    and the reason, and the others answered.

    Args:
        artifact: a folder that `train` wrote, or `export` in the ONNX format.
        input: JSON Lines, CSV, TSV or Parquet (also .gz for the text formats), or a folder of .txt files.
        out: .jsonl, .csv or .parquet.
        also: a further artifact that answers the same documents; may be given several times.
        text: column of the text; guessed where only one is called text, sentence or note.
        id: column of the id; by default the one called id. Rows without one are numbered, and in a folder the file's name is
            the id.
        text_pair: column of a second text.
        encoding: of text files.
        quoting: whether double quotes enclose fields of CSV and TSV.
        drop_empty: leave out rows without text instead of rejecting them.
        backbone: where the backbone is, if not where it was in training.
        with_text: copy the text into the output.
        strict: read the input beforehand, and refuse all of it where one row cannot be read.
        fresh: start over, even where an interrupted run could be continued.
        overwrite: replace `out`.

    Returns:
        `out`, `documents`, `rejected` rows, `repeated` (documents whose text another one near it has, which are not read
        again), `seconds` and `documents_per_second` of this call, `coverage` and, by label, how often it was `found`; for
        several artifacts the last two under `artifacts` by name.

    Raises:
        UserError: the input cannot be read, or what is there was begun with another input, artifact or options.
    """
    out, source = Path(out), Path(input)
    check_out(out, source, overwrite)
    Table(out, {})
    folders = [Path(artifact), *map(Path, also or [])]
    names = _names(folders)
    columns = tabular.Columns(text=text, id=id, text_pair=text_pair)
    reading: dict[str, Any] = {"encoding": encoding, "quoting": quoting, "drop_empty": drop_empty, "strict": strict}
    inputs = Inputs(source, columns, guess_id=True, **reading)
    models = [load_any(folder, backbone=backbone) for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        check_pairs(model, inputs.paired, folder)
    identity, rows = inputs.fingerprint()
    made_of = {
        "the input": identity,
        "the artifact": [fingerprint_of(folder) for folder in folders],
        "the options": {
            **reading,
            "text": text,
            "id": id or "id where there is one",
            "text_pair": text_pair,
            "with_text": with_text,
            "names": names if len(names) > 1 else None,
        },
    }
    readers = Readers(models)
    with Journal(out, made_of, fresh=fresh, overwrite=overwrite) as journal:
        table = Table(out, schema_of(models, names, with_text))
        return predict_documents(readers, names, inputs, table, journal, with_text, rows)


def check_out(out: Path, source: Path, overwrite: bool) -> None:
    """Raises UserError, before any work, where an output cannot be made."""
    parts = out.with_name(f".{out.name}.parts")
    if out.exists() and not overwrite and not parts.is_dir():  # with parts, the journal knows
        raise UserError("exists", "Name another file or add --overwrite", out)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError("is the input", "Name another file for the answers", out)
    check_writable(out, 0)


def _names(folders: Sequence[Path]) -> list[str]:
    """What the artifacts are called in the output."""
    names = [folder.resolve().name for folder in folders]
    taken = next((name for name, times in Counter([*names, "id", "text"]).items() if times > 1), None)
    if len(folders) > 1 and taken is not None:
        problem = "a column has that name" if taken in ("id", "text") else "two artifacts have that name"
        raise UserError(f"{problem}, and rows hold answers by the name of the folder", "Rename the folder", taken)
    return names
