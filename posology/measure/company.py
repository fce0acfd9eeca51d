"""`posology bench company`: runs that share one pass over their texts, beside the same runs one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posology.engine.company import METHODS, Company, Member
from posology.engine.recipe import make_recipe
from posology.engine.run import build
from posology.errors import UserError
from posology.measure.ours import OurTraining
from posology.measure.rounds import interleave, rates, ratios, spread
from posology.measure.setting import Setting, make_setting

RATES = (1.0, 0.5, 0.25)
"""Learning rates of the runs, in turn, times the recipe's."""


def bench_company(
    data: Sequence[Path],
    *,
    backbone: str = "minilm",
    method: str = "lora",
    ranks: Sequence[int] = (8, 8, 16, 16, 32, 32, 64, 128),
    recipe: str = "standard",
    overrides: Mapping[str, Any] | None = None,
    steps: int = 8,
    repeats: int = 5,
    seed: int = 42,
) -> dict[str, Any]:
    """Measures steps; see `posology bench company --help` for the arguments.

    Both sides hold the same runs with the same batches, and take turns step by step. The one after the other is our own
    engine, which runs each as fast as it can alone.

    Returns:
        `company` and `one_by_one`, each with `seconds` (of a step of all runs), `examples_per_second` (of all runs) and
        `loss` (mean over all steps); `ratio` ({median, min, max}): how many times longer one by one took;
        `setting`.

    Raises:
        UserError: input that does not fit.
    """
    if method not in METHODS:
        raise UserError(f"runs of {method} cannot keep company", f"Choose one of {', '.join(METHODS)}", "--method")
    if not ranks or not data:
        raise UserError("a company needs runs and data", "Give at least one of each", "--ranks, --data")
    settings = []
    for number, rank in enumerate(ranks):
        own = {"batch_size": 16, **(overrides or {}), **({"rank": rank} if "lora" in method else {})}
        setting = make_setting(data[number % len(data)], backbone, method, recipe, own, None, seed + number)
        chosen = setting.recipe.model_copy(
            update={
                "learning_rate": setting.recipe.learning_rate * RATES[number % len(RATES)],
                "schedule": "constant",
                "warmup": 0.0,
            }
        )
        settings.append(replace(setting, recipe=chosen))
    alone, together = ([_opened(setting) for setting in settings] for _ in range(2))
    company = _company(settings[0], together)
    draws = [np.random.default_rng(setting.seed) for setting in settings]

    def draw() -> list[np.ndarray]:
        return [
            own.choice(len(run.lengths), min(setting.recipe.batch_size, len(run.lengths)), replace=False)
            for own, run, setting in zip(draws, alone, settings, strict=True)
        ]

    batches = [draw() for _ in range(steps)]
    turns = {"one_by_one": iter(batches * (repeats + 1)), "company": iter(batches * (repeats + 1))}

    def step_each() -> None:
        for run, batch in zip(alone, next(turns["one_by_one"]), strict=True):
            run.run([batch])

    def step_all() -> None:
        for run, batch in zip(together, next(turns["company"]), strict=True):
            run.training.batch = batch
        company.step()

    sides = {"one_by_one": step_each, "company": step_all}
    interleave(sides, 1, turns=steps)  # warms up
    seconds = interleave(sides, repeats, turns=steps)
    examples = sum(len(batch) for step in batches for batch in step)
    return {
        **{
            name: {
                "seconds": spread([each / steps for each in own]),
                "examples_per_second": rates(examples, own),
                "loss": float(np.mean([run.training.mean_loss for run in runs])),
            }
            for (name, own), runs in zip(seconds.items(), (alone, together), strict=True)
        },
        "ratio": ratios(seconds["one_by_one"], seconds["company"]),
        "setting": {
            "tasks": [setting.task.name for setting in settings],
            "backbone": settings[0].source.title,
            "method": method,
            "ranks": list(ranks),
            "learning_rates": [setting.recipe.learning_rate for setting in settings],
            "batch_size": settings[0].recipe.batch_size,
            "steps": steps,
            "repeats": repeats,
            "threads": torch.get_num_threads(),
        },
    }


def _opened(setting: Setting) -> OurTraining:
    return OurTraining(setting, setting.task.documents("train"))


def _company(setting: Setting, runs: Sequence[OurTraining]) -> Company:
    frozen = {name: getattr(setting.recipe, name) for name in ("precision", "dropout", "attention_dropout")}
    carrier = build(setting.task, setting.source, "head", make_recipe("head", overrides=frozen), setting.seed)
    if not carrier.adapted.layers:
        raise UserError(
            f"the layers of {carrier.adapted.architecture.name} are not written out, so that its runs train one by one",
            "Choose a backbone of BERT's, RoBERTa's, ELECTRA's or DistilBERT's architecture",
            "--backbone",
        )
    company = Company(carrier.adapted, carrier.precision, at_once=len(runs))
    company.enter([_member(str(number), run) for number, run in enumerate(runs)])
    return company


def _member(name: str, run: OurTraining) -> Member:
    return Member(name, run.predictor.adapted, run.training, dict, "", lambda _error: None)
