"""YAML files whose every key and value knows its line, so that a fault can be pointed at."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import yaml

from posology.errors import UserError

Steps = tuple[str | int, ...]
"""The way from a file's outermost value to one inside: keys and, in lists, numbers from 0."""


class Places:
    """Where the keys and values of one file stand.

    Args:
        file: what messages call the file.
        lines: the line, from 1, of what each way leads to.
    """

    def __init__(self, file: str, lines: dict[Steps, int] | None = None):
        self.file = file
        self.lines = lines or {}

    def fault(self, steps: Steps, problem: str, mend: str) -> UserError:
        """The error to raise about what `steps` lead to, or about the nearest thing around it that has a line."""
        known = steps
        while known and known not in self.lines:
            known = known[:-1]
        place = f"{self.file}:{self.lines[known]}" if known in self.lines else self.file
        return UserError(f"{spelled(steps)}: {problem}" if steps else problem, mend, place)

    def line(self, location: Steps) -> int:
        """The line of what pydantic's `location` leads to, or of the nearest thing around it; 0 where there is none."""
        return self.lines.get(self.known(location), 0)

    def known(self, location: Steps) -> Steps:
        """`location` without the steps that only pydantic takes (names of a union's branches)."""
        steps: Steps = ()
        for step in location:
            if (*steps, step) in self.lines:
                steps = (*steps, step)
        return steps


def spelled(steps: Steps) -> str:
    """`sweep.shots[1]`, numbered from 0 as in Python."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


def read_yaml(path: Any, file: str) -> tuple[Any, Places]:
    """Reads one YAML document, by the rules of YAML 1.2: `1e-3` is a number, `no` and `12:30` are text.

    Args:
        path: a `Path`, or a file inside a package.
        file: what messages call it.

    Raises:
        UserError: the file cannot be read, is no text or no YAML, or has a key twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {error.start} is not UTF-8, so it is no text file", "Name a study file in YAML", file
        ) from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", "Name a study file in YAML", file) from error
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise UserError("is empty", "Write at least study, tasks and methods", file)
        lines: dict[Steps, int] = {}
        _locate(loader, node, (), lines, file, [])
        return loader.construct_document(node), Places(file, lines)
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"character {error.position} cannot be in a YAML file, so it is probably no text file",
            "Name a study file in YAML",
            file,
        ) from error
    except yaml.MarkedYAMLError as error:
        raise _syntax(error, text, file) from error
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's, with the core schema of YAML 1.2 in place of that of 1.1."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _locate(
    loader: _Loader, node: yaml.Node, steps: Steps, lines: dict[Steps, int], file: str, around: list[yaml.Node]
) -> None:
    """Notes the line of every key and value below `node`, and refuses keys that are there twice."""
    lines.setdefault(steps, node.start_mark.line + 1)
    if any(node is other for other in around):
        raise Places(file, lines).fault(steps, "holds itself", "Take the alias out")
    inside = [*around, node]
    if isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _locate(loader, value, (*steps, number), lines, file, inside)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                where = Places(file, {**lines, (*steps, key.value): line})
                raise where.fault(
                    (*steps, key.value), f"is there already, in line {seen[key.value]}", "Keep one of the two"
                )
            seen[key.value if isinstance(key, yaml.ScalarNode) else ""] = line
        loader.flatten_mapping(node)  # puts in what `<<` refers to, before what is written here, which wins
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines[(*steps, key.value)] = key.start_mark.line + 1
                _locate(loader, value, (*steps, key.value), lines, file, inside)


def _syntax(error: yaml.MarkedYAMLError, text: str, file: str) -> UserError:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return UserError(f"is no YAML ({error.problem})", "Correct it", file)
    rows = text.splitlines()
    row = rows[mark.line] if mark.line < len(rows) else ""
    place = f"{file}:{mark.line + 1}"
    indent = row[: len(row) - len(row.lstrip())]
    if "\t" in indent:
        return UserError("the line is indented with a tab, which YAML forbids", "Indent with spaces", place)
    return UserError(
        f"is no YAML from column {mark.column + 1} on ({error.problem})", "Correct this line or the one before", place
    )


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """A suggestion for messages, if anything allowed is near to `name`."""
    spellings = {one.casefold(): one for one in allowed}
    near = difflib.get_close_matches(name.casefold(), spellings, n=1)
    return f"Write {spellings[near[0]]}, if that is what you mean" if near else None


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
