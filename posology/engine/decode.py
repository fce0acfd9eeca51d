"""Between annotations, tags and logits, and from logits to answers: classes with probabilities, well-formed entities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from posology.corpus.document import Document, Span
from posology.corpus.tags import loose_spans, spans_to_tags


def tags_of(labels: Sequence[str]) -> list[str]:
    """The IOB2 tags that a tagger over these entity types has, in the order of its outputs."""
    return ["O", *(f"{letter}-{label}" for label in labels for letter in "BI")]


def word_tags(document: Document) -> list[str]:
    """The tag that each word of a document is learnt with: the published one, or the one that its spans give."""
    return document.tags if document.tags is not None else spans_to_tags(document.words, document.spans)


def chunks(tags: Sequence[str]) -> list[Span]:
    """Entities of a tag sequence as conlleval sees them (see `loose_spans`), in positions instead of characters."""
    return loose_spans([(position, position + 1) for position in range(len(tags))], tags)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities along the last axis; a temperature above 1 makes them less sure."""
    if temperature != 1.0:
        logits = logits / temperature
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def best_tags(logits: np.ndarray) -> np.ndarray:
    """The most probable tag sequence in which I- only continues an entity of its own type (Viterbi).

    Args:
        logits: (words, tags) in the order of `tags_of`; rows of NaN are words the tokenizer dropped: they
            continue the entity around them and are O elsewhere.

    Returns:
        (words,) indices of tags.
    """
    count, width = logits.shape
    result = np.zeros(count, np.int64)
    seen = np.flatnonzero(~np.isnan(logits[:, 0])) if count else np.empty(0, np.int64)
    if len(seen):
        result[seen] = _viterbi(logits[seen].astype(np.float64), _allowed(width))
    for position in np.flatnonzero(np.isnan(logits[:, 0])) if count else ():
        later = seen[seen > position]
        following = result[later[0]] if len(later) else 0
        result[position] = following if following and following % 2 == 0 else 0
    return result


def _allowed(width: int) -> np.ndarray:
    """(tags, tags) whether the second may follow the first: I-x (even index) only after B-x or I-x."""
    allowed = np.ones((width, width), bool)
    for inside in range(2, width, 2):
        allowed[:, inside] = False
        allowed[[inside - 1, inside], inside] = True
    return allowed


def _viterbi(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    greedy = logits.argmax(axis=1)
    starts_inside = greedy[0] > 0 and greedy[0] % 2 == 0
    if not starts_inside and allowed[greedy[:-1], greedy[1:]].all():
        return greedy  # the best of all sequences is allowed, so it is the best of the allowed ones
    penalty = np.where(allowed, 0.0, -np.inf)
    score = logits[0].copy()
    score[2::2] = -np.inf
    back = np.zeros(logits.shape, np.int64)
    for step in range(1, len(logits)):
        options = score[:, None] + penalty
        back[step] = options.argmax(axis=0)
        score = options[back[step], np.arange(len(score))] + logits[step]
    path = np.empty(len(logits), np.int64)
    path[-1] = score.argmax()
    for step in range(len(logits) - 1, 0, -1):
        path[step - 1] = back[step, path[step]]
    return path


def entities(
    words: Sequence[tuple[int, int]],
    logits: np.ndarray,
    labels: Sequence[str],
    temperature: float = 1.0,
    outside_offset: float = 0.0,
) -> tuple[list[Span], list[float]]:
    """Entities as character spans, with scores.

    Args:
        words: (start, end) of each word.
        logits: (words, tags).
        labels: entity types.
        temperature: of the scores; it changes no entity.
        outside_offset: what the logit of O is lowered by to find more entities; it changes no score.

    Returns:
        Spans, and for each the mean probability of its words' tags.
    """
    lowered = np.zeros(logits.shape[1], logits.dtype)
    lowered[0] = outside_offset
    chosen = best_tags(logits - lowered if outside_offset else logits)
    probabilities = softmax(np.nan_to_num(logits), temperature)
    dropped = np.isnan(logits[:, 0]) if len(logits) else np.empty(0, bool)
    spans: list[Span] = []
    scores: list[float] = []
    position = 0
    while position < len(chosen):
        if chosen[position] % 2 == 0:
            position += 1
            continue
        end = position + 1
        while end < len(chosen) and chosen[end] == chosen[position] + 1:
            end += 1
        inside = [index for index in range(position, end) if not dropped[index]]
        spans.append(Span(words[position][0], words[end - 1][1], labels[(chosen[position] - 1) // 2]))
        scores.append(float(probabilities[inside, chosen[inside]].mean()))
        position = end
    return spans, scores
