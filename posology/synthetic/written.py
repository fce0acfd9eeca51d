"""Text together with what is marked in it: what the generated notes are made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Mention:
    """A marked stretch, `text[start:end]`.

    Attributes:
        kind: `problem`, `test`, `treatment`, `clinical_dept`, `evidential`, `occurrence`, `timex`, or the TYPE of an
            identifier as i2b2 2014 writes it, such as `DOCTOR`.
        attributes: what else is known of it, such as `assertion`, `polarity`, `modality`, `type`, `value`.
    """

    start: int
    end: int
    kind: str
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """A relation between two mentions, which are named by their positions in `Written.mentions`."""

    label: str
    first: int
    second: int


@dataclass(slots=True)
class Written:
    """A text that grows by being added to; mentions and links move along.

    Attributes:
        mentions: in the order they were added, which need not be the order of the text.
    """

    text: str = ""
    mentions: list[Mention] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    def add(self, other: str | Written, kind: str | None = None, **attributes: str) -> Written:
        """Appends a text; with `kind`, marks it as a mention of that kind.

        Returns:
            Itself, so that calls can follow one another.
        """
        start, before = len(self.text), len(self.mentions)
        addition = Written(other) if isinstance(other, str) else other
        self.text += addition.text
        self.mentions += [replace(one, start=one.start + start, end=one.end + start) for one in addition.mentions]
        self.links += [Link(one.label, one.first + before, one.second + before) for one in addition.links]
        if kind is not None:
            self.mentions.append(Mention(start, len(self.text), kind, attributes))
        return self
