"""Where a backbone comes from: what its own folder says of it, or else the catalogue."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from posology import catalog
from posology.engine.backbone import Source

BACKBONE_RECORD = "posology-backbone.json"
"""Beside the weights of backbones that `posology pretrain` and `posology distil` made."""


class Lineage(NamedTuple):
    """What reports group backbones by.

    Attributes:
        domain: `general`, `biomedical`, `clinical`, or whatever its record says.
        pretraining: how it was pre-trained beyond what its publisher did; None for backbones as published.
        distilled_from: the name of the backbone that it is a smaller copy of.
        family: the catalogue's, of backbones as large as those in it: a model that was pre-trained further is of the
            family of its parent, some layers of it are of none.
    """

    domain: str | None
    pretraining: str | None
    distilled_from: str | None
    family: str | None


def lineage(source: Source) -> Lineage:
    """Of a backbone, or of its first layers; a record that cannot be read counts as none."""
    try:
        record: Any = json.loads((source.folder / BACKBONE_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict):
        record = {}
    entry = catalog.find(source.name.partition(":")[0]) or catalog.find(source.hub_id or "")
    teacher = record.get("distilled_from")
    like = entry or catalog.find(_text(record.get("parent_name")) or "")
    whole = source.layers is None and teacher is None
    family = _text(record.get("family")) or (like.family if like is not None else None)
    return Lineage(
        _text(record.get("domain")) or (entry.domain if entry is not None else None),
        _text(record.get("pretraining")),
        _text(teacher.get("name") if isinstance(teacher, dict) else teacher),
        family if whole else None,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
