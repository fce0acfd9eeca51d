"""The labels of the triage task: which of seven groups a first diagnosis belongs to."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from posology.tasks.built import Protocol


def codes() -> list[str]:
    """The 20 ICD-9 codes, in the order of their groups."""
    return [code for members in _file()["groups"].values() for code in members]


def groups() -> list[str]:
    """The seven groups, in the order of the labels."""
    return list(_file()["groups"])


def group_of(code: str, protocol: Protocol) -> str | None:
    """The group of a diagnosis.

    Args:
        code: ICD-9 as text, without the dot and with leading zeros, as MIMIC-III has it.
        protocol: `paper` leaves out `0389`, as the published list did by mistake.

    Returns:
        The group, or None for a diagnosis that is not of the task.
    """
    if protocol == "paper" and code in _file()["unmatched_in_paper"]:
        return None
    return _group_of_code().get(code)


def paper_deletions() -> list[str]:
    """What the published cleaning deletes from a note, in its order: regular expressions, except `)`."""
    return list(_file()["paper_deletions"])


@cache
def _group_of_code() -> dict[str, str]:
    return {code: group for group, members in _file()["groups"].items() for code in members}


@cache
def _file() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("triage.yaml").read_text(encoding="utf-8"))
