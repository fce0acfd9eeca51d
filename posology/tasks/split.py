"""Splits: those a corpus comes with are kept, those from id lists are followed, missing ones are made."""

from __future__ import annotations

import csv
import random
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posology.corpus.document import Document
from posology.corpus.textfile import bare_name, entries_of, lines_of, read_text
from posology.errors import UserError
from posology.seed import check_seed
from posology.tasks.leaks import text_key
from posology.tasks.prepared import SPLITS

_SPLIT_NAME = re.compile(
    r"(?:(?P<train>train|training)|(?P<validation>dev|devel|development|valid|validation|val)|(?P<test>test|testing))"
    r"(?:[-_]?\d+)?(?:-of-\d+)?",
    re.IGNORECASE,
)
_FOLDS = 10
"""Splits are made of tenths: 70 % training, 10 % validation, 20 % test."""
_LARGEST_UNIT = 0.2
"""The share of documents that may be tied together by common texts."""


def split_of_name(name: str) -> str | None:
    """The split that a file or folder name without extensions stands for: `dev`, `test2`, `train-00000-of-00002`."""
    match = _SPLIT_NAME.fullmatch(name)
    return match.lastgroup if match else None


def split_of_file(path: Path) -> str | None:
    """As `split_of_name`, for a path."""
    return split_of_name(path.name if path.is_dir() else bare_name(path))


def complete(
    documents: Sequence[Document], *, seed: int, place: object, by_text: bool = True
) -> tuple[dict[str, list[Document]], dict[str, Any]]:
    """Documents by split; splits that no document names are cut from training (or from everything where none is given).

    Documents of one group stay together, and so do documents with the same text, unless texts that turn up everywhere
    would tie most of the corpus together. Classes (for token classification each document's rarest entity type) keep
    their shares as far as that allows, and training gets every label that is there.

    Args:
        by_text: whether documents with the same text stay together; lines of notes need not, since headings repeat.

    Returns:
        The splits, and notes on how they were made.

    Raises:
        UserError: validation or test is given without training, there are too few groups, or the seed is none.
    """
    check_seed(seed)
    splits: dict[str, list[Document]] = {split: [] for split in SPLITS}
    given = [split for split in SPLITS if any(document.split == split for document in documents)]
    if given and "train" not in given:
        raise UserError(
            "no training split is given, but other splits are", "Name it with --train, or call the file train", place
        )
    for document in documents:
        splits[document.split or "train"].append(document)
    missing = [split for split in SPLITS[1:] if split not in given]
    notes: dict[str, Any] = {"given": given}
    if missing:
        tenths = {split: {"validation": 1, "test": 2}[split] for split in missing}
        notes |= {"made": tenths, "method": "stratified by label, whole groups, in tenths", "seed": seed}
        notes |= _cut(splits, tenths, seed, place, by_text)
    return splits, notes


def _cut(
    splits: dict[str, list[Document]], tenths: Mapping[str, int], seed: int, place: object, by_text: bool
) -> dict[str, Any]:
    """Moves some of the training documents to the splits in `tenths`.

    Returns:
        Notes: whether copies of a text were kept together, and how many documents went to training for their labels.
    """
    documents = splits["train"]
    groups = _units(documents, by_text=False)
    units = _units(documents, by_text=True) if by_text else groups
    together = _largest(units) <= max(_LARGEST_UNIT * len(documents), _largest(groups))
    if not together:
        units = groups
    number = len(set(units))
    if number < len(tenths) + 1:
        raise UserError(
            f"there are {number} groups of documents, too few to make {len(tenths) + 1} splits",
            "Give more documents, or give the splits as files",
            place,
        )
    folds = _folds(_strata(documents), units, min(_FOLDS, number), seed)
    count = max(folds) + 1
    if count < len(tenths) + 1:  # stratifying may leave folds empty where groups are few
        order = random.Random(seed).sample(range(number), number)
        folds, count = [order[unit] for unit in units], number
    names: list[str] = []
    for split, share in tenths.items():
        names += [split] * max(1, share * count // _FOLDS)
    names += ["train"] * (count - len(names))
    assigned = {unit: names[fold] for unit, fold in zip(units, folds, strict=True)}
    moved = _keep_labels_in_train(documents, units, assigned)
    for split in ("train", *tenths):
        splits[split] = [document for document, unit in zip(documents, units, strict=True) if assigned[unit] == split]
    return {"copies_kept_together": together and by_text, "documents_moved_to_train": moved}


def _units(documents: Sequence[Document], *, by_text: bool) -> list[int]:
    """The number, from 0, of what must stay together for each document: those linked by a group (or a text)."""
    parent = list(range(len(documents)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str | bytes, int] = {}  # groups are strings and text keys bytes, so they never meet
    for index, document in enumerate(documents):
        for key in (document.group, text_key(document)) if by_text else (document.group,):
            parent[root(index)] = root(first.setdefault(key, index))
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(index), len(numbers)) for index in range(len(documents))]


def _largest(units: Sequence[int]) -> int:
    return max(Counter(units).values(), default=0)


def _strata(documents: Sequence[Document]) -> list[str]:
    """What to keep the shares of: the label, or the entity type of the document that is rarest in the corpus."""
    frequency = Counter(span.label for document in documents for span in document.spans)
    strata = []
    for document in documents:
        types = {span.label for span in document.spans}
        strata.append(document.label or min(types, key=lambda label: (frequency[label], label), default=""))
    return strata


def _folds(strata: Sequence[str], units: Sequence[int], count: int, seed: int) -> list[int]:
    """A fold for each document, numbered from 0 without gaps."""
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if max(Counter(strata).values()) < count:  # nothing to stratify by
        strata = [""] * len(strata)
    single = max(units) + 1 == len(
        units
    )  # the grouped variant takes half a minute on 100,000 groups, this one a moment
    folder = (StratifiedKFold if single else StratifiedGroupKFold)(count, shuffle=True, random_state=seed)
    folds = np.zeros(len(strata), dtype=int)
    used = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes with fewer members than folds: dealt with afterwards
        for _, held_out in folder.split(np.zeros(len(strata)), np.array(strata), np.array(units)):
            folds[held_out] = used
            used += len(held_out) > 0
    return [int(fold) for fold in folds]


def _keep_labels_in_train(documents: Sequence[Document], units: Sequence[int], assigned: dict[int, str]) -> int:
    """Assigns to training one unit with each label it would lack; gives the number of documents this concerns."""
    holders: dict[str, list[int]] = defaultdict(list)
    for document, unit in zip(documents, units, strict=True):
        for label in {span.label for span in document.spans} | ({document.label} if document.label else set()):
            holders[label].append(unit)
    moved = set()
    for label in sorted(holders):
        if all(assigned[unit] != "train" for unit in holders[label]):
            moved.add(holders[label][0])
            assigned[holders[label][0]] = "train"
    return sum(unit in moved for unit in units)


def how_split(documents: Sequence[Document], seed: int) -> str:
    """How `complete` splits records of a corpus that may come with an official test set, as a sentence for a card."""
    if any(document.split == "test" for document in documents):
        return f"Test is the official test set; validation is a tenth of the training records, drawn with seed {seed}."
    return (
        f"The source has no test set: 70 % training, 10 % validation and 20 % test by record, drawn with seed {seed}."
    )


def apply_lists(documents: Sequence[Document], folder: Path) -> dict[str, Any]:
    """Sets each document's split from lists of ids or groups.

    The lists are files called train, validation (or dev ...) and test, `.txt` or `.csv`, one id or group on each line;
    of a `.csv` the first column counts, and its first line may be a header.

    Returns:
        Notes: whether ids or groups were listed and how many listed ones the corpus lacks.

    Raises:
        UserError: no lists, a name in two lists, or documents in none.
    """
    listed: dict[str, str] = {}
    places: dict[str, str] = {}
    known = {document.id for document in documents} | {document.group for document in documents}
    for split, path in _list_files(folder):
        for number, name in _names(path, known):
            if listed.setdefault(name, split) != split:
                raise UserError(
                    f"{name!r} is also at {places[name]}, in another split",
                    "Remove it from one of them",
                    f"{path}:{number}",
                )
            places.setdefault(name, f"{path}:{number}")
    as_ids = sum(document.id in listed for document in documents)
    as_groups = sum(document.group in listed for document in documents)
    by = "id" if as_ids >= as_groups else "group"
    unlisted = []
    used = set()
    for document in documents:
        name = getattr(document, by)
        document.split = listed.get(name)
        if document.split is None:
            unlisted.append(document.id)
        else:
            used.add(name)
    if unlisted:
        raise UserError(
            f"{len(unlisted)} of {len(documents)} documents are in no list, the first has id {unlisted[0]!r}",
            f"Add them ({by}s were matched), or check --id and --group",
            folder,
        )
    return {"lists_of": by, "listed_but_absent": len(set(listed) - used)}


def _list_files(folder: Path) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise UserError("there is no such folder", "Name a folder with train.txt, validation.txt and test.txt", folder)
    paths = [path for path in entries_of(folder) if path.suffix in (".txt", ".csv")]
    found = [(split, path) for path in paths if (split := split_of_file(path))]
    if not found:
        raise UserError("has no id lists", "Put train.txt, validation.txt and test.txt (or .csv) there", folder)
    return found


def _names(path: Path, known: set[str]) -> list[tuple[int, str]]:
    """The listed names with their lines."""
    lines = lines_of(read_text(path))
    if path.suffix == ".csv":
        lines = [row[0] if row else "" for row in csv.reader(lines)]
    names = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix == ".csv" and names and names[0][1] not in known and len(names) > 1:
        names = names[1:]  # a header
    return names
