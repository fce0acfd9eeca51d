"""What pre-training and distillation have alike: checks of numbers, checkpoints' settings, the record of what they made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from posology.engine.backbone import Source
from posology.engine.lineage import BACKBONE_RECORD, lineage
from posology.engine.precision import Precision
from posology.engine.recipe import Recipe
from posology.errors import UserError
from posology.pretrain.store import Store
from posology.tasks.prepared import PreparedTask

_LARGEST_RATE = 10


def check_numbers(
    positive: Mapping[str, float | None], not_negative: Mapping[str, float | None], held_out: float, max_length: int
) -> None:
    """Raises UserError where a number, by its option, is out of its range."""
    if positive["--epochs"] is not None and {**positive, **not_negative}["--steps"] is not None:
        raise UserError("both --epochs and --steps were given", "Give one of them", "--steps")
    for option, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{value:g} is no number above 0", "Give a positive number", option)
    for option, value in not_negative.items():
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{value:g} is no number from 0", "Give 0 or more", option)
    if not (positive["--learning-rate"] or 0) < _LARGEST_RATE:
        raise UserError(f"{positive['--learning-rate']:g} is far too much", "Give for example 1e-4", "--learning-rate")
    if not 0 < held_out < 1:
        raise UserError(f"{held_out:g} is no share of the documents", "Give a number between 0 and 1", "--held-out")
    if max_length < 8:
        raise UserError(f"{max_length} pieces leave no room for text", "Give 8 or more", "--max-length")


def learning(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that they have."""
    return recipe.model_dump(mode="json", include={"learning_rate", "batch_size", "max_length"})


def settings(
    store: Store, source: Source, recipe: Recipe, precision: Precision, *, held_out: float, seed: int
) -> dict[str, Any]:
    """What the weights at the end depend on, whatever is learnt from the corpus."""
    return {
        "data": store.facts["content"],
        "weights": source.fingerprint,
        "held_out": held_out,
        "seed": seed,
        **learning(recipe),
        "device": precision.device.type,
        "bf16": precision.bf16,
    }


def descent(source: Source) -> dict[str, Any]:
    """Where a backbone that is made from `source` comes from, and what its ancestors read of a user's own text.

    Returns:
        `parent` (SHA-256 of its weights), `parent_name`, `family`, and `ancestors`: for each that was made here, the next
        one first, `name`, `corpus` (fingerprint) and `evaluation` (the tasks whose documents were left out, or None).
    """
    try:
        before: Any = json.loads((source.folder / BACKBONE_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    ancestors = []
    if isinstance(before, dict):
        own = {"name": source.title, "corpus": before.get("corpus"), "evaluation": before.get("evaluation")}
        ancestors = [own, *before.get("ancestors", [])]
    return {
        "parent": source.fingerprint,
        "parent_name": source.title,
        "family": lineage(source).family,
        "ancestors": ancestors,
    }


def reading(store: Store, tasks: Sequence[PreparedTask]) -> dict[str, Any]:
    """What was read of the corpus, and what was left out of it."""
    facts = store.facts
    evaluation = facts["evaluation"]
    if evaluation is not None:
        evaluation = evaluation | {"tasks": [{"name": task.name, "fingerprint": task.fingerprint} for task in tasks]}
    return {
        "corpus": facts["fingerprint"],
        "documents": {
            "all": facts["documents"],
            "training": facts["training"]["documents"],
            "held_out": facts["held"]["documents"],
        },
        "dropped": facts["dropped"],
        "excluded": facts["excluded"],
        "evaluation": evaluation,
    }
