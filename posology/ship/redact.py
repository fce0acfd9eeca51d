"""De-identification: the stretches of a text that a tagger takes for identifiers, replaced.

Nothing else of a text changes. `posology.ship.surrogates` makes realistic replacements, `posology.ship.recall` says what a
recall costs, and `posology.ship.redaction` is the command over files.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.engine.model import Model
from posology.errors import UserError
from posology.ship.surrogates import Surrogates

Style = Literal["tags", "asterisks", "surrogates"]


class Found(NamedTuple):
    """An identifier, `text[start:end]` of the text as it was given, and the mean probability of its words' tags."""

    start: int
    end: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Redacted:
    """A document without its identifiers.

    Attributes:
        id: of the document.
        text: what may be given away.
        spans: what was replaced, in order, in characters of the text as it was given.
        counts: how many there are by label.
        offsets: for each of `spans` (start, end, start in `text`, end in `text`); between them texts are equal.
        as_tags: how many, by label, became a tag since no surrogate could be made; empty in other styles.
    """

    id: str
    text: str
    spans: list[Found]
    counts: dict[str, int]
    offsets: list[tuple[int, int, int, int]]
    as_tags: dict[str, int]


class Redactor:
    """Replaces identifiers in documents.

    Args:
        model: a tagger whose labels are types of identifiers, as trained on `i2b2-2014-ner`.
        style: `tags` ([DATE]), `asterisks` (one for each character; line breaks stay), or `surrogates`.
        recall_offset: how much the logit of "no identifier" is lowered, from 0: more is found, rightly or not. What it
            takes to reach a recall, and what that costs, see `posology.ship.recall.fit`.
        key: the secret that surrogates follow from, so that several jobs agree; random if None.

    Raises:
        UserError: the model is no tagger, or a setting makes no sense.
    """

    def __init__(self, model: Model, *, style: Style = "tags", recall_offset: float = 0.0, key: bytes | None = None):
        if model.kind != "token-classification":
            raise UserError(
                "classifies texts and finds no identifiers in them",
                "Name a tagger, such as one trained on `posology prepare i2b2-2014-ner`",
                "the artifact",
            )
        if style not in get_args(Style):
            raise UserError(f"there is no style {style!r}", f"Name one of {', '.join(get_args(Style))}", "--style")
        if not recall_offset >= 0:
            raise UserError(f"{recall_offset} would find less than the model does", "Give 0 or more", "recall_offset")
        self.model, self.style, self.recall_offset = model, style, recall_offset
        self._surrogates = Surrogates(key if key is not None else secrets.token_bytes(32))

    def redact(self, documents: Sequence[Document]) -> list[Redacted]:
        """Reads documents and replaces what is found.

        Args:
            documents: `group` is the patient, within which surrogates agree; get words where they have none.

        Raises:
            UserError: the model reads the beginning of long texts only.
        """
        for document in documents:
            document.words = document.words or words_of(document.text)
        answers = self.model.answer(documents, "redacting")
        check_covered(answers.coverage)
        return self.from_logits(answers.documents, answers.logits)

    def from_logits(self, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> list[Redacted]:
        """Replaces what logits that are known already say.

        Args:
            documents: with words.
            logits: for each (words, tags), as `Model.answer` gives them when it has read all of the text.
        """
        decoded = self.model.spans(documents, logits, self.recall_offset)
        return [
            self.replace(document, [Found(*span, score) for span, score in zip(spans, scores, strict=True)])
            for document, (spans, scores) in zip(documents, decoded, strict=True)
        ]

    def replace(self, document: Document, spans: Sequence[Found]) -> Redacted:
        """Replaces given spans of a document.

        Args:
            document: only its id, group and text are read.
            spans: in order, not overlapping, not empty.
        """
        parts: list[str] = []
        offsets: list[tuple[int, int, int, int]] = []
        as_tags: Counter[str] = Counter()
        read = written = 0
        for start, end, label, _ in spans:
            if start < read or end <= start:
                raise ValueError(f"{document.id}: spans overlap, or one is empty, at {start}")
            new = self._replacement(document, start, end, label)
            if new is None:
                as_tags[label] += 1
                new = f"[{label}]"
            parts += [document.text[read:start], new]
            begin = written + start - read
            offsets.append((start, end, begin, begin + len(new)))
            read, written = end, begin + len(new)
        text = "".join([*parts, document.text[read:]])
        counts = Counter(span.label for span in spans)
        return Redacted(document.id, text, list(spans), dict(counts), offsets, dict(as_tags))

    def _replacement(self, document: Document, start: int, end: int, label: str) -> str | None:
        text = document.text[start:end]
        if self.style == "tags":
            return f"[{label}]"
        if self.style == "asterisks":
            return "".join(character if character in "\r\n" else "*" for character in text)
        return self._surrogates.replace(label, text, document.group)


def check_covered(coverage: float) -> None:
    """Raises UserError where a part of the text was not read: identifiers would stay in it."""
    if coverage < 1:
        raise UserError(
            f"only {coverage:.1%} of the text was read, and what is not read is not redacted",
            "Train the tagger with long_text=window",
            "the artifact",
        )
