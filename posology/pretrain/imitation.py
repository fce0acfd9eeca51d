"""What a student learns from a teacher on unlabelled text: hidden states, relations between tokens, and guesses at words.

    hidden      1 - cosine + mean square of the difference, for each layer and token  (Sanh et al. 2019; Jiao et al. 2020)
    relations   Kullback-Leibler divergence of softmax(X X^T / sqrt(d)), X the queries, keys and values of the last layer,
                for each relation head and token                                      (Wang et al. 2021, MiniLMv2)
    logits      T^2 x Kullback-Leibler divergence of the guesses at hidden pieces     (Hinton et al. 2015)

Each is a mean over tokens (or hidden pieces) of the whole batch, so that cutting it into micro-batches changes nothing.
Dropout is off on both sides: what the teacher says is no label to overfit on, and each text says it anew for every token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from posology import console
from posology.engine.attention import Segments
from posology.engine.batch import cut
from posology.engine.encode import Window
from posology.pretrain.loop import Pretraining
from posology.pretrain.student import Seen, Watched

TOKEN_BUDGET = {"cpu": 2048, "cuda": 8192}
"""Pieces of a micro-batch: relations hold scores of all pairs of tokens, for both models."""
MOST_PIECES = 20_000
"""Held-out pieces that are read, about."""


class Losses(NamedTuple):
    """How much each loss counts, and at which temperature guesses are compared."""

    hidden: float = 1.0
    relations: float = 1.0
    logits: float = 1.0
    temperature: float = 2.0


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The sum over tokens for one layer; both are (tokens, width)."""
    squares = (student - teacher).square().mean(dim=1)
    return (1 - functional.cosine_similarity(student, teacher, dim=1) + squares).sum()


def relation_loss(student: torch.Tensor, teacher: torch.Tensor, segments: Segments, heads: int) -> torch.Tensor:
    """The sum over tokens of the mean over relation heads; each token is compared with those of its own text.

    Args:
        student, teacher: queries, or keys, or values, (tokens, width); widths may differ.
        segments: the borders of the texts.
        heads: relation heads, into which both widths are cut.
    """
    real = torch.from_numpy(np.arange(segments.lengths.max())[None] < segments.lengths[:, None]).to(student.device)
    ours, theirs = (_relations(values, segments, heads, real) for values in (student, teacher))
    divergence = (theirs.exp() * (theirs - ours)).sum(dim=3).mean(dim=1)  # (texts, length)
    return divergence[real].sum()


def _relations(values: torch.Tensor, segments: Segments, heads: int, real: torch.Tensor) -> torch.Tensor:
    """Logarithms of the relations, (texts, heads, length, length)."""
    place = np.minimum(np.arange(segments.lengths.max())[None], segments.lengths[:, None] - 1)
    rows = segments.tensor(segments.starts[:, None] + place)
    parts = values[rows].unflatten(2, (heads, -1)).transpose(1, 2)
    scores = parts @ parts.transpose(2, 3) / math.sqrt(parts.shape[3])
    # Not minus infinity: its difference would not be a number.
    return scores.masked_fill(~real[:, None, None, :], torch.finfo(scores.dtype).min / 2).log_softmax(dim=3)


def logit_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """The sum over hidden pieces; both are (pieces, vocabulary)."""
    ours, theirs = ((values / temperature).log_softmax(dim=1) for values in (student, teacher))
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum()


def relation_heads(teacher: int, student: int, heads: int) -> int:
    """As many relation heads as the teacher has heads, or the next smaller number that cuts both widths evenly."""
    return next(count for count in range(heads, 0, -1) if not teacher % count and not student % count)


class Imitation(Pretraining):
    """A student that learns from a teacher; see `Pretraining`.

    Args:
        student: changed in place.
        teacher: stays as it is; watched at the layers that the student's are to be like.
        losses: weights.
        projection: from the student's width to the teacher's, trained too; None where they are the same.
        rest: as for `Pretraining`.
    """

    def __init__(
        self,
        student: Watched,
        teacher: Watched,
        losses: Losses,
        projection: nn.Linear | None,
        *rest: Any,
        **named: Any,
    ):
        super().__init__(student, *rest, **named)
        self._token_budget = TOKEN_BUDGET[self._precision.device.type]
        self._student, self._teacher, self._losses, self._projection = student, teacher, losses, projection

    def sums(self, group: Sequence[Window]) -> tuple[dict[str, torch.Tensor], int]:
        """Each loss summed over the tokens (or hidden pieces) of a micro-batch, and its pieces."""
        batch = self._student.batch(group, self._precision.device)
        with self._precision.autocast():
            with torch.no_grad():
                wanted = self._teacher.see(batch)
            seen = self._student.see(batch)
        return self._compare(seen, wanted), batch.tokens

    def _compare(self, seen: Seen, wanted: Seen) -> dict[str, torch.Tensor]:
        found, weights = {}, self._losses
        if weights.hidden:
            own = [values if self._projection is None else self._projection(values) for values in seen.hidden]
            layers = [hidden_loss(*pair) for pair in zip(own, wanted.hidden, strict=True)]
            found["hidden"] = torch.stack(layers).mean()
        if weights.relations:
            heads = relation_heads(
                wanted.relations[0].shape[1], seen.relations[0].shape[1], self._teacher.base.config.num_attention_heads
            )
            kinds = zip(seen.relations, wanted.relations, strict=True)
            each = [relation_loss(*pair, seen.segments, heads) for pair in kinds]
            found["relations"] = torch.stack(each).mean()
        if weights.logits and seen.logits is not None and wanted.logits is not None:
            found["logits"] = logit_loss(seen.logits, wanted.logits, weights.temperature)
        return found

    def _scales(self, windows: Sequence[Window]) -> dict[str, int]:
        tokens = sum(len(window.ids) for window in windows)
        return {"hidden": tokens, "relations": tokens, "logits": sum(len(window.words) for window in windows)}

    def _backward(self, windows: list[Window]) -> tuple[float, int, int]:
        units = [[window] for window in windows if len(window.words)]
        scales = self._scales([window for (window,) in units])
        total, tokens = 0.0, 0
        for group in cut(units, self._token_budget, padded=False):
            sums, own = self.sums(group)
            tokens += own
            parts = [getattr(self._losses, name) * value / max(1, scales[name]) for name, value in sums.items()]
            loss = torch.stack(parts).sum()
            loss.backward()
            total += loss.item()
        return total, tokens, scales["logits"]

    def measure(self, windows: Sequence[Window], description: str) -> dict[str, float]:
        """The mean of each loss on some texts."""
        found: dict[str, float] = {}
        with console.progress(description, len(windows)) as advance, torch.no_grad():
            for group in cut([[window] for window in windows], self._token_budget, padded=False):
                for name, value in self.sums(group)[0].items():
                    found[name] = found.get(name, 0.0) + float(value)
                advance(len(group))
        scales = self._scales(windows)
        return {name: value / max(1, scales[name]) for name, value in found.items()}


def projection_for(student: int, teacher: int) -> nn.Linear | None:
    """From the student's width to the teacher's, starting as the identity on what both have; None where they are equal."""
    if student == teacher:
        return None
    found = nn.Linear(student, teacher, bias=False)
    nn.init.eye_(found.weight)
    return found
