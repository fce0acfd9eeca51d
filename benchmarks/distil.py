"""What a student of four layers keeps of the bundled model of six, and what it gains: with a teacher, and with labels alone.

    python benchmarks/distil.py [--corpora ncbi-disease mts-dialog] [--train 600] [--unlabelled 1800] [--epochs 10]

For each corpus so many documents keep their labels, and the rest of its training split, or a part of it, loses them. The
student starts as layers 1, 3, 4 and 6 of its teacher, either as they are (`layers`) or after they have learnt on the text
of the training split to give what the whole model gives (`distilled`). Either is then trained on the labels alone, with
the answers of the teacher (the bundled model fully tuned on the same labels with the same seed) on the same documents, and
with its answers on those without labels too. `minilm:4`, the first four layers, trained on labels, is there for comparison.
All runs are of full fine-tuning by the standard recipe; steps differ where there are more documents, seconds are in the
table.

Killed and started again it goes on where it was. Writes benchmarks/results/distil.json and distil.md.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import CACHE, HERE, answers, interval, prepared, result

LAYERS = 4
FIRST = f"minilm:{LAYERS}"
TAUGHT = {"labels": None, "teacher": False, "teacher, unlabelled too": True}
"""How a student learns: from labels alone, or from a teacher, with documents that have no label or without."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", nargs="+", default=["ncbi-disease", "mts-dialog"])
    parser.add_argument("--train", type=int, default=600, help="documents that keep their labels")
    parser.add_argument("--unlabelled", type=int, default=None, help="documents without labels; the rest by default")
    parser.add_argument("--test", type=int, default=None, help="documents of the test split; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=None, help="of each run; the recipe's by default")
    parser.add_argument(
        "--corpus-epochs", type=float, default=10.0, help="of the distilled layers, over unlabelled text"
    )
    parser.add_argument("--out", default="distil", help="name of the results")
    arguments = parser.parse_args()

    from posology.files import write_json

    started, rows = time.time(), []
    for corpus in arguments.corpora:
        rows.append(measure(corpus, arguments))
        facts = {"labelled": arguments.train, "seeds": arguments.seeds, "student_layers": LAYERS}
        write_json(HERE / "results" / f"{arguments.out}.json", result(rows, started, **facts))
        (HERE / "results" / f"{arguments.out}.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def measure(corpus: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All runs of one corpus, and what they come to."""
    from posology.tasks.prepared import PreparedTask

    data = prepared(corpus, train=arguments.train, test=arguments.test)
    folder = CACHE / "distil" / data.name
    folder.mkdir(parents=True, exist_ok=True)
    labelled = {document.id for document in PreparedTask.open(data).documents("train")}
    whole = PreparedTask.open(prepared(corpus)).documents("train")
    others = [each for each in whole if each.id not in labelled]
    if arguments.unlabelled is not None:
        others = random.Random(0).sample(others, min(arguments.unlabelled, len(others)))
    unlabelled = _texts(folder / f"unlabelled-{len(others)}.jsonl", others)
    everything = _texts(folder / "everything.jsonl", whole)
    students = {
        FIRST: FIRST,
        "layers": str(_backbone(folder / "layers", everything, data, steps=0)),
        "distilled": str(_backbone(folder / "distilled", everything, data, epochs=arguments.corpus_epochs)),
    }
    overrides = {} if arguments.epochs is None else {"epochs": arguments.epochs}
    runs: dict[str, list[Path]] = {"teacher": []}
    for seed in arguments.seeds:
        teacher = _run(folder / f"teacher-{seed}", data, "minilm", None, None, seed, overrides)
        runs["teacher"].append(teacher)
        for name, backbone in students.items():
            for how, wants in TAUGHT.items():
                if name == FIRST and wants is not None:
                    continue  # what it is compared by is how far labels alone take it
                more = unlabelled if wants and others else None
                if wants and more is None:
                    continue
                title = f"{name}-{how}" if more is None else f"{name}-{how}-{len(others)}"
                out = folder / f"{title}-{seed}".replace(":", "").replace(", ", "-").replace(" ", "-")
                run = _run(out, data, backbone, None if wants is None else teacher, more, seed, overrides)
                runs.setdefault(f"{name}, {how}", []).append(run)
    fast = next(name for name in runs if name.startswith("distilled, teacher"))
    return {
        "corpus": corpus,
        "labelled": len(labelled),
        "unlabelled": len(others),
        "configurations": {name: _summary(own, runs) for name, own in runs.items()},
        "backbone": json.loads(Path(students["distilled"], "posology-backbone.json").read_text(encoding="utf-8")),
        "speed": _speed(runs["teacher"][0], runs[fast][0], data),
    }


def _texts(path: Path, documents: Sequence[Any]) -> Path:
    rows = [json.dumps({"id": each.id, "text": each.text}) + "\n" for each in documents]
    path.write_text("".join(rows), encoding="utf-8")
    return path


def _backbone(out: Path, corpus: Path, data: Path, **options: Any) -> Path:
    """A student that was made from the bundled model; validation and test texts are left out."""
    from posology.pretrain.distil import distil_backbone

    if not (out / "posology-backbone.json").is_file():
        distil_backbone("minilm", corpus, out=out, student_layers=LAYERS, exclude=[data], held_out=0.05, **options)
    return out


def _run(
    out: Path,
    data: Path,
    backbone: str,
    teacher: Path | None,
    unlabelled: Path | None,
    seed: int,
    overrides: dict[str, Any],
) -> Path:
    """An artifact: the one that is there, or a new one."""
    from posology.engine.artifact import read_record
    from posology.engine.teaching import Teaching
    from posology.engine.train import train

    if not (out / "posology.json").is_file() or read_record(out)["test"] is None:
        teaching = None if teacher is None else Teaching(teacher, unlabelled)
        train(data, backbone, "full", out, seed=seed, overrides=overrides, distilled_from=teaching)
    return out


def _summary(runs: Sequence[Path], all_runs: dict[str, list[Path]]) -> dict[str, Any]:
    """Score over seeds, and its paired difference to the teacher and to the same student on labels alone."""
    from posology.engine.artifact import read_record
    from posology.evaluation.seeds import combined_difference, combined_interval

    records = [read_record(run) for run in runs]
    metric = records[0]["task"]["metric"]
    scores, groups = answers(runs)
    name = next(name for name, own in all_runs.items() if own is runs)
    against = {"teacher": "teacher", "labels alone": f"{name.split(', ')[0]}, labels"}
    return {
        "metric": metric,
        "by_seed": [record["test"]["metrics"][metric]["value"] for record in records],
        "score": combined_interval(metric, scores, groups),
        "difference": {
            title: combined_difference(metric, scores, answers(all_runs[other])[0], groups)
            for title, other in against.items()
            if other in all_runs and other != name
        },
        "parameters": records[0]["backbone"]["parameters"],
        "bytes": records[0]["adapter_bytes"],
        "seconds": [record["training"]["seconds"] for record in records],
    }


def _speed(teacher: Path, student: Path, data: Path, rounds: int = 5) -> dict[str, Any]:
    """Documents per second of both on the test split, in turns."""
    from posology.engine.artifact import load
    from posology.measure.rounds import interleave, rates, ratios
    from posology.tasks.prepared import PreparedTask

    task = PreparedTask.open(data)
    documents = task.documents("test")[:500]
    models = {"teacher": load(teacher), "student": load(student)}
    for model in models.values():
        model.merge()
        model.answer(documents[:50])
    sides = {name: lambda model=model: model.answer(documents) for name, model in models.items()}
    seconds = interleave(sides, rounds)
    return {
        **{name: rates(len(documents), own) for name, own in seconds.items()},
        "ratio": ratios(seconds["teacher"], seconds["student"]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table for each corpus."""
    lines = []
    for row in rows:
        speed = row["speed"]
        lines += [
            f"### {row['corpus']}: {row['labelled']:,} documents with labels, {row['unlabelled']:,} without",
            "",
            "Score on test: mean over seeds with a 95 % interval for other seeds and documents. Differences are paired, in "
            f"points. The student answers {speed['ratio']['median']:.2f} times as many documents per second as the teacher "
            f"({speed['ratio']['min']:.2f} to {speed['ratio']['max']:.2f}; {speed['teacher']['median']:.0f} and "
            f"{speed['student']['median']:.0f}).",
            "",
            "| model | learns from | parameters | MB | score | less the teacher | less labels alone | training, s |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, own in row["configurations"].items():
            model, _, how = name.partition(", ")
            differences = [interval(own["difference"].get(title), points=True) for title in ("teacher", "labels alone")]
            lines.append(
                f"| {model} | {how or 'labels'} | {own['parameters'] / 1e6:.1f} M | {own['bytes'] / 1e6:.0f} | "
                f"{interval(own['score'])} | {differences[0]} | {differences[1]} | "
                f"{sum(own['seconds']) / len(own['seconds']):.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
