"""Which patients of the hospital the i2b2 corpora are about, and how large the corpora are."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import cycle, islice
from typing import NamedTuple

from posology.synthetic.hospital import Admission, Patient

FEWEST_RECORDS = 20
_ADULT = 18


class Sizes(NamedTuple):
    """Records for training and test."""

    train: int
    test: int


def sizes_2010(patients: int) -> Sizes:
    """A quarter of the patients, up to 170 and 256 records."""
    return _sizes(patients / 4, 170, 256)


def sizes_2012(patients: int) -> Sizes:
    """A fifth of the patients, up to 190 and 120 records."""
    return _sizes(patients / 5, 190, 120)


def sizes_2014(patients: int) -> Sizes:
    """Two thirds of the patients, up to 790 and 514 records."""
    return _sizes(patients / 1.5, 790, 514)


def _sizes(records: float, train: int, test: int) -> Sizes:
    total = min(max(round(records), FEWEST_RECORDS), train + test)
    training = round(total * train / (train + test))
    return Sizes(training, total - training)


@dataclass(frozen=True)
class Cast:
    """The grown-up patients that records may be about, those for training apart from those for the test."""

    train: Sequence[Patient]
    test: Sequence[Patient]


def cast(hospital: Iterable[Patient], sizes: Sizes, rng: random.Random) -> Cast:
    """Draws as many patients as there are records, or all there are, and parts them in the proportion of the sizes.

    Args:
        hospital: read only as far as is needed.
    """
    found = list(islice((patient for patient in hospital if stays(patient)), sum(sizes)))
    rng.shuffle(found)
    training = min(max(round(len(found) * sizes.train / sum(sizes)), 1), len(found) - 1)
    return Cast(found[:training], found[training:])


def stays(patient: Patient) -> list[Admission]:
    """The patient's admissions as a grown-up."""
    return [one for one in patient.admissions if one.kind != "NEWBORN" and patient.age(one.admitted) >= _ADULT]


def subjects(patients: Sequence[Patient], records: int) -> Iterator[tuple[Patient, Admission]]:
    """A patient and a stay for each record: every patient once, then again with further stays."""
    for number, patient in enumerate(islice(cycle(patients), records)):
        admissions = stays(patient)
        yield patient, admissions[number // len(patients) % len(admissions)]


def visits(patients: Sequence[Patient], records: int, rng: random.Random) -> Iterator[tuple[Patient, list[Admission]]]:
    """Two to five occasions for each patient in the order of time, `records` in all; patients left over have none.

    They are the patient's stays, and visits before the first of these about the same troubles.
    """
    left = records
    for number, patient in enumerate(patients):
        waiting = len(patients) - number - 1
        wanted = left if not waiting else min(rng.randint(2, 5), left)
        # Those who come later need room for two each, and can take five each.
        wanted = max(min(wanted, left - 2 * waiting), left - 5 * waiting, min(2, left))
        if wanted <= 0:
            return
        left -= wanted
        own = stays(patient)[:wanted]
        day, before = own[0].admitted, []
        for _ in range(wanted - len(own)):
            day -= timedelta(days=rng.randrange(10, 400))
            length = own[0].discharged - own[0].admitted
            before.append(replace(own[0], admitted=day, discharged=day + length, died=False))
        yield patient, before[::-1] + own
