"""Small hand-written trees in the layout in which the i2b2 corpora are distributed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Record2010(NamedTuple):
    """The text, and the lines of the annotation files."""

    text: str
    concepts: str = ""
    relations: str = ""


def write_2010(
    root: Path,
    *,
    beth: Mapping[str, Record2010] | None = None,
    partners: Mapping[str, Record2010] | None = None,
    test: Mapping[str, Record2010] | None = None,
) -> Path:
    training = root / "concept_assertion_relation_training_data"
    for hospital, records in (("beth", beth or {}), ("partners", partners or {})):
        for name, record in records.items():
            _put(training / hospital / "txt" / f"{name}.txt", record.text)
            _put(training / hospital / "concept" / f"{name}.con", record.concepts)
            _put(training / hospital / "rel" / f"{name}.rel", record.relations)
    for name, record in (test or {}).items():
        gold = root / "reference_standard_for_test_data"
        _put(root / "test_data" / f"{name}.txt", record.text)
        _put(gold / "concepts" / f"{name}.con", record.concepts)
        _put(gold / "rel" / f"{name}.rel", record.relations)
    return root


def concept(text: str, line: int, first: int, last: int, type: str) -> str:
    return f'c="{text.lower()}" {line}:{first} {line}:{last}||t="{type}"\n'


def relation(first: str, label: str, second: str) -> str:
    """From two lines as `concept` gives them."""
    return f'{first.partition("||")[0]}||r="{label}"||{second.partition("||")[0]}\n'


def write_2012(root: Path, *, train: Mapping[str, tuple[str, str]], test: Mapping[str, tuple[str, str]]) -> Path:
    """From names to the text after `<![CDATA[` and the EVENT lines."""
    folders = ("2012-07-15.original-annotation.release", "2012-08-08.test-data.event-timex-groundtruth/xml")
    for folder, records in zip(folders, (train, test), strict=True):
        for name, (text, tags) in records.items():
            _put(root / folder / f"{name}.xml", _xml("ClinicalNarrativeTemporalAnnotation", text, tags))
    return root


def event(text: str, mention: str, type: str, number: int = 0, nth: int = 0) -> str:
    """The EVENT line of the nth occurrence of a mention."""
    start = -1
    for _ in range(nth + 1):
        start = text.index(mention, start + 1)
    return (
        f'<EVENT id="E{number}" start="{start}" end="{start + len(mention)}" text="{mention}" modality="FACTUAL" '
        f'polarity="POS" type="{type}" />\n'
    )


def write_2014(root: Path, *, train: Mapping[str, tuple[str, str]], test: Mapping[str, tuple[str, str]]) -> Path:
    """From names such as `110-01` to the text after `<![CDATA[` and the tag lines."""
    for folder, records in (("training-PHI-Gold-Set1", train), ("testing-PHI-Gold-fixed", test)):
        for name, (text, tags) in records.items():
            _put(root / folder / f"{name}.xml", _xml("deIdi2b2", text, tags))
    return root


def identifier(text: str, mention: str, category: str, type: str, number: int = 0) -> str:
    start = text.index(mention)
    return (
        f'<{category} id="P{number}" start="{start}" end="{start + len(mention)}" text="{mention}" TYPE="{type}" '
        'comment="" />\n'
    )


def _xml(root: str, text: str, tags: str) -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8" ?>\n<{root}>\n<TEXT><![CDATA[{text}]]></TEXT>\n<TAGS>\n{tags}</TAGS>\n'
        f"</{root}>\n"
    )


def _put(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
