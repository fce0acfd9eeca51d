"""i2b2/UTHealth 2014: identifiers of patients, doctors and places, marked for de-identification. One XML file a record.

Offsets are characters from 0, end exclusive, over all of the CDATA: line breaks at its beginning count. Tags may begin
or end inside a word.

Task: Stubbs and Uzuner (2015), https://doi.org/10.1016/j.jbi.2015.07.020
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from posology.corpus.i2b2 import Problems
from posology.corpus.i2b2_xml import offsets, read_xml, write_xml, xml_files

TYPES = {
    "NAME": ("PATIENT", "DOCTOR", "USERNAME"),
    "PROFESSION": ("PROFESSION",),
    "LOCATION": (
        "HOSPITAL", "DEPARTMENT", "ROOM", "ORGANIZATION", "STREET", "CITY", "STATE", "COUNTRY", "ZIP", "LOCATION-OTHER",
    ),
    "AGE": ("AGE",),
    "DATE": ("DATE",),
    "CONTACT": ("PHONE", "FAX", "EMAIL", "URL", "IPADDR"),
    "ID": ("SSN", "MEDICALRECORD", "HEALTHPLAN", "ACCOUNT", "LICENSE", "VEHICLE", "DEVICE", "BIOID", "IDNUM"),
}  # fmt: skip
"""The types of each category."""

CATEGORY = {type: category for category, types in TYPES.items() for type in types}

_FOLDERS = {"train": ("training-PHI-Gold-Set", "^train(ing)?$"), "test": ("testing-PHI-Gold", "^test(ing)?$")}


@dataclass(slots=True)
class Tag:
    """An identifier, `text[start:end]`."""

    start: int
    end: int
    category: str
    type: str
    comment: str
    id: str


@dataclass(slots=True)
class Record:
    """One record.

    Attributes:
        id: the file's name without extension, PATIENT-RECORD.
        patient: the part of it before the first hyphen.
        text: all of the CDATA.
        split: `train` or `test` where the tree tells, otherwise None.
        tags: in the order of the file.
    """

    id: str
    patient: str
    text: str
    split: str | None
    tags: list[Tag] = field(default_factory=list)
    place: str = ""


def read(root: Path, problems: Problems) -> Iterator[Record]:
    """Yields the records of a tree as distributed, or of any folder of such files.

    As distributed: `training-PHI-Gold-Set1` and `training-PHI-Gold-Set2` for training, `testing-PHI-Gold-fixed` for the
    test.

    Args:
        problems: gets what was read leniently; tags that do not fit the text are reported there and dropped.

    Raises:
        UserError: there are no such files, one cannot be read, or a tag stands beyond the text or is malformed.
    """
    for path, split in xml_files(Path(root), _FOLDERS, problems):
        text, elements = read_xml(path, problems)
        record = Record(path.stem, path.stem.partition("-")[0], text, split, place=str(path))
        for element, span in zip(elements, offsets(text, elements, path, problems), strict=True):
            type = element.get("TYPE")
            if CATEGORY.get(type) != element.name:
                problems.append((element.place, f"{element.called}: its TYPE is none of its category's: kept"))
            if span is not None:
                comment, id = element.attributes.get("comment", ""), element.attributes.get("id", "")
                record.tags.append(Tag(*span, element.name, type, comment, id))
        yield record


def write(record: Record, folder: Path) -> None:
    """Writes a record's file, named by its id, into a folder that is made where missing.

    Raises:
        ValueError: a character that XML cannot hold.
    """
    tags: list[tuple[str, dict[str, object]]] = [
        (
            tag.category,
            {
                "id": tag.id,
                "start": tag.start,
                "end": tag.end,
                "text": record.text[tag.start : tag.end],
                "TYPE": tag.type,
                "comment": tag.comment,
            },
        )
        for tag in record.tags
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_xml(folder / f"{record.id}.xml", "deIdi2b2", record.text, tags)
