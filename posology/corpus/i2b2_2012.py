"""i2b2 2012: events, times and temporal relations. XML, and beside it the same as `.xml.txt`, `.extent` and `.tlink`.

Offsets are characters from 0, end exclusive, over all of the CDATA: a line break at its beginning counts.

Task: Sun et al. (2013), https://doi.org/10.1136/amiajnl-2013-001628
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from posology.corpus.i2b2 import Problems, TokenLines
from posology.corpus.i2b2_xml import Element, offsets, read_xml, write_xml, xml_files

EVENT_TYPES = ("PROBLEM", "TEST", "TREATMENT", "CLINICAL_DEPT", "EVIDENTIAL", "OCCURRENCE")
TIME_TYPES = ("DATE", "TIME", "DURATION", "FREQUENCY")
SECTION_TIMES = ("Admission", "Discharge")
"""What a link may name instead of an id."""

# The names of folders, most wanted first: texts of the test set come several times when all of it is unpacked.
_FOLDERS = {
    "train": (r"original-annotation\.release", "^train(ing)?$"),
    "test": ("event-timex-groundtruth", "^merged_xml$", r"test-data\.groundtruth", "^test(ing)?$"),
}


@dataclass(slots=True)
class Event:
    """An EVENT, `text[start:end]`; `type` is empty in a few of the real ones."""

    start: int
    end: int
    type: str
    modality: str
    polarity: str
    id: str


@dataclass(slots=True)
class Timex:
    """A TIMEX3, `text[start:end]`."""

    start: int
    end: int
    type: str
    value: str
    mod: str
    id: str


@dataclass(slots=True)
class SectionTime:
    """A SECTIME, `text[start:end]`: the date of ADMISSION or DISCHARGE."""

    start: int
    end: int
    type: str
    value: str
    id: str


@dataclass(slots=True)
class Link:
    """A TLINK; its ends are ids of events and times, or `Admission` and `Discharge`."""

    id: str
    first_id: str
    second_id: str
    type: str


@dataclass(slots=True)
class Record:
    """One record.

    Attributes:
        id: the file's name without extension: a number in the real data.
        text: all of the CDATA.
        split: `train` or `test` where the tree tells, otherwise None.
        events, times, section_times, links: each in the order of the file.
    """

    id: str
    text: str
    split: str | None
    events: list[Event] = field(default_factory=list)
    times: list[Timex] = field(default_factory=list)
    section_times: list[SectionTime] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    place: str = ""


def read(root: Path, problems: Problems) -> Iterator[Record]:
    """Yields the records of a tree as distributed, or of any folder of such files.

    As distributed: `2012-07-15.original-annotation.release` for training and
    `2012-08-08.test-data.event-timex-groundtruth/xml` for the test.

    Args:
        problems: gets what was read leniently; annotations that do not fit the text are reported there and dropped.

    Raises:
        UserError: there are no such files, one cannot be read, or a tag stands beyond the text or is malformed.
    """
    for path, split in xml_files(Path(root), _FOLDERS, problems):
        text, tags = read_xml(path, problems)
        yield _record(path, split, text, tags, problems)


def _record(path: Path, split: str | None, text: str, tags: list[Element], problems: Problems) -> Record:
    record = Record(path.stem, text, split, place=str(path))
    known = {"EVENT": EVENT_TYPES, "TIMEX3": TIME_TYPES, "SECTIME": ("ADMISSION", "DISCHARGE")}
    placed = [tag for tag in tags if tag.name in known]
    for tag, span in zip(placed, offsets(text, placed, path, problems), strict=True):
        type = tag.get("type")
        if type not in known[tag.name]:
            sentence = (
                f"{tag.called}: its type is {'' if type else 'empty, '}none of {', '.join(known[tag.name])}: kept"
            )
            problems.append((tag.place, sentence))
        if span is None:
            continue
        if tag.name == "EVENT":
            modality, polarity = tag.attributes.get("modality", ""), tag.attributes.get("polarity", "")
            record.events.append(Event(*span, type, modality, polarity, tag.get("id")))
        elif tag.name == "TIMEX3":
            value, mod = tag.attributes.get("val", ""), tag.attributes.get("mod", "")
            record.times.append(Timex(*span, type, value, mod, tag.get("id")))
        else:
            record.section_times.append(SectionTime(*span, type, tag.attributes.get("dvalue", ""), tag.get("id")))
    ids = {one.id for one in _placed(record)}
    for tag in tags:
        if tag.name == "TLINK":
            link = Link(tag.get("id"), tag.get("fromID"), tag.get("toID"), tag.get("type"))
            if all(end in ids or end.capitalize() in SECTION_TIMES for end in (link.first_id, link.second_id)):
                record.links.append(link)
            else:
                problems.append((tag.place, f"{link.id}: it links what is not annotated, or was dropped: dropped"))
    return record


def write(record: Record, folder: Path) -> None:
    """Writes a record's four files, named by its id, into a folder that is made where missing.

    Raises:
        ValueError: a character that XML cannot hold, or an annotation that touches no token.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.id}.xml"
    text = record.text
    quoted = {one.id: text[one.start : one.end] for one in _placed(record)}
    tags: list[tuple[str, dict[str, object]]] = []
    for event in record.events:
        attributes = {"modality": event.modality, "polarity": event.polarity, "type": event.type}
        tags.append(("EVENT", _where(event, text) | attributes))
    for time in record.times:
        tags.append(("TIMEX3", _where(time, text) | {"type": time.type, "val": time.value, "mod": time.mod}))
    for section in record.section_times:
        tags.append(("SECTIME", _where(section, text) | {"type": section.type, "dvalue": section.value}))
    for link in record.links:
        first = {"fromID": link.first_id, "fromText": quoted.get(link.first_id, link.first_id)}
        second = {"toID": link.second_id, "toText": quoted.get(link.second_id, link.second_id)}
        tags.append(("TLINK", {"id": link.id, **first, **second, "type": link.type}))
    write_xml(path, "ClinicalNarrativeTemporalAnnotation", text, tags)
    bare = text.removeprefix("\n")
    extent, tlink = _token_files(record, TokenLines(bare), len(text) - len(bare))
    for extension, content in ((".txt", bare), (".extent", extent), (".tlink", tlink)):
        path.with_name(path.name + extension).write_bytes(content.encode("utf-8"))


def _placed(record: Record) -> list[Event | Timex | SectionTime]:
    return [*record.events, *record.times, *record.section_times]


def _where(one: Event | Timex | SectionTime, text: str) -> dict[str, object]:
    return {"id": one.id, "start": one.start, "end": one.end, "text": text[one.start : one.end]}


def _token_files(record: Record, tokens: TokenLines, moved: int) -> tuple[str, str]:
    """The contents of .extent and .tlink.

    In .extent, events and times stand in the order of the text, then section times. In .tlink, `Admission` and
    `Discharge` are their section times; a link that names one that is not there cannot be expressed and is left out.

    Args:
        tokens: of the text without the line break at its beginning.
        moved: 1 where it has one, otherwise 0.
    """
    extent: list[tuple[int, str]] = []
    pointers: dict[str, str] = {}
    for one in _placed(record):
        if isinstance(one, Event):
            name, attributes = "EVENT", {"type": one.type, "modality": one.modality, "polarity": one.polarity}
        elif isinstance(one, Timex):
            name, attributes = "TIMEX3", {"type": one.type, "val": one.value, "mod": one.mod}
        else:
            name, attributes = "SECTIME", {"type": one.type, "dvalue": one.value}
        line, first, last_line, last = tokens.position(max(one.start - moved, 0), one.end - moved)
        pointer = f'{name}="{_flat(record.text[one.start : one.end])}" {line}:{first} {last_line}:{last}'
        pointers[one.id] = pointer
        if name == "SECTIME":
            pointers.setdefault(one.type.capitalize(), pointer)
        order = len(record.text) if name == "SECTIME" else one.start
        extent.append((order, "||".join([pointer, *(f'{key}="{_flat(value)}"' for key, value in attributes.items())])))
    links = []
    for link in record.links:
        ends = [pointers.get(end) or pointers.get(end.capitalize()) for end in (link.first_id, link.second_id)]
        if all(ends):
            links.append(f'{ends[0]}||{ends[1]}||type="{link.type}"')
    extent.sort(key=lambda item: item[0])
    return "".join(f"{line}\n" for _, line in extent), "".join(f"{line}\n" for line in links)


def _flat(value: str) -> str:
    return " ".join(value.split())
