from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from posology.synthetic.hospital import Admission, Patient, make_hospital, make_patient
from posology.synthetic.lexicon import lexicon

TWENTY = (
    "41401", "41071", "4241", "4240", "4280", "41011", "41041", "5849", "0389", "V3001",
    "V3000", "V3101", "51881", "486", "5070", "431", "430", "5789", "5770", "1983",
)  # fmt: skip
TRAINING_SIZES = {
    "cardiology": 4981, "obstetrics": 1788, "respiratory": 1219, "neurology": 744, "gastro": 417, "acute": 213,
    "oncology": 197,
}  # fmt: skip


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return list(make_hospital(3000, 5))


@pytest.fixture(scope="module")
def adults(patients: list[Patient]) -> list[Admission]:
    return [one for patient in patients for one in patient.admissions if one.kind != "NEWBORN"]


def test_a_patient_depends_on_seed_and_number_only(patients: list[Patient]):
    assert [asdict(one) for one in make_hospital(3, 5)] == [asdict(one) for one in patients[:3]]
    assert asdict(make_patient(2, 5)) == asdict(patients[2])
    assert asdict(make_patient(2, 6)) != asdict(patients[2])


def test_ids_and_times(patients: list[Patient]):
    stays = [one for patient in patients for one in patient.admissions]
    assert len({one.id for one in stays}) == len(stays)
    assert len({patient.id for patient in patients}) == len(patients)
    for patient in patients:
        times = [time for one in patient.admissions for time in (one.admitted, one.discharged)]
        assert times == sorted(times) and len(set(times)) == len(times)
        assert patient.born <= times[0]
        assert not any(one.died for one in patient.admissions[:-1])
        if patient.died:
            assert patient.died >= times[-1]


def test_outcomes(adults: list[Admission]):
    assert np.mean([one.died for one in adults]) == pytest.approx(0.10, abs=0.015)
    days = np.array([one.days for one in adults if not one.died])
    shares = np.bincount(np.digitize(days, [3, 7, 14], right=True)) / len(days)
    assert shares == pytest.approx([0.13, 0.37, 0.31, 0.19], abs=0.025)


def test_signs_tell_of_the_outcome_in_part(adults: list[Admission]):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    signs, marks = sorted(adults[0].signs), list(lexicon().marks)
    seen = np.array([[one.signs[key] for key in signs] + [key in one.marks for key in marks] for one in adults], float)
    seen = (seen - seen.mean(0)) / seen.std(0)
    died = np.array([one.died for one in adults])
    half = len(adults) // 2
    model = LogisticRegression(C=0.1, max_iter=300).fit(seen[:half], died[:half])
    assert 0.72 < roc_auc_score(died[half:], model.predict_proba(seen[half:])[:, 1]) < 0.88
    assert 0.8 < roc_auc_score(died, [one.risk for one in adults]) < 0.95
    assert 0.2 < np.corrcoef([one.severity for one in adults], np.log([one.days for one in adults]))[0, 1] < 0.7


def test_first_diagnoses(patients: list[Patient]):
    stays = [one for patient in patients for one in patient.admissions]
    assert np.mean([one.diagnoses[0] in TWENTY for one in stays]) == pytest.approx(0.65, abs=0.03)
    conditions = lexicon().conditions
    groups = Counter(conditions[one.reason].group for one in stays if one.diagnoses[0] in TWENTY)
    groups["acute"] -= sum(one.diagnoses[0] == "0389" for one in stays)
    total = sum(TRAINING_SIZES.values())
    for group, size in TRAINING_SIZES.items():
        assert groups[group] / groups.total() == pytest.approx(size / total, abs=0.03), group
    assert {one.diagnoses[0] for one in stays} >= set(TWENTY)
    assert np.mean([bool(one.procedures) for one in stays]) > 0.85


def test_codes_are_those_of_the_conditions(adults: list[Admission]):
    conditions = lexicon().conditions
    for one in adults[:500]:
        reason = conditions[one.reason]
        assert one.diagnoses[0] in {*reason.codes, *reason.other_codes}
        assert len(set(one.diagnoses)) == len(one.diagnoses) and len(set(one.procedures)) == len(one.procedures)


def test_conditions_are_found_by_code():
    words = lexicon()
    for code, key in (
        ("41401", "coronary artery disease"),
        ("0389", "sepsis"),
        ("0380", "sepsis"),
        ("2724", "hyperlipidemia"),
    ):
        found = words.of_code(code)
        assert found is not None and found.key == key
    assert words.of_code("24220") is None
