"""De-identification of generated 2014-format notes: recall and precision by category at several `--recall` settings.

    python benchmarks/redact.py [--patients 300] [--train-seconds 600] [--recalls 0.95 0.98 0.99]

`posology synthesise` and `prepare i2b2-2014-ner` make the notes, `train` adapts the bundled model by LoRA, and `redact` runs
on the test notes (patients that neither training nor validation has) at each setting. What it replaced is read off its
offsets and compared with gold. Checked besides: that every character outside what was replaced is unchanged, and that
surrogates of a patient's names agree. Writes benchmarks/results/redact.json and redact.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import CACHE, HERE, result

RESULTS = HERE / "results" / "redact.json"
TITLES = ("dr", "mr", "ms", "mrs", "miss")
"""Which stay where a model takes one alone for a name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--train-seconds", type=float, default=600.0)
    parser.add_argument("--recalls", nargs="+", type=float, default=[0.95, 0.98, 0.99])
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--set", nargs="*", default=["epochs=12", "batch_size=8", "attention_dropout=0"])
    parser.add_argument("--view", choices=("documents", "lines"), default="documents")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()

    import posology as package
    from posology.files import write_json

    started = time.time()
    work = CACHE / f"redact-{arguments.patients}-{arguments.view}"
    hospital, data, artifact = work / "hospital", work / "data", work / "artifact"
    if not hospital.is_dir():
        command("synthesise", "--patients", arguments.patients, "--seed", arguments.seed, "--out", hospital)
    if not data.is_dir():
        command("prepare", "i2b2-2014-ner", "--source", hospital / "i2b2-2014", "--out", data, "--view", arguments.view)
    if not artifact.is_dir():
        options = ["--method", "lora", "--backbone", arguments.backbone, "--max-seconds", arguments.train_seconds]
        command("train", data, "--out", artifact, *options, "--set", *arguments.set)
    documents = package.PreparedTask.open(data).documents("test")
    notes, key = work / "test.jsonl", work / "key"
    notes.write_text("".join(json.dumps({"id": d.id, "patient": d.group, "text": d.text}) + "\n" for d in documents))
    key.write_text("0123456789abcdef" * 4)
    rows: list[dict[str, Any]] = []
    for recall in [None, *arguments.recalls]:
        row = setting(recall, artifact, data, notes, key, documents, work)
        rows.append(row)
        facts = {"patients": arguments.patients, "test_notes": len(documents), "backbone": arguments.backbone}
        write_json(RESULTS, result(rows, started, **facts))
        RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
        print(json.dumps({name: row[name] for name in ("recall_setting", "word", "checks")}), flush=True)


def setting(
    recall: float | None, artifact: Path, data: Path, notes: Path, key: Path, documents: Sequence[Any], work: Path
) -> dict[str, Any]:
    """Redacts the test notes with surrogates at one setting, and scores what was replaced."""
    out = work / f"out-{recall}.jsonl"
    options = ["--style", "surrogates", "--key-file", key, "--group", "patient", "--id", "id", "--offsets"]
    options += ["--overwrite", "--fresh", *(("--recall", recall, "--data", data) if recall is not None else ())]
    answer = command("redact", artifact, notes, "--out", out, *options)
    texts = {row["id"]: row["text"] for row in read(out)}
    moved = {row["id"]: row["spans"] for row in read(out.with_name(f"{out.name}.offsets.jsonl"))}
    audit = json.loads(out.with_name(f"{out.name}.audit.json").read_text())
    return {
        "recall_setting": recall,
        "recall_offset": audit["settings"]["recall_offset"],
        "validation": None if recall is None else {name: answer[name] for name in ("recall", "precision")},
        **scores(documents, moved),
        "without_surrogate": audit["without_surrogate"],
        "identifiers": sum(audit["identifiers"].values()),
        "notes_per_second": answer["documents_per_second"],
        "checks": {**unchanged(documents, texts, moved), **consistent(documents, texts, moved)},
    }


def scores(documents: Sequence[Any], moved: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Words: of the gold ones, how many were replaced, by category; of the replaced ones, how many are gold."""
    import numpy as np

    from posology.corpus.i2b2_2014 import CATEGORY, TYPES
    from posology.evaluation.statistics import clean, entity_intervals

    names = list(TYPES)
    found, right = (np.zeros((len(documents), len(names) + 1, 3)) for _ in range(2))
    for row, document in enumerate(documents):
        gold, replaced = ([0] * len(document.words) for _ in range(2))
        for marks, spans in (
            (gold, [(span.start, span.end, span.label) for span in document.spans]),
            (replaced, [(span["start"], span["end"], span["label"]) for span in moved[document.id]]),
        ):
            for start, end, label in spans:
                for place, (begin, stop) in enumerate(document.words):
                    if begin < end and start < stop:
                        marks[place] = 1 + names.index(CATEGORY[label])
        for true, own in zip(gold, replaced, strict=True):
            for place in {true, len(names) + 1} if true else ():
                found[row, place - 1] += (own > 0, 0, 1)
            for place in {own, len(names) + 1} if own else ():
                right[row, place - 1] += (true > 0, 1, 0)
    groups = [document.group for document in documents]
    result = {}
    for place, name in enumerate([*names, "word"]):
        result[name] = {
            "recall": entity_intervals(found[:, [place]], groups)["entity_recall"],
            "precision": entity_intervals(right[:, [place]], groups)["entity_precision"],
            "gold": int(found[:, place, 2].sum()),
            "replaced": int(right[:, place, 1].sum()),
        }
    whole = result.pop("word")
    return clean({"word": whole, "by_category": result})  # type: ignore[no-any-return]


def unchanged(
    documents: Sequence[Any], texts: dict[str, str], moved: dict[str, list[dict[str, Any]]]
) -> dict[str, int]:
    """Notes in which a character outside what was replaced is another one."""
    wrong = 0
    for document in documents:
        read_, written, new = 0, 0, texts[document.id]
        same = True
        for span in moved[document.id]:
            same &= document.text[read_ : span["start"]] == new[written : span["new_start"]]
            read_, written = span["end"], span["new_end"]
        wrong += not (same and document.text[read_:] == new[written:])
    return {"notes": len(documents), "notes_changed_elsewhere": wrong}


def consistent(
    documents: Sequence[Any], texts: dict[str, str], moved: dict[str, list[dict[str, Any]]]
) -> dict[str, int]:
    """Words of names, and ISO dates, of a patient that have more than one surrogate; surrogates equal to the original."""
    from datetime import date

    names: dict[tuple[str, str], set[str]] = defaultdict(set)
    shifts: dict[str, Counter[int]] = defaultdict(Counter)
    equal = 0
    for document in documents:
        for span in moved[document.id]:
            old = document.text[span["start"] : span["end"]]
            new = texts[document.id][span["new_start"] : span["new_end"]]
            if span["label"] != "AGE" and old.casefold().rstrip(".") not in TITLES:
                equal += old.casefold() == new.casefold()
            if span["label"] in ("PATIENT", "DOCTOR"):
                one, other = (re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.casefold()) for text in (old, new))
                if len(one) == len(other):
                    for word, surrogate in zip(one, other, strict=True):
                        names[document.group, word].add(surrogate)
            if span["label"] == "DATE" and all(re.fullmatch(r"\d{4}-\d\d-\d\d", text) for text in (old, new)):
                shifts[document.group][(date.fromisoformat(new) - date.fromisoformat(old)).days] += 1
    return {
        "words_of_names": len(names),
        "words_of_names_with_several_surrogates": sum(len(found) > 1 for found in names.values()),
        "patients_with_iso_dates": len(shifts),
        "patients_with_several_shifts": sum(len(found) > 1 for found in shifts.values()),
        "surrogates_equal_to_the_original": equal,
    }


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(*arguments: object) -> dict[str, Any]:
    """Runs one command and gives its JSON."""
    program = [str(Path(sys.executable).with_name("posology")), *map(str, arguments)]
    done = subprocess.run([*program, "--json"], stdout=subprocess.PIPE, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each category, a pair of columns for each setting."""
    settings = [
        "as trained" if row["recall_setting"] is None else f"--recall {row['recall_setting']:g}" for row in rows
    ]
    lines = [
        "| words of | " + " | ".join(f"{name}: recall | precision" for name in settings) + " |",
        "|---" * (1 + 2 * len(rows)) + "|",
    ]
    for name in ["any identifier", *rows[0]["by_category"]]:
        cells = []
        for row in rows:
            own = row["word"] if name == "any identifier" else row["by_category"][name]
            cells += [shown(own["recall"]) if own["gold"] else "", shown(own["precision"]) if own["replaced"] else ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Checks, at each setting:", ""]
    for setting_, row in zip(settings, rows, strict=True):
        checks = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["checks"].items())
        lines.append(f"- {setting_} (logit of O lowered by {row['recall_offset']:.2f}): {checks}")
    return "\n".join(lines) + "\n"


def shown(entry: dict[str, Any]) -> str:
    limits = "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
    return f"{entry['value']:.3f}{limits}"


if __name__ == "__main__":
    main()
