"""Held-out perplexity: how well hidden words of documents that were not trained on are guessed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from posology import console
from posology.engine.batch import cut
from posology.engine.encode import Window
from posology.engine.precision import Precision
from posology.pretrain.masking import HELD_OUT, Masker, Whole
from posology.pretrain.mlm import MaskedModel
from posology.pretrain.order import Order
from posology.pretrain.store import Texts

MOST_PIECES = 200_000
"""Held-out pieces that are read: documents are drawn at random, each read whole, until there are so many."""
_LEVEL = 0.95


@dataclass(frozen=True)
class HeldOut:
    """Losses on hidden pieces of held-out documents; the same pieces are hidden each time.

    Attributes:
        sums: (documents,) summed cross entropy of each document's hidden pieces.
        counts: (documents,) how many these are.
    """

    sums: np.ndarray
    counts: np.ndarray

    @property
    def perplexity(self) -> float:
        """exp of the mean cross entropy of all hidden pieces."""
        return _exp(float(self.sums.sum() / self.counts.sum()))

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Perplexity with 95 % intervals over documents: `token_weighted` and the `median` of documents."""
        return {"token_weighted": _ratio(self.sums, self.counts), "median": _median(self.sums / self.counts)}


def change(before: HeldOut, after: HeldOut) -> dict[str, float | None]:
    """Perplexity after over perplexity before, on the same pieces, with a paired 95 % interval over documents."""
    return _ratio(after.sums - before.sums, before.counts)


def held_out_windows(texts: Texts, masker: Masker | Whole, most: int = MOST_PIECES) -> list[list[Window]]:
    """The texts of randomly drawn documents, the same words hidden each time; texts and documents without any left out.

    Args:
        texts: those held out.
        masker: hides words.
        most: pieces; the last document may go beyond.
    """
    borders, found, pieces = texts.documents(), [], 0
    for document in Order(len(borders) - 1, masker.seed, 0)(np.arange(len(borders) - 1)):
        own = []
        for number in range(int(borders[document]), int(borders[document + 1])):
            ids, starts, _ = texts.read(number)
            window = masker.window(number, ids, starts, HELD_OUT)
            if len(window.words):
                own.append(window)
                pieces += len(ids)
        if own:
            found.append(own)
        if pieces >= most:
            break
    return found


def measure(
    model: MaskedModel, documents: list[list[Window]], precision: Precision, token_budget: int, description: str
) -> HeldOut:
    """The losses of a model as it is, without dropout."""
    owner = {id(window): number for number, own in enumerate(documents) for window in own}
    sums, counts = np.zeros(len(documents)), np.zeros(len(documents))
    units = [[window] for own in documents for window in own]
    training = model.module.training
    model.module.eval()
    try:
        with console.progress(description, len(units)) as advance, torch.no_grad():
            for group in _groups(units, token_budget):
                batch = model.batch(group, precision.device)
                with precision.autocast():
                    losses = model.losses(batch).double().cpu().numpy()
                sizes = [len(window.words) for window in group]
                for window, own in zip(group, np.split(losses, np.cumsum(sizes)[:-1]), strict=True):
                    sums[owner[id(window)]] += own.sum()
                    counts[owner[id(window)]] += len(own)
                advance(len(group))
    finally:
        model.module.train(training)
    return HeldOut(sums, counts)


def _groups(units: list[list[Window]], token_budget: int) -> Iterator[list[Window]]:
    yield from cut(units, token_budget, padded=False)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> dict[str, float | None]:
    """exp of a ratio of sums over documents, with an interval by linearisation (Cochran 1977, section 6.5)."""
    from scipy import stats

    value, number = float(sums.sum() / counts.sum()), len(sums)
    if number < 2:
        return {"value": _exp(value), "low": None, "high": None}
    residuals = sums - value * counts
    error = math.sqrt(number / (number - 1) * float((residuals**2).sum())) / float(counts.sum())
    half = float(stats.t.ppf((1 + _LEVEL) / 2, number - 1)) * error
    return {"value": _exp(value), "low": _exp(value - half), "high": _exp(value + half)}


def _median(means: np.ndarray) -> dict[str, float | None]:
    """exp of the median, with the interval between order statistics that holds it with 95 % probability or more."""
    from scipy import stats

    ordered = np.sort(means)
    rank = int(stats.binom.ppf((1 - _LEVEL) / 2, len(ordered), 0.5))
    value = _exp(float(np.median(ordered)))
    if rank < 1:
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": _exp(float(ordered[rank - 1])), "high": _exp(float(ordered[-rank]))}


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
