"""Whether an artifact is as it was written: the fields of `posology.json` that loading reads, and its files of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posology.errors import UserError
from posology.files import sha256

RESTORE = "Copy the artifact again or train anew"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Task(_Part):
    unit: Literal["word", "piece"] = "word"


class _Backbone(_Part):
    name: str
    folder: str | None = None
    layers: int | None = Field(default=None, ge=1)
    sha256: str | None = None
    reading: str | None = None


class _Threshold(_Part):
    positive: str
    probability: float = Field(ge=0)  # just above 1 where nothing is to be called positive


class _Record(_Part):
    """What loading reads. Fields with a default are missing in artifacts of earlier versions."""

    kind: Literal["sequence-classification", "token-classification"]
    labels: list[str] = Field(min_length=1)
    task: _Task
    method: str
    recipe: dict[str, Any]
    backbone: _Backbone
    head: list[str]
    virtual_tokens: int = Field(ge=0)
    test: dict[str, Any] | None
    pooling: str | None = None
    text_pair: bool = False
    temperature: float | None = Field(default=None, gt=0)
    threshold: _Threshold | None = None
    sha256: dict[str, str] = Field(default_factory=dict)


def check_record(record: object, place: Path, mend: str = RESTORE) -> None:
    """Raises UserError where a field that loading reads is missing or not what it should be.

    Args:
        record: what `place` holds.
        place: for the message.
        mend: for the message.
    """
    try:
        known = _Record.model_validate(record)
    except ValidationError as error:
        raise damaged(error, place, mend) from None
    if known.threshold is not None and known.threshold.positive not in known.labels:
        raise UserError("is damaged (threshold.positive: it is not one of the labels)", mend, place)


def damaged(error: ValidationError, place: Path, mend: str = RESTORE, part: str = "") -> UserError:
    """What to raise for a file that does not hold what it should, with the first field that is wrong; `part` of it."""
    first = error.errors(include_input=False)[0]
    field = ".".join(map(str, (*([part] if part else []), *first["loc"]))) or "all of it"
    return UserError(f"is damaged ({field}: {first['msg'][:1].lower()}{first['msg'][1:]})", mend, place)


def digests(folder: Path, pattern: str) -> dict[str, str]:
    """The SHA-256 of each file in a folder whose name fits a pattern, for `check_digests`."""
    return {path.name: sha256(path) for path in sorted(folder.glob(pattern))}


def check_digests(folder: Path, noted: Mapping[str, str]) -> None:
    """Compares an artifact's files with the sums noted when they were written.

    Files that are missing are for whoever reads them to find, and so are those of which no sum is noted.

    Raises:
        UserError: a file holds other bytes.
        OSError: one cannot be read.
    """
    for path in sorted(folder.iterdir()):
        if path.name in noted and sha256(path) != noted[path.name]:
            raise UserError("is damaged: its SHA-256 is not the one that posology.json notes", RESTORE, path)
