"""The one shape every reader turns its format into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Span(NamedTuple):
    """An annotated stretch of a document's text: `text[start:end]`, offsets in characters from 0, end exclusive."""

    start: int
    end: int
    label: str


@dataclass(slots=True)
class Document:
    """A note or a sentence with what is known about it.

    Attributes:
        id: unique within its corpus.
        text: what the model reads.
        group: the unit that splits never cut through, usually the patient; the id itself where none is known.
        label: the class, for sequence classification.
        text_pair: a second text, for tasks over pairs.
        words: `(start, end)` of each word in `text`, in order, not overlapping; the unit of evaluation in
            token classification.
        spans: annotations, for token classification.
        tags: the tag of each word, where a published protocol gives tags that no spans could give (an I- that continues
            nothing); None where the spans say it all.
        split: `train`, `validation` or `test` where the corpus gives one.
        place: where it was read (`file:line` or `file, row N`), for messages.
    """

    id: str
    text: str
    group: str = ""
    label: str | None = None
    text_pair: str | None = None
    words: list[tuple[int, int]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    tags: list[str] | None = None
    split: str | None = None
    place: str = ""

    def __post_init__(self) -> None:
        self.group = self.group or self.id
