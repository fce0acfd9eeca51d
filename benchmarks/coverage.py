"""How often intervals hold the truth, and tests find what is not there, on generated predictions of clustered documents.

    python benchmarks/coverage.py [--trials 2000] [--only binary classes entities seeds]

Each trial draws 150 to 300 patients with one to five documents, gold annotations that differ from patient to patient, and
two runs of equal skill whose errors have a part in common, by document and by patient. The true value of a metric is that
of four million documents from the same generator. Every method sees the same trials. Rows that
are not asked for stay as they are in benchmarks/results/coverage.json, and coverage.md is written from all.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from common import HERE, result
from scipy.special import ndtri

from posology.evaluation.bootstrap import bootstrap_differences, bootstrap_intervals
from posology.evaluation.comparison import PairedScores, permutation_tests
from posology.evaluation.metrics import ClassificationScores, EntityScores
from posology.evaluation.seeds import combined_difference, combined_interval
from posology.evaluation.statistics import intervals, paired_differences

RESULTS = HERE / "results" / "coverage.json"
Drawn = tuple[list[str], list[PairedScores]]


def patients(generator: np.random.Generator, number: int) -> np.ndarray:
    """The patient of each document: one to five of each."""
    return np.repeat(np.arange(number), generator.integers(1, 6, number))


def classified(
    generator: np.random.Generator, number: int, runs: int, shares: tuple[float, ...], signal: float, temperature: float
) -> Drawn:
    """Runs on single-label documents; the last one's probabilities are flatter by `temperature`, which moves no rank."""
    patient = patients(generator, number)
    documents, classes = len(patient), len(shares)
    likely = generator.dirichlet(3 * np.array(shares), number)[patient]
    gold = (generator.random((documents, 1)) > likely.cumsum(axis=1)[:, :-1]).sum(axis=1)

    def noise() -> np.ndarray:
        return generator.normal(size=(number, classes))[patient] + generator.normal(size=(documents, classes))

    common, scores = noise(), []
    for run in range(runs):
        logits = common + noise() + signal * np.eye(classes)[gold]
        logits /= temperature if run == runs - 1 else 1.0
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores.append(ClassificationScores(gold, odds / odds.sum(axis=1, keepdims=True)))
    return [str(each) for each in patient], list(scores)


def tagged(generator: np.random.Generator, number: int, effects: np.ndarray) -> Drawn:
    """Runs on documents with entities of three types, one of them rare.

    Skill is on the logit scale of recall; it varies with the patient, alike for all, by configuration and by run.

    Args:
        effects: (configurations, seeds) what each run's seed adds to its skill.
    """
    patient = patients(generator, number)
    rates = np.array([1, 0.5, 0.15])
    gold = generator.poisson((generator.gamma(1, 2, size=(number, 3)) * rates)[patient])
    shared, scores = 0.7 * generator.normal(size=number), []
    for configuration in effects:
        own = shared + 0.5 * generator.normal(size=number)
        for effect in configuration:
            skill = (1.2 + own + 0.5 * generator.normal(size=number) + effect)[patient, None]
            right = generator.binomial(gold, 1 / (1 + np.exp(-skill + [0, 0, 0.7])))
            wrong = generator.poisson(0.5 * np.exp(-0.5 * skill) * rates)
            scores.append(EntityScores(np.stack([right, right + wrong, gold], axis=2)))
    return [str(each) for each in patient], list(scores)


SHARES = {"binary": (0.9, 0.1), "classes": (0.6, 0.3, 0.1), "scales": (0.9, 0.1)}
METRICS = {
    "binary": ("macro_f1", "auroc", "average_precision"),
    "classes": ("macro_f1", "auroc"),
    "scales": ("auroc",),
    "entities": ("entity_f1", "entity_macro_f1"),
}
TITLES = {
    "binary": "two classes, one of 10 %",
    "classes": "three classes of 60, 30, 10 %",
    "scales": "two classes, probabilities on different scales",
    "entities": "three entity types",
}


def scenario(name: str) -> Callable[[np.random.Generator, int], Drawn]:
    """Draws two runs on so many patients."""
    if name == "entities":
        return lambda generator, number: tagged(generator, number, np.zeros((2, 1)))
    signal, temperature = 2.0 if name == "classes" else 1.5, 6.0 if name == "scales" else 1.0
    return lambda generator, number: classified(generator, number, 2, SHARES[name], signal, temperature)


def truth(draw: Callable[[np.random.Generator, int], Drawn], metrics: tuple[str, ...]) -> dict[str, float]:
    """Of the first run, over four million documents in blocks."""
    generator, found = np.random.default_rng(10**9), defaultdict(list)
    for _ in range(64):
        _, runs = draw(generator, 21_000)
        values = runs[0](np.ones((len(runs[0]), 1)))
        for metric in metrics:
            found[metric].append(values[metric][0])
    return {metric: float(np.mean(values)) for metric, values in found.items()}


def simulate(name: str, trials: int) -> list[dict[str, Any]]:
    """The rows of a scenario, one for each metric: shares of trials in which the interval held, and the test found."""
    draw, metrics = scenario(name), METRICS[name]
    true = truth(draw, metrics)
    seen: dict[str, dict[str, list[float]]] = {metric: defaultdict(list) for metric in metrics}
    for trial in range(trials):
        generator = np.random.default_rng(trial)
        groups, (first, second) = draw(generator, int(generator.integers(150, 301)))
        held = {
            "jackknife": intervals(first, groups),
            "bootstrap": bootstrap_intervals(first, groups, resamples=500, seed=trial),
            "documents": intervals(first, list(map(str, range(len(groups))))),
        }
        tested = {
            "jackknife": paired_differences(first, second, groups),
            "bootstrap": bootstrap_differences(first, second, groups, resamples=500, seed=trial),
            "permutation": permutation_tests(first, second, groups, resamples=400, seed=trial),
        }
        for metric in metrics:
            for kind, found in held.items():
                low, high = found[metric]["low"], found[metric]["high"]
                seen[metric][f"coverage_{kind}"].append(low <= true[metric] <= high)
                seen[metric][f"width_{kind}"].append(high - low)
            for kind, found in tested.items():
                seen[metric][f"size_{kind}"].append(found[metric]["p"] < 0.05)
    return [
        {"scenario": name, "metric": metric, "truth": true[metric], "trials": trials}
        | {key: float(np.mean(values)) for key, values in seen[metric].items()}
        for metric in metrics
    ]


def simulate_seeds(trials: int) -> list[dict[str, Any]]:
    """Intervals and tests over seeds and documents: by number of seeds, and by how far seeds lie apart."""
    rows = []
    for seeds, spread in ((1, 0.1), (2, 0.1), (3, 0.0), (3, 0.1), (3, 0.3), (5, 0.1)):
        generator = np.random.default_rng(10**9)
        # One model for each two-hundredth of the seeds.
        models = [tagged(generator, 6000, np.array([[spread * ndtri((k + 0.5) / 200)]]))[1][0] for k in range(200)]
        true = float(np.mean([model(np.ones((len(model), 1)))["entity_f1"][0] for model in models]))
        del models
        held, found, widths = [], [], []
        for trial in range(trials):
            generator = np.random.default_rng(trial)
            number, effects = int(generator.integers(150, 301)), spread * generator.normal(size=(2, seeds))
            groups, runs = tagged(generator, number, effects)
            interval = combined_interval("entity_f1", runs[:seeds], groups)
            held.append(interval["low"] <= true <= interval["high"])
            widths.append(interval["high"] - interval["low"])
            found.append(combined_difference("entity_f1", runs[:seeds], runs[seeds:], groups)["p"] < 0.05)
        rows.append(
            {"scenario": "seeds", "metric": "entity_f1", "seeds": seeds, "spread": spread, "truth": true}
            | {"trials": trials, "coverage": float(np.mean(held)), "width": float(np.mean(widths))}
            | {"size": float(np.mean(found))}
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: coverage and size, in percent."""

    def percent(row: dict[str, Any], key: str) -> str:
        return f"{100 * row[key]:.1f}"

    runs = [row for row in rows if row["scenario"] != "seeds"]
    lines = [
        "150 to 300 patients with 1 to 5 documents, errors alike within a patient. Coverage of nominal 95 % intervals, and",
        "size of nominal 5 % tests between two runs of equal skill, in percent, all on the same trials. One standard error"
        f" is {100 * _error(runs):.1f}.",
        "",
        "| predictions | metric | truth | coverage: jackknife | bootstrap | patients ignored | size: jackknife | bootstrap"
        " | permutation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in runs:
        figures = ["coverage_jackknife", "coverage_bootstrap", "coverage_documents"]
        figures += ["size_jackknife", "size_bootstrap", "size_permutation"]
        cells = " | ".join(percent(row, key) for key in figures)
        lines.append(f"| {TITLES[row['scenario']]} | {row['metric']} | {row['truth']:.3f} | {cells} |")
    lines += [
        "",
        "Entity F1 of two configurations of equal skill, with several seeds each. The spread is the standard deviation of",
        "a seed's skill (logit of recall), 0.1 moving the score by about 0.02. One standard error is"
        f" {100 * _error([row for row in rows if row['scenario'] == 'seeds']):.1f}.",
        "",
        "| seeds | spread | truth | coverage | mean width | size |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["scenario"] == "seeds":
            lines.append(
                f"| {row['seeds']} | {row['spread']} | {row['truth']:.3f} | {percent(row, 'coverage')} |"
                f" {row['width']:.3f} | {percent(row, 'size')} |"
            )
    return "\n".join(lines) + "\n"


def _error(rows: list[dict[str, Any]]) -> float:
    """Standard error of a share of 5 % in the smallest simulation."""
    trials = min((row["trials"] for row in rows), default=0)
    return float(np.sqrt(0.05 * 0.95 / trials)) if trials else float("nan")


def main() -> None:
    from posology.files import write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=[*METRICS, "seeds"], default=[*METRICS, "seeds"])
    asked = parser.parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []
    for name in asked.only:
        started = time.time()
        made = simulate_seeds(asked.trials) if name == "seeds" else simulate(name, asked.trials)
        order = [*METRICS, "seeds"]
        rows = [row for row in rows if row["scenario"] != name]
        rows += [row | {"seconds": round(time.time() - started)} for row in made]
        rows.sort(key=lambda row: order.index(row["scenario"]))
        write_json(RESULTS, result(rows, started))
        RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
        print(table(made) if name != "seeds" else made, flush=True)


if __name__ == "__main__":
    main()
