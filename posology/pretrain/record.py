"""What pre-training and distillation say alike: in their checkpoints' settings, and in the record of what they made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posology.engine.backbone import Source
from posology.engine.precision import Precision
from posology.engine.recipe import Recipe
from posology.pretrain.store import Store
from posology.tasks.prepared import PreparedTask


def learning(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that they have."""
    return recipe.model_dump(mode="json", include={"learning_rate", "batch_size", "max_length"})


def settings(
    store: Store, source: Source, recipe: Recipe, precision: Precision, *, held_out: float, seed: int
) -> dict[str, Any]:
    """What the weights at the end depend on, whatever is learnt from the corpus."""
    return {
        "data": store.facts["fingerprint"],
        "excluded": store.facts["excluded"],
        "weights": source.fingerprint,
        "held_out": held_out,
        "seed": seed,
        **learning(recipe),
        "device": precision.device.type,
        "bf16": precision.bf16,
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
