"""What all sides of a measurement share: task, backbone, method, recipe, and the documents of every round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from posology.engine.backbone import Source, load_config, resolve
from posology.engine.methods import METHODS, check_method
from posology.engine.recipe import Recipe, make_recipe
from posology.errors import UserError
from posology.seed import check_seed
from posology.tasks.prepared import PreparedTask

# Trainer reads the beginning of a text, at the first position, and knows no class weights; operations are counted on
# weights as they are.
_FIXED = {"long_text": "truncate", "pooling": "first", "class_weights": "none", "quantise": None}


@dataclass(frozen=True)
class Setting:
    """One cell of a comparison; can be pickled, and then opens its files anew.

    Attributes:
        data: folder of a prepared task.
        backbone: catalogue name, folder, or `NAME:K`.
        method: a key of `METHODS`.
        recipe: of all sides.
        seed: of initialisation, order and dropout.
    """

    data: Path
    backbone: str
    method: str
    recipe: Recipe
    seed: int

    @cached_property
    def task(self) -> PreparedTask:
        """The prepared task."""
        return PreparedTask.open(self.data)

    @cached_property
    def source(self) -> Source:
        """Where the backbone is."""
        return resolve(self.backbone)

    def facts(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "task": self.task.name,
            "backbone": self.source.title,
            "method": self.method,
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": self.seed,
        }


def make_setting(
    data: Path, backbone: str, method: str, recipe: str, overrides: Mapping[str, Any], max_length: int | None, seed: int
) -> Setting:
    """The setting that a bench is asked for: batches of 32 and truncated texts, as the paper has them.

    Raises:
        UserError: something unknown, or a field of the recipe that cannot differ here.
    """
    check_seed(seed)
    check_method(method)
    if method not in METHODS:
        raise UserError(f"{method} has no backbone to measure", f"Choose one of {', '.join(METHODS)}", "--method")
    if fixed := sorted(set(overrides) & set(_FIXED)):
        raise UserError(
            f"{fixed[0]} is {str(_FIXED[fixed[0]]).lower()} in every bench, so that all sides do the same",
            "Leave it out",
            "--set",
        )
    PreparedTask.open(data)
    values = {"batch_size": 32, **overrides, **_FIXED}
    if max_length is not None:
        values["max_length"] = max_length
    chosen = make_recipe(method, recipe, values, width=load_config(resolve(backbone)).hidden_size)
    return Setting(Path(data), backbone, method, chosen, seed)


@dataclass(frozen=True)
class Plan:
    """The documents of a measurement.

    Attributes:
        rounds: rounds of batches in random order, [round][batch] -> (batch size,) positions of documents.
        grouped: the same documents, grouped by length.
        trial: half a batch of ordinary length: enough to warm up on, and to choose settings with.
    """

    rounds: list[list[np.ndarray]]
    grouped: list[list[np.ndarray]]
    trial: np.ndarray

    @property
    def documents(self) -> np.ndarray:
        """The positions of the documents of a round."""
        return np.concatenate(self.rounds[0])


def make_plan(lengths: Sequence[int], batch_size: int, steps: int, repeats: int, seed: int) -> Plan:
    """Draws documents so that each side trains on the same ones in each round, whatever the order it wants them in.

    The whole training set is grouped as Trainer's `group_by_length` does it, which gives batches of like lengths; of
    these, `steps` are taken from all over the range of lengths. They are the peer's grouped batches, exactly as
    well-filled as in a whole epoch. Shuffled over all of them, the same documents make the random batches.

    Args:
        lengths: pieces of each training document.
        batch_size: documents in a batch.
        steps: batches in a round; fewer where there are not so many documents.
        repeats: rounds.
        seed: of the draw.

    Raises:
        UserError: not one batch can be filled.
    """
    order = np.array(
        get_length_grouped_indices(list(lengths), batch_size, generator=torch.Generator().manual_seed(seed))
    )
    count = len(order) // batch_size
    if count < 1:
        raise UserError(
            f"{len(order)} training documents do not fill one batch of {batch_size}", "Add --set batch_size=8", "--data"
        )
    whole = sorted(
        (order[start * batch_size : (start + 1) * batch_size] for start in range(count)),
        key=lambda batch: float(np.mean([lengths[index] for index in batch])),
    )
    steps = min(steps, count)
    chosen = [whole[int((step + 0.5) * count / steps)] for step in range(steps)]
    pool = np.concatenate(chosen)
    draw = np.random.default_rng(seed)
    return Plan(
        [np.split(draw.permutation(pool), steps) for _ in range(repeats)],
        [[chosen[index] for index in draw.permutation(steps)] for _ in range(repeats)],
        chosen[steps // 2][: max(1, batch_size // 2)],
    )
