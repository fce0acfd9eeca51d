"""Does pre-training on a hospital's own notes help? Perplexity, and scores of tasks, before and after, over seeds.

    python benchmarks/adaptation.py [--patients 700] [--epochs 3] [--seeds 1 2 3] [--train 600] [--methods lora full]

The corpus: the notes of specialty11's training split (mtsamples) and those of a synthetic hospital. Pre-training goes on
from the bundled model, in full and by LoRA, once for each seed; validation and test documents of all tasks are left out.
The tasks: mts-dialog, ncbi-disease, and the mortality task of another synthetic hospital, which `--synthetic` can replace.
Each is learnt from the bundled model and from each new backbone, by every method named, with the same seeds.
Differences are in the task's metric, of means over seeds, paired by document, with 95 % intervals for other seeds and
documents. Killed and started again it goes on where it was. Writes benchmarks/results/adaptation.json and adaptation.md;
everything else lies in benchmarks/.cache/adaptation.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import CACHE, HERE, answers, interval, prepared, result, subset

BACKBONE = "minilm"
WAYS = ("full", "lora")
CORPUS_SEED, TASK_SEED = 11, 7
"""Of the two hospitals: their patients are others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--patients", type=int, default=700, help="of each synthetic hospital")
    parser.add_argument("--notes", type=int, default=None, help="notes of specialty11; all by default")
    parser.add_argument("--epochs", type=float, default=3.0, help="of pre-training")
    parser.add_argument("--steps", type=int, default=None, help="of pre-training, in place of epochs")
    parser.add_argument("--batch-size", type=int, default=32, help="of pre-training")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="of pre-training")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--corpora", nargs="*", default=["mts-dialog", "ncbi-disease"])
    parser.add_argument("--synthetic", default="mimic-mp", help="task of the synthetic hospital; '' for none")
    parser.add_argument("--train", type=int, default=None, help="training documents of each task; all by default")
    parser.add_argument("--test", type=int, default=None, help="test documents of each task; all by default")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"], help="by which the tasks are learnt")
    parser.add_argument("--task-epochs", type=int, default=None, help="the recipe's by default")
    parser.add_argument("--out", default="adaptation", help="name of the results")
    arguments = parser.parse_args()

    from posology.files import write_json

    started, folder = time.time(), CACHE / arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    tasks = make_tasks(arguments, folder)
    texts = make_corpus(arguments, folder)
    backbones = {way: [pretrain(way, seed, texts, tasks, arguments, folder) for seed in arguments.seeds]
                 for way in arguments.ways}  # fmt: skip
    rows = [perplexity_row(way, own) for way, own in backbones.items()]
    rows += compare(tasks, backbones, arguments, folder)
    path = HERE / "results" / f"{arguments.out}.json"
    sizes = {"train": arguments.train, "test": arguments.test, "task_epochs": arguments.task_epochs}
    write_json(path, result(rows, started, backbone=arguments.backbone, seeds=arguments.seeds, **sizes))
    path.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def make_tasks(arguments: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The prepared tasks by name."""
    import posology
    from posology.synthetic.command import synthesise

    sizes = {"train": arguments.train, "test": arguments.test}
    tasks = {name: prepared(name, **sizes) for name in arguments.corpora}
    if arguments.synthetic:
        hospital, data = folder / "task-hospital", folder / arguments.synthetic
        if not hospital.is_dir():
            synthesise(out=hospital, patients=arguments.patients, seed=TASK_SEED)
        if not data.is_dir():
            source = "mimic-iii" if arguments.synthetic.startswith("mimic") else arguments.synthetic.rpartition("-")[0]
            posology.prepare(arguments.synthetic, hospital / source, data)
        tasks[f"synthetic {arguments.synthetic}"] = subset(data, **sizes)
    return tasks


def make_corpus(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """Training notes of specialty11, and the notes of a synthetic hospital."""
    import posology
    from posology.synthetic.command import synthesise

    hospital, notes = folder / "corpus-hospital", folder / "notes.jsonl"
    if not hospital.is_dir():
        synthesise(out=hospital, patients=arguments.patients, seed=CORPUS_SEED)
    documents = posology.PreparedTask.open(prepared("specialty11")).documents("train")[: arguments.notes]
    notes.write_text("".join(json.dumps({"text": each.text}) + "\n" for each in documents), encoding="utf-8")
    return [notes, hospital / "mimic-iii"]


def pretrain(
    way: str, seed: int, texts: Sequence[Path], tasks: dict[str, Path], arguments: argparse.Namespace, folder: Path
) -> Path:
    """A backbone folder: the one that is there, or a new one."""
    from posology.pretrain.command import pretrain as run
    from posology.pretrain.folder import RECORD

    out = folder / f"{way}-{seed}"
    if not (out / RECORD).is_file():
        length = {"steps": arguments.steps} if arguments.steps else {"epochs": arguments.epochs}
        excluded = [*tasks.values(), prepared("specialty11")]
        run(texts[0], also=list(texts[1:]), backbone=arguments.backbone, out=out, method=way, seed=seed,
            exclude=excluded, held_out=0.05, batch_size=arguments.batch_size, **length)  # fmt: skip
    return out


def perplexity_row(way: str, folders: Sequence[Path]) -> dict[str, Any]:
    """Held-out perplexity over seeds, and what was read."""
    from posology.pretrain.folder import RECORD

    records = [json.loads((folder / RECORD).read_text(encoding="utf-8")) for folder in folders]
    return {
        "pretraining": way,
        "perplexity": [record["perplexity"] for record in records],
        "held_out": [record["held_out"] for record in records],
        "training": [record["training"] for record in records],
        **{name: records[0][name] for name in ("documents", "excluded", "evaluation", "coverage", "corpus")},
    }


def compare(
    tasks: dict[str, Path], backbones: dict[str, list[Path]], arguments: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """For each task and method the scores from each backbone, and what the new ones gain over the bundled one."""
    from posology.study.cell import Cell
    from posology.study.driver import carry_out
    from posology.study.ledger import Ledger

    count = len(arguments.seeds)
    sides = {
        "as published": [arguments.backbone] * count,
        **{way: list(map(str, own)) for way, own in backbones.items()},
    }
    overrides = {} if arguments.task_epochs is None else {"epochs": arguments.task_epochs}
    names, cells = [], []
    for task, data in tasks.items():
        for method in arguments.methods:
            for side, own in sides.items():
                for seed, backbone in zip(arguments.seeds, own, strict=True):
                    names.append((task, method, side))
                    cells.append(
                        Cell(task=task, data=data, backbone=backbone, method=method, seed=seed, overrides=overrides)
                    )
    with Ledger(folder / "ledger.db", write=True) as ledger:
        runs = carry_out(ledger, "adaptation", cells, measured=False)
    by_side: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for name, run in zip(names, runs, strict=True):
        if run["state"] != "done":
            raise SystemExit(f"{' '.join(name)}: {run['problem']}")
        by_side.setdefault(name, []).append(run)
    return [
        summary(task, method, {side: by_side[task, method, side] for side in sides})
        for task in tasks
        for method in arguments.methods
    ]


def summary(task: str, method: str, sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Scores over seeds, and differences to the backbone as published."""
    from posology.evaluation.seeds import combined_difference, combined_interval

    metric = next(iter(sides.values()))[0]["metric"]
    scores = {side: answers(run["artifact"] for run in runs) for side, runs in sides.items()}
    before, groups = scores["as published"]
    return {
        "task": task,
        "method": method,
        "metric": metric,
        "by_seed": {side: [run["value"] for run in runs] for side, runs in sides.items()},
        "score": {side: combined_interval(metric, own, groups) for side, (own, _) in scores.items()},
        "difference": {
            side: combined_difference(metric, own, before, groups)
            for side, (own, _) in scores.items()
            if side != "as published"
        },
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: perplexity, then scores."""
    lines = [
        "Held-out perplexity of hidden words, for each seed (the head of the bundled model is new: `head` is after that "
        "head was trained alone); documents of the tasks that were left out: exact and near.",
        "",
        "| pre-training | before | head | after | after / head (95 %) | pieces read | left out |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if "pretraining" in row):
        states = [
            ", ".join(f"{own[state]:,.1f}" if state in own else "" for own in row["perplexity"])
            for state in ("before", "with_new_head", "after")
        ]
        ratios = ", ".join("{value:.3f} ({low:.3f} to {high:.3f})".format(**own["ratio"]) for own in row["held_out"])
        read = ", ".join(f"{own['tokens']:,}" for own in row["training"])
        left = f"{row['excluded']['exact']} + {row['excluded']['near']}"
        lines.append(f"| {row['pretraining']} | {' | '.join(states)} | {ratios} | {read} | {left} |")
    lines += [
        "",
        "Scores on test: means over seeds with 95 % intervals for other seeds and documents; differences to the backbone "
        "as published, paired by document, in points.",
        "",
        "| task | method | metric | backbone | score | difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if "task" in row):
        for side, score in row["score"].items():
            gained = interval(row["difference"].get(side), points=True)
            lines.append(
                f"| {row['task']} | {row['method']} | {row['metric']} | {side} | {interval(score)} | {gained} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
