"""Leaks: the same text or the same group (patient) in two splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

from posology.console import say
from posology.corpus.document import Document
from posology.corpus.wording import wording
from posology.errors import UserError
from posology.tasks.prepared import SPLITS

LeakRule = Literal["refuse", "allow", "drop"]


def text_key(document: Document) -> bytes:
    """Equal for documents with the same text: the same words in the text and its pair, as `corpus.wording` has it."""
    parts = [wording(document.text), wording(document.text_pair or "")]
    # Texts of signs only would all be equal without their signs.
    content = "\n".join(parts) if any(parts) else document.text
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def find_leaks(splits: Mapping[str, Sequence[Document]]) -> dict[str, dict[str, int]]:
    """Counts leaks for each pair of splits that has any.

    Returns:
        For `"train, validation"` and so on: `texts` and `groups`, the number of documents of the later split whose
        text, or group, the earlier split has too. Both are counted on their own, so one document may be in both.
    """
    texts = _shared({split: [text_key(document) for document in splits[split]] for split in SPLITS})
    groups = shared_groups(splits)
    return {pair: {"texts": texts[pair], "groups": groups[pair]} for pair in texts if texts[pair] or groups[pair]}


def shared_groups(splits: Mapping[str, Sequence[Document]]) -> dict[str, int]:
    """For each pair of splits the number of documents of the later one whose group the earlier one has, too."""
    return _shared({split: [document.group for document in splits[split]] for split in SPLITS})


def handle_leaks(
    splits: Mapping[str, list[Document]], rule: LeakRule, place: object
) -> tuple[dict[str, list[Document]], dict[str, Any]]:
    """Reports leaks and applies the rule to them.

    `drop` removes leaking documents from the earlier of two splits, so that validation and, above all, test stay as
    they were.

    Returns:
        The splits, and notes: `leaks` as `find_leaks` gives them, the `leak_rule`, and what was dropped from where.

    Raises:
        UserError: there are leaks and the rule is `refuse`.
    """
    leaks = find_leaks(splits)
    notes: dict[str, Any] = {"leaks": leaks, "leak_rule": rule}
    if not leaks:
        return dict(splits), notes
    report = "; ".join(f"{pair}: {_described(found)}" for pair, found in leaks.items())
    if rule == "refuse":
        raise UserError(
            f"splits share documents ({report}), so the scores would be too good",
            "Add --leaks drop to remove them from the earlier split, or --leaks allow to keep them",
            place,
        )
    say(f"Leaks between splits ({report}): {'kept' if rule == 'allow' else 'removed from the earlier split'}.")
    if rule == "allow":
        return dict(splits), notes
    kept = _without_leaks(splits)
    notes["dropped_leaks"] = {split: len(splits[split]) - len(kept[split]) for split in SPLITS}
    return kept, notes


def count_conflicts(documents: Sequence[Document]) -> int:
    """How many documents have the text of another one with another label: no model can get both right."""
    keys = [text_key(document) for document in documents]
    labels: dict[bytes, set[str | None]] = defaultdict(set)
    for key, document in zip(keys, documents, strict=True):
        labels[key].add(document.label)
    return sum(len(labels[key]) > 1 for key in keys)


def _without_leaks(splits: Mapping[str, Sequence[Document]]) -> dict[str, list[Document]]:
    kept: dict[str, list[Document]] = {}
    texts: set[bytes] = set()
    groups: set[str] = set()
    for split in reversed(SPLITS):
        keyed = [(text_key(document), document) for document in splits[split]]
        keyed = [(key, document) for key, document in keyed if document.group not in groups and key not in texts]
        kept[split] = [document for _, document in keyed]
        texts.update(key for key, _ in keyed)
        groups.update(document.group for document in kept[split])
    return kept


def _shared(values: Mapping[str, Sequence[Hashable]]) -> dict[str, int]:
    known = {split: set(own) for split, own in values.items()}
    return {
        f"{earlier}, {later}": sum(value in known[earlier] for value in values[later])
        for earlier, later in combinations(SPLITS, 2)
    }


def _described(found: Mapping[str, int]) -> str:
    return " and ".join(f"{number} documents with the same {kind[:-1]}" for kind, number in found.items() if number)
