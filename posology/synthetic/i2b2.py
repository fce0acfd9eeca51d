"""The trees of i2b2 2010, 2012 and 2014 as they are distributed, filled with records of the synthetic hospital.

Each corpus is about patients of its own for training and for the test; texts for the test also use wordings that
training never saw (see `phrases.py`), and other names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from math import ceil
from pathlib import Path

from posology.corpus import i2b2_2010, i2b2_2012, i2b2_2014
from posology.synthetic.cast import Sizes, cast, subjects, visits
from posology.synthetic.hospital import Admission, Patient
from posology.synthetic.i2b2_2010 import as_record as record_2010
from posology.synthetic.i2b2_2012 import as_record as record_2012
from posology.synthetic.i2b2_2014 import Chronicle, rare_kinds
from posology.synthetic.i2b2_2014 import as_record as record_2014
from posology.synthetic.summaries import Summary

Advance = Callable[[], object]

_BETH_SHARE = 73 / 170
"""Of the training records of 2010."""
_SET_1_SHARE = 521 / 790
"""Of the training records of 2014."""
_RECORDS_PER_PATIENT = 3.5
_RARE_EVERY = 30


def write_2010(hospital: Iterable[Patient], folder: Path, sizes: Sizes, seed: int, advance: Advance) -> dict[str, int]:
    """Writes `concept_assertion_relation_training_data`, `test_data` and `reference_standard_for_test_data`.

    Args:
        hospital: the patients; read only as far as is needed.
        folder: the root of the tree.
        sizes: records for training and test.
        seed: of everything that is drawn.
        advance: called after each record.

    Returns:
        How many documents, concepts and relations were written.
    """
    training = folder / "concept_assertion_relation_training_data"
    gold = folder / "reference_standard_for_test_data"
    counts = {"documents": 0, "concepts": 0, "relations": 0}
    beth = max(round(sizes.train * _BETH_SHARE), 1)
    for split, number, patient, admission, rng in _cases(hospital, sizes, f"2010 {seed}"):
        place = number < beth if split == "train" else rng.random() < _BETH_SHARE
        at = "beth" if place else "partners"
        summary = Summary(patient, admission, at, rng, seen_only=split == "train")
        if split == "train":
            name = f"record-{number + 11}" if at == "beth" else f"{100_000_000 + 7919 * number}"
            where = [training / at / part for part in ("txt", "concept", "ast", "rel")]
        else:
            name = f"{number + 1:04d}"
            where = [folder / "test_data", *(gold / part for part in ("concepts", "ast", "rel"))]
        record = record_2010(summary.written(), f"{at}/{name}" if split == "train" else name, at, split)
        i2b2_2010.write(record, *where)
        counts["documents"] += 1
        counts["concepts"] += len(record.concepts)
        counts["relations"] += len(record.relations)
        advance()
    return counts


def write_2012(hospital: Iterable[Patient], folder: Path, sizes: Sizes, seed: int, advance: Advance) -> dict[str, int]:
    """Writes the folders of training and test; arguments as for `write_2010`.

    Returns:
        How many documents, events, times and links were written.
    """
    folders = {
        "train": folder / "2012-07-15.original-annotation.release",
        "test": folder / "2012-08-08.test-data.event-timex-groundtruth" / "xml",
    }
    counts = {"documents": 0, "events": 0, "times": 0, "links": 0}
    for split, number, patient, admission, rng in _cases(hospital, sizes, f"2012 {seed}"):
        at = rng.choice(("beth", "partners"))
        summary = Summary(patient, admission, at, rng, seen_only=split == "train")
        id = str(number + 1 + (0 if split == "train" else sizes.train))
        record = record_2012(*summary.halves(), id, split)
        i2b2_2012.write(record, folders[split])
        counts["documents"] += 1
        counts["events"] += len(record.events)
        counts["times"] += len(record.times)
        counts["links"] += len(record.links)
        advance()
    return counts


def write_2014(hospital: Iterable[Patient], folder: Path, sizes: Sizes, seed: int, advance: Advance) -> dict[str, int]:
    """Writes the two training sets and the test set, two to five records a patient; arguments as for `write_2010`.

    Returns:
        How many patients, documents and tags were written.
    """
    rng = random.Random(f"2014 {seed}")
    wanted = Sizes(*(ceil(size / _RECORDS_PER_PATIENT) for size in sizes))
    people = cast(hospital, wanted, rng)
    counts = {"patients": 0, "documents": 0, "tags": 0}
    rare = rare_kinds()
    first = 100
    for split, patients, size in (("train", people.train, sizes.train), ("test", people.test, sizes.test)):
        written = 0
        for patient, admissions in visits(patients, size, rng):
            id = first + counts["patients"]
            counts["patients"] += 1
            chronicle = Chronicle(patient, random.Random(f"2014 {seed} {id}"), seen_only=split == "train")
            for number, admission in enumerate(admissions, start=1):
                is_rare = counts["documents"] % _RARE_EVERY == _RARE_EVERY - 1
                extra = rare[counts["documents"] // _RARE_EVERY % len(rare)] if is_rare else ""
                record = record_2014(chronicle.record(admission, extra), f"{id}-{number:02d}", split, rng)
                set_1 = written < size * _SET_1_SHARE
                part = "testing-PHI-Gold-fixed" if split == "test" else f"training-PHI-Gold-Set{1 if set_1 else 2}"
                i2b2_2014.write(record, folder / part)
                written += 1
                counts["documents"] += 1
                counts["tags"] += len(record.tags)
                advance()
    return counts


def _cases(
    hospital: Iterable[Patient], sizes: Sizes, seed: str
) -> Iterator[tuple[str, int, Patient, Admission, random.Random]]:
    """Yields `(split, number in it, patient, stay, source of chance)` for each record."""
    people = cast(hospital, sizes, random.Random(seed))
    for split, patients, size in (("train", people.train, sizes.train), ("test", people.test, sizes.test)):
        for number, (patient, admission) in enumerate(subjects(patients, size)):
            yield split, number, patient, admission, random.Random(f"{seed} {split} {number}")
