from __future__ import annotations

from pathlib import Path

import pytest

from posology.errors import UserError
from posology.tasks import triage
from posology.tasks.built import Protocol
from posology.tasks.mimic import build
from tests.mimic_tables import admission, code, write_table

GROUPS = {
    "Cardiology": "41401 41071 4241 4240 4280 41011 41041",
    "AcuteMedicine": "5849 0389",
    "Obstetrics": "V3001 V3000 V3101",
    "Respiratory": "51881 486 5070",
    "Neurology": "431 430",
    "Gastroenterology": "5789 5770",
    "Oncology": "1983",
}
CODES = [(code, group) for group, codes in GROUPS.items() for code in codes.split()]


def test_there_are_twenty_codes_in_seven_groups() -> None:
    assert triage.codes() == [code for code, _ in CODES]
    assert len(set(triage.codes())) == 20
    assert triage.groups() == list(GROUPS)


@pytest.mark.parametrize(("code", "group"), CODES)
def test_every_code_has_its_group(code: str, group: str) -> None:
    assert triage.group_of(code, "standard") == group
    assert triage.group_of(code, "paper") == (None if code == "0389" else group)


@pytest.mark.parametrize("code", ["389", "038.9", "414.01", "4140", "414010", "v3001", "", "00486", "V300"])
def test_a_code_is_text_and_no_number_or_prefix(code: str) -> None:
    assert triage.group_of(code, "standard") is None
    assert triage.group_of(code, "paper") is None


def test_the_published_deletions_are_43_and_keep_their_blanks() -> None:
    deletions = triage.paper_deletions()
    assert len(deletions) == len(set(deletions)) == 43
    assert deletions[:2] == ["FINAL REPORT", "Admission Date"]
    assert deletions[10:12] == ["Provider: ", "Provider"]
    assert deletions[-3:] == [" x", " am", " pm"]
    assert "   Status: Inpatient DOB" in deletions


@pytest.mark.parametrize("protocol", ["paper", "standard"])
def test_codes_without_their_leading_zeros_are_refused(tmp_path: Path, protocol: Protocol) -> None:
    write_table(tmp_path, "ADMISSIONS", [admission(101), admission(102)])
    write_table(tmp_path, "DIAGNOSES_ICD", [code(101, "41401"), code(102, "389")])
    write_table(tmp_path, "PROCEDURES_ICD", [code(101, "3601")])
    with pytest.raises(
        UserError, match=r"DIAGNOSES_ICD\.csv: ICD9_CODE lost its leading zeros: there is 389 and no 0389"
    ):
        build("mimic-triage", tmp_path, protocol)
