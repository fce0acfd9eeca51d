"""What the builder of a clinical task hands over to be written: documents by split, and how they came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from posology.corpus.document import Document

Protocol = Literal["standard", "paper"]


@dataclass
class Flow:
    """Who is in, who is left out for what reason, and who stays: the numbers of a CONSORT diagram.

    Attributes:
        unit: what is counted, such as `admissions`.
        entered: how many there were to begin with.
        steps: `(reason, excluded)` in the order of exclusion.
    """

    unit: str
    entered: int
    steps: list[tuple[str, int]] = field(default_factory=list)

    def exclude(self, reason: str, number: int) -> None:
        """Notes that `number` were left out; zeros are kept, because they say that somebody looked."""
        if not 0 <= number <= self.left:
            raise ValueError(f"{number} of {self.left} {self.unit} cannot be excluded")
        self.steps.append((reason, number))

    @property
    def left(self) -> int:
        return self.entered - sum(number for _, number in self.steps)

    def as_json(self) -> dict[str, Any]:
        """The flow as `task.json` keeps it."""
        left, steps = self.entered, []
        for reason, number in self.steps:
            left -= number
            steps.append({"reason": reason, "excluded": number, "left": left})
        return {"unit": self.unit, "entered": self.entered, "steps": steps, "left": left}


@dataclass
class Built:
    """A clinical task before it is written.

    Attributes:
        kind: of the task.
        labels: in the order of the model's outputs.
        splits: documents of train, validation and test.
        metric: chooses checkpoints.
        flow: exclusions, where there were any to count.
        counts: what else was counted on the way, such as leakage phrases removed.
        defects: what the published protocol gets wrong and is reproduced, one sentence each.
        remarks: further sentences for the task's card: how splits were made, what differs from the publication.
        problems: `(place, what is wrong)` of input that was read leniently; no text of notes.
        files: the files read, for the record of the source.
        unit: what evaluation counts: words, or the tokenizer's pieces as the paper did.
    """

    kind: Literal["sequence-classification", "token-classification"]
    labels: Sequence[str]
    splits: dict[str, list[Document]]
    metric: str
    flow: Flow | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    defects: Sequence[str] = ()
    remarks: Sequence[str] = ()
    problems: Sequence[tuple[str, str]] = ()
    files: Sequence[str] = ()
    unit: Literal["word", "piece"] = "word"
