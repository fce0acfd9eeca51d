"""The records of i2b2 2012: discharge summaries with clinical events, times and temporal relations."""

from __future__ import annotations

from collections.abc import Mapping

from posology.corpus.i2b2_2012 import EVENT_TYPES, Event, Link, Record, SectionTime, Timex
from posology.synthetic.sentences import tokenised
from posology.synthetic.written import Mention, Written

TEMPORAL = ("BEFORE", "AFTER", "OVERLAP")
_EVENTS = tuple(type.lower() for type in EVENT_TYPES)
_KINDS = (*_EVENTS, "timex", "DATE")


def as_record(history: Written, course: Written, id: str, split: str) -> Record:
    """The record for a note: one sentence a line, its events, its times, and how they are related.

    Args:
        history: what is known on admission; its first two links are those of admission and discharge to their dates.
        course: what follows; its events are linked to the discharge, those of the history to the admission.
    """
    note = tokenised(history, _KINDS)
    earlier = len(note.mentions)
    note.add(tokenised(course, _KINDS))
    text = "\n" + note.text
    record = Record(id, text, split)
    dates = {(one.start, one.end): one.attributes["value"] for one in note.mentions if one.kind == "DATE"}
    kept: dict[int, Event | Timex] = {}
    seen = set()
    for index, one in sorted(enumerate(note.mentions), key=lambda item: (item[1].start, item[1].end)):
        if one.kind == "DATE" or (one.start, one.end, one.kind) in seen:
            continue
        seen.add((one.start, one.end, one.kind))
        if one.kind == "timex":
            time = _time(one, f"T{len(record.times)}", dates)
            record.times.append(time)
            kept[index] = time
        else:
            event = _event(one, f"E{len(record.events)}")
            record.events.append(event)
            kept[index] = event
    given = [(link.label, kept.get(link.first), kept.get(link.second)) for link in note.links]
    pairs = [(label, one, other) for label, one, other in given if label in TEMPORAL and one and other]
    for number, (type, (_, _, day)) in enumerate(zip(("ADMISSION", "DISCHARGE"), pairs, strict=False)):
        assert isinstance(day, Timex), id
        record.section_times.append(SectionTime(day.start, day.end, type, day.value, f"S{number}"))
    pairs += [("OVERLAP", event, time) for event, time in _together(record)]
    record.links = [Link(f"TL{n}", one.id, other.id, label) for n, (label, one, other) in enumerate(pairs)]
    past = {one.id for index, one in kept.items() if index < earlier}
    for event in record.events:
        record.links.append(_to_section(event, event.id in past, f"SECTIME{len(record.links)}"))
    return record


def _event(one: Mention, id: str) -> Event:
    modality, polarity = one.attributes.get("modality", "FACTUAL"), one.attributes.get("polarity", "POS")
    return Event(one.start + 1, one.end + 1, one.kind.upper(), modality, polarity, id)


def _time(one: Mention, id: str, dates: Mapping[tuple[int, int], str]) -> Timex:
    """A time; a date says no more than its text does, whatever day was meant."""
    type, value = one.attributes.get("type", "DATE"), one.attributes.get("value", "")
    if type == "DATE":
        value = dates.get((one.start, one.end), value)
    return Timex(one.start + 1, one.end + 1, type, value, one.attributes.get("mod", "NA"), id)


def _together(record: Record) -> list[tuple[Event, Timex]]:
    """Each date or time of day with the event that stands nearest to it on its line."""
    found = []
    taken = {section.start for section in record.section_times}
    for time in record.times:
        if time.type not in ("DATE", "TIME") or time.start in taken:
            continue
        start, end = record.text.rfind("\n", 0, time.start), record.text.find("\n", time.end)
        beside = [event for event in record.events if start < event.start and event.end <= end]
        apart = [event for event in beside if event.end <= time.start or time.end <= event.start]
        if apart:
            found.append((min(apart, key=lambda event: max(time.start - event.end, event.start - time.end)), time))
    return found


def _to_section(event: Event, past: bool, id: str) -> Link:
    if past:
        type = "OVERLAP" if event.type == "PROBLEM" else "BEFORE"
        return Link(id, event.id, "Admission", type)
    return Link(id, event.id, "Discharge", "AFTER" if event.modality in ("PROPOSED", "CONDITIONAL") else "BEFORE")
