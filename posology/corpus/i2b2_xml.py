"""The XML of i2b2 2012 and 2014: read leniently where it is not well-formed, offsets checked against quoted texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn
from xml.parsers import expat

from posology.corpus.i2b2 import ENTITIES, NOT_IN_XML, Problems, decoded, natural, refuse_empty, same_text, unescape
from posology.errors import UserError

_BARE_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#\d+|#x[0-9a-fA-F]+);)")
_TEXT_START = re.compile(r"<TEXT\b[^>]*>(\s*<!\[CDATA\[)?")
_CDATA_END = re.compile(r"\]\]>\s*</TEXT>")
_NEXT_CDATA = "]]><![CDATA["
# A value ends at the quote that the next attribute or the end of the tag follows: quotes inside it do not end it.
_ATTRIBUTE = re.compile(r'(\s[A-Za-z_][\w.-]*\s*=\s*")(.*?)(?="(?:\s+[A-Za-z_][\w.-]*\s*=\s*"|\s*/?>\s*<))', re.DOTALL)
_LARGEST_SHIFT = 16


class Element(NamedTuple):
    """One tag of an annotated XML file, with the `file:line` where it begins."""

    name: str
    attributes: Mapping[str, str]
    place: str

    @property
    def called(self) -> str:
        return self.attributes.get("id") or self.name

    def get(self, attribute: str) -> str:
        """An attribute's value without surrounding white space.

        Raises:
            UserError: there is none.
        """
        if attribute not in self.attributes:
            raise UserError(f"{self.called}: has no {attribute}", "Mend or remove the tag", self.place)
        return self.attributes[attribute].strip()


def read_xml(path: Path, problems: Problems) -> tuple[str, list[Element]]:
    """The text of an annotated file (all of its CDATA, line breaks at its beginning included) and the children of TAGS.

    A file that is not well-formed is read leniently and reported: the text is taken as it stands, and ampersands,
    angle brackets and quotes in attributes count as themselves.

    Raises:
        UserError: it is empty, binary, cut off, has no TEXT or TAGS, or a document type (which could name other files).
    """
    content = decoded(path, problems)
    refuse_empty(content, path)
    before, text, after = _cut(content, path)
    try:
        return text, _tags(content, path)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        problems.append((f"{path}:{error.lineno}", f"is not well-formed XML ({reason}): read leniently"))
    try:
        gap = "\n" * (content.count("\n") - before.count("\n") - after.count("\n"))  # keeps the numbers of lines
        return text, _tags(before + gap + _ATTRIBUTE.sub(_mended, after), path)
    except expat.ExpatError as error:
        raise UserError(
            f"is not well-formed XML ({expat.ErrorString(error.code)}) and could not be mended",
            "Copy the file again, or mend the line",
            f"{path}:{error.lineno}",
        ) from error


def _cut(content: str, path: Path) -> tuple[str, str, str]:
    """What stands before the content of TEXT, that content, and what stands after it."""
    start = _TEXT_START.search(content)
    if start is None:
        raise UserError("has no TEXT element", "Name a folder of files in i2b2's XML format", path)
    if start[1]:
        end = _CDATA_END.search(content, start.end())
        if end is not None:
            before = content[: start.start(1)]
            text = content[start.end() : end.start()].replace(_NEXT_CDATA, "")
            return before, text, "</TEXT>" + content[end.end() :]
    else:
        close = content.find("</TEXT>", start.end())
        if close >= 0:
            return content[: start.end()], unescape(content[start.end() : close]), content[close:]
    raise UserError("its TEXT element has no end", "Copy the file again: it is cut off", path)


def _tags(content: str, path: Path) -> list[Element]:
    elements: list[Element] = []
    inside: list[str] = []
    seen = set()
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        if inside[-1:] == ["TAGS"]:
            elements.append(Element(name, attributes, f"{path}:{parser.CurrentLineNumber}"))
        inside.append(name)
        seen.add(name)

    def refuse(*_: object) -> NoReturn:
        raise UserError("has a document type declaration", "Remove it: i2b2's files have none", path)

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: inside.pop()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)
    if "TAGS" not in seen:
        raise UserError("has no TAGS element", "Name a folder of annotated files", path)
    return elements


def _mended(attribute: re.Match[str]) -> str:
    value = NOT_IN_XML.sub(" ", _BARE_AMPERSAND.sub("&amp;", attribute[2]))
    return attribute[1] + value.replace("<", "&lt;").replace('"', "&quot;")


def offsets(text: str, tags: Sequence[Element], path: Path, problems: Problems) -> list[tuple[int, int] | None]:
    """Where the tags stand in the text: `(start, end)`, or None for a tag that is reported and to be dropped.

    The text at a tag's offsets must be the text that it quotes. Where it is not, but is when each line break counts as
    two characters (CR LF), or when everything from some place on is moved by a few characters, that is what counts,
    and it is reported.

    Raises:
        UserError: offsets that are no numbers, the wrong way round, or beyond the text.
    """
    spans = [_numbers(tag) for tag in tags]
    quotes = [tag.attributes.get("text", "") for tag in tags]

    def wrong(spans: Sequence[tuple[int, int]]) -> list[int]:
        checked = enumerate(zip(spans, quotes, strict=True))
        return [index for index, ((start, end), quoted) in checked if not _stands(text, start, end, quoted)]

    bad = wrong(spans)
    if bad:
        unix = [at for at, character in enumerate(text) for _ in range(2 if character == "\n" else 1)] + [len(text)]
        counted = [
            (unix[start] if start < len(unix) else start, unix[end] if end < len(unix) else end) for start, end in spans
        ]
        if len(wrong(counted)) < len(bad):
            spans, before, bad = counted, len(bad), wrong(counted)
            sentence = (
                f"{before} of {len(tags)} tags do not match the text they quote unless a line break counts as two "
                f"characters (CR LF); read so, {len(bad)} do not"
            )
            problems.append((str(path), sentence))
    tail, shift = _shifted(text, spans, quotes, bad)
    if tail:
        spans = [(start + shift, end + shift) if at in tail else (start, end) for at, (start, end) in enumerate(spans)]
        bad = wrong(spans)
        sentence = f"the last {len(tail)} tags stand {shift:+d} characters from where their offsets say: read there"
        problems.append((str(path), sentence))
    for index in bad:
        start, end = spans[index]
        if end > len(text):
            raise UserError(
                f"{tags[index].called}: offsets {start} {end} are beyond the text of {len(text)} characters",
                "Mend the offsets, or copy the file again: its text may be cut off",
                tags[index].place,
            )
        sentence = f"{tags[index].called}: the text at {start} {end} is not the text that the tag quotes: dropped"
        problems.append((tags[index].place, sentence))
    dropped = set(bad)
    return [None if index in dropped else span for index, span in enumerate(spans)]


def _numbers(tag: Element) -> tuple[int, int]:
    start, end = tag.get("start"), tag.get("end")
    if not (re.fullmatch("[0-9]{1,9}", start) and re.fullmatch("[0-9]{1,9}", end) and int(start) <= int(end)):
        raise UserError(
            f"{tag.called}: its start and end are not two numbers in order", "Mend or remove the tag", tag.place
        )
    return int(start), int(end)


def _stands(text: str, start: int, end: int, quoted: str) -> bool:
    return 0 <= start < end <= len(text) and same_text(text[start:end], quoted)


def _shifted(
    text: str, spans: Sequence[tuple[int, int]], quotes: Sequence[str], bad: Sequence[int]
) -> tuple[set[int], int]:
    """The tags from some place on, two at least, that all match when moved by one number of characters."""
    order = sorted(bad, key=lambda index: spans[index])
    for tail in (order, order[1:]):  # the first may stretch over the place where characters are missing
        if len(tail) < 2 or any(spans[index] >= spans[tail[0]] for index in range(len(spans)) if index not in bad):
            continue
        for shift in sorted(range(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1), key=abs):
            if all(_stands(text, spans[at][0] + shift, spans[at][1] + shift, quotes[at]) for at in tail):
                return set(tail), shift
    return set(), 0


def write_xml(path: Path, root: str, text: str, tags: Sequence[tuple[str, Mapping[str, object]]]) -> None:
    """Writes an annotated file.

    Args:
        root: name of its root element.
        tags: name and attributes of each, in order.

    Raises:
        ValueError: a character that XML cannot hold.
    """
    lines = ['<?xml version="1.0" encoding="UTF-8" ?>', f"<{root}>"]
    lines.append(f"<TEXT><![CDATA[{text.replace(']]>', ']]' + _NEXT_CDATA + '>')}]]></TEXT>")
    lines.append("<TAGS>")
    for name, attributes in tags:
        pairs = " ".join(f'{key}="{_escaped(str(value))}"' for key, value in attributes.items())
        lines.append(f"<{name} {pairs} />")
    lines += ["</TAGS>", f"</{root}>"]
    content = "\n".join(lines) + "\n"
    if NOT_IN_XML.search(content) or "\r" in content:
        raise ValueError(f"{path.name}: control characters cannot be written to XML")
    path.write_bytes(content.encode("utf-8"))


def _escaped(value: str) -> str:
    for entity, character in ENTITIES.items():
        value = value.replace(character, f"&{entity};")
    return value.replace("\n", "&#10;").replace("\t", "&#9;")


def xml_files(
    root: Path, folders: Mapping[str, Sequence[str]], problems: Problems
) -> Iterator[tuple[Path, str | None]]:
    """Yields `(file, split)` for the annotated files of a tree as distributed, or of any folder (split None).

    Args:
        folders: for each split, patterns of its folders' names; only those of the first pattern that finds any count.

    Raises:
        UserError: there is no such file, or two records have one name.
    """
    everything = _xml_below(root)
    if not everything:
        raise UserError("there are no .xml files in it", "Name the folder that the distribution was unpacked to", root)
    found: dict[Path, str | None] = {}
    for split, patterns in folders.items():
        for pattern in patterns:
            if files := [path for path in everything if _is_in(path, root, pattern)]:
                found |= dict.fromkeys(files, split)
                break
    if not found:
        found = dict.fromkeys(everything)
    elif len(found) < len(everything):
        number = len(everything) - len(found)
        problems.append((str(root), f"{number} .xml files are in none of the folders that are looked for: not read"))
    by_name: dict[str, Path] = {}
    for path in found:
        if path.name in by_name:
            raise UserError(f"has the name of {by_name[path.name]}", "Name a folder that holds each record once", path)
        by_name[path.name] = path
    yield from found.items()


def _is_in(path: Path, root: Path, pattern: str) -> bool:
    """Whether the folder named by the user, or one between it and the file, has such a name."""
    names = [root.absolute().name, *path.relative_to(root).parts[:-1]]
    return any(re.search(pattern, name, re.IGNORECASE) for name in names)


def _xml_below(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*.xml") if path.is_file() and not path.name.startswith(".")]
    return sorted(files, key=lambda path: (natural(path.stem), path))
