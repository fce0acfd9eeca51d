"""Does a temperature fitted on validation mend probabilities on test, and is a wanted sensitivity reached there?

    python benchmarks/calibration.py [--models tf-idf,random-forest,minilm:2] [--seeds 5]

Temperatures: models trained on a few hundred documents of each of three corpora: two baselines, and (on the two of short
texts) the first two layers of the bundled model, fully fine-tuned for the recipe's five epochs or for twenty; several
seeds where a seed matters. Each temperature is fitted twice: on the validation split as it is, for the test split as the
corpus has it; and on the shorter half of validation, for the longer half of test, which differs from it on purpose. The
calibration error before and after is the mean over seeds, its difference has a 95 % interval for other documents and
seeds.

Thresholds: ChemProt's relations as a task of two classes, inhibition (the group CPR:4) or not; the threshold is chosen
on validation for the sensitivity wanted; validation foretells an interval for what it reaches on test. Each seed draws
other documents of every split.

Runs that are in the cache are not trained again, and results of models that are not named are kept. Writes benchmarks/results/calibration.json and calibration.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MODELS = ("tf-idf", "random-forest", "minilm:2", "minilm:2 x 20")
"""Baselines by their method; backbones, which are fully fine-tuned, for the recipe's epochs or for so many."""
SIZES = {
    "chemprot": {"train": 400, "validate": 300, "test": 1000},
    "mts-dialog": {"train": 300},
    "specialty11": {"train": 256},
}
LONG = ("specialty11",)
"""Corpora of long notes: baselines only, since a backbone takes ten minutes for each seed."""
BINARY = {"train": 600, "validate": 1000, "test": 2000}
INHIBITION = ("DOWNREGULATOR", "INDIRECT-DOWNREGULATOR", "INHIBITOR")
GOALS = ({"sensitivity": 0.8}, {"sensitivity": 0.9}, {"sensitivity": 0.95}, {"cost_ratio": 5.0})
ECE = "expected_calibration_error"


class Answered(NamedTuple):
    """A split and what a model answers: right classes (n,), logits (n, C), groups and lengths in characters."""

    gold: np.ndarray
    logits: np.ndarray
    groups: list[str]
    lengths: np.ndarray

    def part(self, chosen: np.ndarray) -> Answered:
        """Some of the documents."""
        groups = [group for group, taken in zip(self.groups, chosen, strict=True) if taken]
        return Answered(self.gold[chosen], self.logits[chosen], groups, self.lengths[chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", default="1")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = arguments.threads

    from common import HERE, prepared, result

    from posology.files import write_json

    started, seeds = time.time(), range(arguments.seeds)
    path, models = HERE / "results" / "calibration.json", arguments.models.split(",")
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": [], "thresholds": []}
    temperatures = [row for row in known["rows"] if row["model"] not in models]
    thresholds = [row for row in known["thresholds"] if row["model"] not in models]
    for model in models:
        for corpus, sizes in SIZES.items():
            if corpus in LONG and ":" in model:
                continue
            data = prepared(corpus, **sizes)
            answered = [trained(corpus, data, model, seed)[1] for seed in (seeds if model != "tf-idf" else [0])]
            temperatures += [{"model": model} | mended(corpus, answered, shifted) for shifted in (False, True)]
            print(*(f"{key}={value}" for key, value in temperatures[-1].items()), flush=True)
        for seed in seeds if " x " not in model else ():
            data = inhibition(seed)
            artifact, _ = trained(data.name, data, model, seed)
            thresholds += [{"model": model} | row for row in reached(data, artifact, seed)]
    facts = {"seeds": arguments.seeds, "threads": int(arguments.threads)}
    path.parent.mkdir(exist_ok=True)
    write_json(path, result(temperatures, started, thresholds=thresholds, **facts))
    path.with_suffix(".md").write_text(table(temperatures, thresholds), encoding="utf-8")


def trained(name: str, data: Path, model_name: str, seed: int) -> tuple[Path, dict[str, Answered]]:
    """An artifact, trained if it is not there, and what it answers on validation and test."""
    from common import CACHE

    import posology
    from posology.engine.baselines import BASELINES

    out = CACHE / "calibration" / f"{name}-{model_name.replace(':', '-').replace(' ', '')}-{seed}"
    if not (out / "test.parquet").is_file():
        method = model_name if model_name in BASELINES else "full"
        backbone, _, epochs = model_name.partition(" x ")
        overrides = {"epochs": int(epochs)} if epochs else {}
        posology.train(data, backbone, method, out, seed=seed, overrides=overrides, overwrite=True)
    model, task, answered = posology.load(out), posology.PreparedTask.open(data), {}
    for split in ("validation", "test"):
        documents = task.documents(split)
        logits = np.stack(model.answer(documents, split).logits)
        groups = [document.group for document in documents]
        lengths = np.array([len(document.text) for document in documents])
        answered[split] = Answered(model.gold(documents), logits, groups, lengths)
    return out, answered


def mended(corpus: str, seeds: list[dict[str, Answered]], shifted: bool) -> dict[str, Any]:
    """The calibration error on test before and after temperatures fitted on validation, a model for each seed."""
    from posology.engine.decode import softmax
    from posology.evaluation.calibration import fit_temperature, negative_log_likelihood
    from posology.evaluation.metrics import ClassificationScores
    from posology.evaluation.seeds import combined_difference, combined_interval

    temperatures, before, after, likelihoods = [], [], [], []
    for splits in seeds:
        validation, test = splits["validation"], splits["test"]
        if shifted:
            validation = validation.part(validation.lengths <= np.median(validation.lengths))
            test = test.part(test.lengths > np.median(test.lengths))
        fitted = fit_temperature(validation.gold, validation.logits)
        temperatures.append(fitted.value)
        raw, calibrated = softmax(test.logits), softmax(test.logits, fitted.value)
        before.append(ClassificationScores(test.gold, raw))
        after.append(ClassificationScores(test.gold, raw, calibrated))
        likelihoods.append([negative_log_likelihood(test.gold, each) for each in (raw, calibrated)])
    return {
        "corpus": corpus,
        "fitted_on": "shorter half of validation" if shifted else "validation",
        "measured_on": "longer half of test" if shifted else "test",
        "documents": {"fitted": len(validation.gold), "measured": len(test.gold)},
        "median_characters": {
            "fitted": float(np.median(validation.lengths)),
            "measured": float(np.median(test.lengths)),
        },
        "temperatures": temperatures,
        "accuracy": combined_interval("accuracy", before, test.groups),
        "ece": {"before": mean(ECE, before), "after": mean(ECE, after)},
        "ece_by_seed": [[mean(ECE, [one]) for one in pair] for pair in zip(before, after, strict=True)],
        "ece_difference": combined_difference(ECE, after, before, test.groups),
        "brier": {"before": mean("brier", before), "after": mean("brier", after)},
        "nll": dict(zip(("before", "after"), np.mean(likelihoods, axis=0).tolist(), strict=True)),
    }


def mean(metric: str, scores: list[Any]) -> float:
    """Of a metric over seeds."""
    return float(np.mean([each(np.ones((len(each), 1)))[metric][0] for each in scores]))


def inhibition(seed: int) -> Path:
    """A subset of ChemProt with two labels."""
    from common import CACHE, prepared

    import posology
    from posology.tasks.prepared import SPLITS, write_prepared

    folder = CACHE / f"chemprot-inhibition-{seed}"
    if not folder.is_dir():
        task = posology.PreparedTask.open(prepared("chemprot", **BINARY, seed=seed))
        splits = {split: task.documents(split) for split in SPLITS}
        for documents in splits.values():
            for document in documents:
                document.label = "inhibition" if document.label in INHIBITION else "other"
        write_prepared(
            folder,
            name=folder.name,
            kind=task.kind,
            labels=["other", "inhibition"],
            metric="auroc",
            splits=splits,
            source=task.source,
            notes={"subset": BINARY, "seed": seed},
        )
    return folder


def reached(data: Path, artifact: Path, seed: int) -> list[dict[str, Any]]:
    """What thresholds chosen on validation reach on test, a row for each goal."""
    from posology.engine.calibrate import calibrate

    rows = []
    for goal in GOALS:
        found = calibrate(artifact, data, **goal)["threshold"]
        ((name, wanted),) = goal.items()
        test = found["test"]
        interval, expected = test["sensitivity"], found["expected"]["sensitivity"]
        rows.append(
            {
                "seed": seed,
                "goal": goal,
                "probability": found["probability"],
                "validation": found["validation"],
                "expected": found["expected"],
                "test": test,
                "as_expected": expected["low"] <= interval["value"] <= expected["high"],
                "wanted_within_interval": interval["low"] <= wanted <= interval["high"]
                if name == "sensitivity"
                else None,
            }
        )
    return rows


def table(temperatures: list[dict[str, Any]], thresholds: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | corpus | temperature from | ECE on | documents | T (by seed) | ECE before | after | difference | NLL before | after |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in temperatures:
        found = ", ".join(f"{value:.2f}" for value in row["temperatures"])
        lines.append(
            f"| {row['model']} | {row['corpus']} | {row['fitted_on']} | {row['measured_on']} | {row['documents']['fitted']}, "
            f"{row['documents']['measured']} | {found} | {row['ece']['before']:.3f} | {row['ece']['after']:.3f} | "
            f"{interval(row['ece_difference'])} | {row['nll']['before']:.3f} | {row['nll']['after']:.3f} |"
        )
    names = ("sensitivity", "specificity", "ppv", "npv")
    lines += [
        "",
        "| model | goal | seed | threshold | on validation | expected | "
        + " | ".join(f"{name} on test" for name in names)
        + " |",
    ]
    lines.append("|---" * (6 + len(names)) + "|")
    for row in sorted(thresholds, key=lambda row: GOALS.index(row["goal"])):
        ((name, wanted),) = row["goal"].items()
        shown = row["validation"]["sensitivity"]["value"]
        lines.append(
            f"| {row['model']} | {name.replace('_', ' ')} {wanted:g} | {row['seed']} | {row['probability']:.3f} | {shown:.3f} "
            f"| {row['expected']['sensitivity']['low']:.3f} to {row['expected']['sensitivity']['high']:.3f} | "
            + " | ".join(interval(row["test"][each]) for each in names)
            + " |"
        )
    wanted_rows = [row for row in thresholds if row["wanted_within_interval"] is not None]
    if wanted_rows:
        held = sum(row["wanted_within_interval"] for row in wanted_rows)
        reached = sum(row["test"]["sensitivity"]["high"] >= row["goal"]["sensitivity"] for row in wanted_rows)
        expected = sum(row["as_expected"] for row in wanted_rows)
        lines += [
            "",
            f"The sensitivity wanted is reached on test, or not shown to be missed (the upper end of its interval is not "
            f"below), in {reached} of {len(wanted_rows)} cases. "
            f"The sensitivity on test lies in the interval that validation foretold (the choice of the threshold drawn "
            f"anew as well) in {expected} of {len(wanted_rows)} cases. The one wanted lies in the interval of test alone, "
            f"which takes the threshold as given, in {held}.",
        ]
    return "\n".join(lines) + "\n"


def interval(entry: dict[str, Any]) -> str:
    """A value with its interval."""
    if entry["value"] is None:
        return "undefined"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


if __name__ == "__main__":
    main()
