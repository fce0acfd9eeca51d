"""Between words, tags of words and character spans: the span algebra that reading, training and scoring share."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence

import regex

from posology.corpus.document import Span
from posology.errors import UserError

SCHEMES = ("iob1", "iob2", "bioes")
UNNAMED = "Entity"
"""The label of entities in files whose tags are bare letters (`B`, `I`, `O`)."""

_WORD = regex.compile(r"[\p{L}\p{M}]+|\p{N}+|[^\s\x1c-\x1f]")  # as str.isspace, which counts \x1c-\x1f too
_SAME_LETTER = {"L": "E", "U": "S", "M": "I", "W": "S"}  # BILOU and BMEWO are BIOES with other letters


class TagError(ValueError):
    """A tag that its scheme forbids.

    Attributes:
        index: its position in the sequence, from 0.
    """

    def __init__(self, index: int, reason: str):
        self.index = index
        super().__init__(reason)


def words_of(text: str) -> list[tuple[int, int]]:
    """Words of a text that comes without: runs of letters with their combining marks, runs of digits, and every
    other character that is no white space alone.

    Returns:
        `(start, end)` of each word in characters, in order, not overlapping.
    """
    return [match.span() for match in _WORD.finditer(text)]


def spans_to_tags(words: Sequence[tuple[int, int]], spans: Iterable[Span]) -> list[str]:
    """The IOB2 tag of each word.

    A span covers every word it touches. Of spans that share a word the one with most words wins, then the one
    that starts earlier; the loser is dropped as a whole.
    """
    tags = ["O"] * len(words)
    for first, last, label in _assign(words, spans):
        tags[first:last] = [f"B-{label}"] + [f"I-{label}"] * (last - first - 1)
    return tags


def tags_to_spans(words: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[Span]:
    """The entities of strict IOB2 (seqeval's `mode="strict", scheme=IOB2`): only B- begins one, an I- continues only
    an entity of its own label, and any other I- is no entity."""
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words but {len(tags)} tags")
    spans: list[Span] = []
    continues = "O"
    for (start, end), tag in zip(words, tags, strict=True):
        if tag.startswith("B-"):
            spans.append(Span(start, end, tag[2:]))
            continues = f"I-{tag[2:]}"
        elif tag == continues != "O":
            spans[-1] = spans[-1]._replace(end=end)
        else:
            continues = "O"
    return spans


def loose_spans(words: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[Span]:
    """The entities that conlleval and seqeval's default mode see: an I- that continues nothing begins an entity too."""
    return tags_to_spans(words, repair(tags)[0])


def snap(words: Sequence[tuple[int, int]], spans: Iterable[Span]) -> list[Span]:
    """The spans as words see them, which is what evaluation compares: stretched to whole words, without those that
    touch no word or lose against an overlapping one (as in `spans_to_tags`), in order."""
    return [Span(words[first][0], words[last - 1][1], label) for first, last, label in _assign(words, spans)]


def covering_words(words: Sequence[tuple[int, int]], spans: Iterable[Span]) -> list[Span]:
    """The spans that touch a word, in their order; the others stand on white space only."""
    starts, ends = [start for start, _ in words], [end for _, end in words]
    return [span for span in spans if bisect_right(ends, span.start) < bisect_left(starts, span.end)]


def _assign(words: Sequence[tuple[int, int]], spans: Iterable[Span]) -> list[tuple[int, int, str]]:
    """Spans as `(first word, last word exclusive, label)` that share no word, in order."""
    starts, ends = [start for start, _ in words], [end for _, end in words]
    touching = []
    for span in spans:
        first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
        if first < last and span.start < span.end:
            # After the two rules, offsets and label decide, so that the order of the input never does.
            touching.append((first - last, first, span.start, -span.end, span.label, last))
    taken = [False] * len(words)
    kept = []
    for _, first, _, _, label, last in sorted(touching):
        if not any(taken[first:last]):
            taken[first:last] = [True] * (last - first)
            kept.append((first, last, label))
    return sorted(kept)


def first_overlap(spans: Iterable[Span]) -> tuple[Span, Span] | None:
    """The first two spans that share a character, or None."""
    last: Span | None = None
    for span in sorted(spans):
        if last is not None and span.start < last.end:
            return last, span
        last = span
    return None


def keep_longest(spans: Iterable[Span]) -> list[Span]:
    """Of spans that share a character only the longest, then the one that starts earlier; in order."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, span)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept)


def decode(tags: Sequence[str], scheme: str) -> list[tuple[int, int, str]]:
    """Entities of a tag sequence read from a file.

    `iob2`: B- begins every entity. `iob1`: an I- after O or after another label begins one too. `bioes`: B-...E- or
    S- alone; BILOU (L, U) and BMEWO (M, W) are read as the same. Bare letters without a label give `UNNAMED`.

    Returns:
        `(first word, last word exclusive, label)` in order.

    Raises:
        TagError: a tag that is no tag or that the scheme forbids where it stands.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r} is none of {', '.join(SCHEMES)}")
    entities: list[tuple[int, int, str]] = []
    open_label: str | None = None  # the label of the entity that the next tag may continue
    for index, tag in enumerate(tags):
        prefix, label = _split_tag(tag, index)
        if scheme == "bioes":
            if open_label is not None and (prefix not in "IE" or label != open_label):
                raise TagError(index, "follows an entity of which the end (E- or L-) is missing")
            if prefix in "IE" and open_label is None:
                raise TagError(index, f"{prefix}- has no B- before it")
        elif prefix in "ES":
            raise TagError(index, f"prefix {prefix}- is none of scheme {scheme}")
        if prefix in "BS" or (prefix == "I" and scheme == "iob1" and label != open_label):
            entities.append((index, index + 1, label))
        elif prefix in "IE" and label == open_label:
            entities[-1] = (entities[-1][0], index + 1, label)
        elif prefix == "I":
            raise TagError(index, "I- has no B- before it")
        open_label = label if prefix in "BI" else None
    if scheme == "bioes" and open_label is not None:
        raise TagError(len(tags) - 1, "is the last tag, and the end (E- or L-) of its entity is missing")
    return entities


def repair(tags: Sequence[str]) -> tuple[list[str], int]:
    """IOB2 tags in which every I- that continues nothing has become a B-, and how many were changed.

    Raises:
        TagError: a tag that is no tag.
    """
    mended, changed, open_label = [], 0, None
    for index, tag in enumerate(tags):
        prefix, label = _split_tag(tag, index)
        dangling = prefix == "I" and label != open_label
        mended.append("B" + tag[1:] if dangling else tag)
        changed += dangling
        open_label = label if prefix in "BI" else None
    return mended, changed


def detect_scheme(
    sequences: Iterable[Sequence[str]], place: Callable[[int, int], object] = lambda sequence, index: None
) -> str:
    """The scheme that a corpus is tagged with.

    `bioes` if any tag has a letter of its own (E, S, L, U, M, W); `iob2` if no I- begins an entity; `iob1` if B- stands
    only directly after an entity of its own label.

    Args:
        sequences: the tags of every sentence.
        place: gives `file:line` of tag `index` of sequence `sequence`, for messages.

    Raises:
        UserError: it is none of these, naming the first I- that has no B-.
    """
    dangling: tuple[int, int] | None = None
    iob1 = True
    for number, tags in enumerate(sequences):
        open_label = None
        for index, tag in enumerate(tags):
            try:
                prefix, label = _split_tag(tag, index)
            except TagError as error:
                raise tag_error(error, place(number, index)) from None
            if prefix in "ES" or tag[0] == "M":
                return "bioes"
            if prefix == "I" and label != open_label and dangling is None:
                dangling = number, index
            iob1 = iob1 and (prefix != "B" or label == open_label)
            open_label = label if prefix in "BI" else None
    if dangling is None:
        return "iob2"
    if iob1:
        return "iob1"
    raise UserError(
        "this I- has no B- before it, but elsewhere B- begins entities, so the tags are neither IOB1 nor IOB2",
        "Mend the tags, add --scheme iob1 if they are meant so, or add --repair to read such an I- as B-",
        place(*dangling),
    )


def tag_error(error: TagError, place: object) -> UserError:
    """The message for a tag that `decode` refused."""
    return UserError(
        f"tag {error}",
        "Mend the tag, name the scheme of the file with --scheme iob1, iob2 or bioes, or, if an I- should begin an "
        "entity, add --repair",
        place,
    )


def _split_tag(tag: str, index: int) -> tuple[str, str]:
    """A tag as its letter among B, I, E, S, O and its label."""
    if tag == "O":
        return "O", ""
    letter, _, label = tag.partition("-")
    letter = _SAME_LETTER.get(letter, letter)
    if letter not in ("B", "I", "E", "S") or tag.endswith("-"):
        raise TagError(index, "is not O or one of B, I, E, S, L, U, M, W followed by - and a label")
    return letter, label or UNNAMED
