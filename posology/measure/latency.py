"""How fast a model answers: one document at a time, and many at once.

What is timed goes from a document's text to its logits, tokenising included, as `posology predict` and `serve` do it;
the model is loaded and has answered before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from posology.corpus.document import Document
from posology.engine.model import Model
from posology.engine.predictor import Predictor

MOST = 200
"""Documents that latency is measured on."""
_TRIAL = 0.2
"""The share of the time for many documents that finds out how many there is time for."""


def latencies(model: Model, documents: Sequence[Document], unit: str = "word", *, seconds: float = 2.0) -> np.ndarray:
    """Seconds of documents that are answered one at a time.

    Args:
        model: as it is used, merged for example.
        documents: at least one; each is answered once, in an order that is drawn, so that those which there is time
            for stand for all.
        unit: of the task, for taggers.
        seconds: after which no further one is begun; one document is answered in any case.

    Returns:
        (documents,), those which there was time for, at most `MOST`.
    """
    order = np.random.default_rng(0).permutation(len(documents))[:MOST]
    model.answer([documents[order[0]]], unit=unit)  # warms up
    found: list[float] = []
    begin = time.perf_counter()
    for position in order:
        before = time.perf_counter()
        model.answer([documents[position]], unit=unit)
        after = time.perf_counter()
        found.append(after - before)
        if after - begin > seconds:
            break
    return np.array(found)


def percentiles(found: np.ndarray) -> dict[str, float]:
    """`p50`, `p95` and `p99` in milliseconds of what `latencies` gives, interpolated linearly."""
    values = np.quantile(found, (0.5, 0.95, 0.99)) * 1000
    return dict(zip(("p50", "p95", "p99"), values.tolist(), strict=True))


def tokens_per_second(
    predictor: Predictor, documents: Sequence[Document], unit: str = "word", *, each: float, seconds: float = 2.0
) -> float:
    """Real tokens, special ones included, that a model reads in a second where it may read many documents at once.

    Args:
        predictor: as it is used.
        documents: at least one, in an order that is drawn.
        unit: of the task, for taggers.
        each: seconds of one document by itself, about.
        seconds: about how long it may take: as many documents are read as there is time for.
    """
    order = np.random.default_rng(1).permutation(len(documents))
    drawn = [documents[position] for position in order]

    def timed(count: int) -> float:
        begin = time.perf_counter()
        predictor.answer(drawn[:count], unit=unit)
        return time.perf_counter() - begin

    few = min(len(drawn), max(1, int(_TRIAL * seconds / each)))
    count = min(len(drawn), max(few, int((1 - _TRIAL) * seconds / (timed(few) / few))))
    spent = timed(count)
    encoded = predictor.encoder.encode(drawn[:count], unit)
    return sum(len(window.ids) for own in encoded.windows for window in own) / spent
