"""From a path to documents: which files there are, which split each makes, and which reader reads them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posology import files
from posology.console import say
from posology.corpus import brat, conll, folders, hub, relations, tabular
from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.corpus.textfile import bare_name
from posology.errors import UserError
from posology.tasks.prepared import SPLITS
from posology.tasks.split import split_of_file, split_of_name

FORMATS = {
    "classification": ("csv", "tsv", "jsonl", "parquet", "folders", "datasets"),
    "entities": ("conll", "jsonl", "parquet", "brat", "datasets"),
    "relations": ("csv", "tsv", "jsonl", "parquet", "brat", "datasets"),
}
"""What each task can be read from."""

TABLES = ("csv", "tsv", "jsonl", "parquet")
_SUFFIXES = {
    "csv": (".csv",),
    "tsv": (".tsv",),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
    "conll": (".conll", ".tsv", ".txt", ".bio", ".iob", ".iob2"),
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LISTED_FILES = 50
_PATIENTS = ("group", "patient", "patient_id", "subject", "subject_id")


@dataclass(frozen=True)
class Part:
    """A file, a folder or a hub id to read.

    Attributes:
        split: the split it makes; None if that is still open.
        name: what made-up ids begin with; unique within a source.
    """

    path: Path | str
    split: str | None
    name: str


@dataclass(frozen=True)
class Reading:
    """How to read; see `generic.prepare`, whose options these are."""

    text: str | None = None
    label: str | None = None
    group: str | None = None
    id: str | None = None
    text_pair: str | None = None
    quoting: bool = True
    encoding: str = "utf-8"
    drop_empty: bool = False
    token_column: int = 0
    tag_column: int = -1
    scheme: str | None = None
    repair: bool = False
    discontinuous: brat.Discontinuous = "hull"
    markers: relations.Markers = "around"
    marks: str = relations.MARKS
    arguments: Sequence[str] | None = None
    negative: str = "false"
    sentences: relations.Sentences = "sentence"
    online: bool = False

    @property
    def columns(self) -> tabular.Columns:
        return tabular.Columns(self.text, self.label, self.group, self.id, self.text_pair)


def find(
    task: str, source: Path | str, *, format: str | None, explicit: Mapping[str, Path | None], online: bool
) -> tuple[str, list[Part]]:
    """The format of a source and what is to be read of it.

    Args:
        source: a file; a folder with split files, split sub-folders, class folders, BRAT pairs or a saved dataset; with
            `online`, a hub id.
        format: one of `FORMATS[task]`; None detects it.
        explicit: paths that make a split, whatever their names; relative ones may also start at `source`.

    Raises:
        UserError: nothing to read, or not clear what.
    """
    root = Path(source)
    named = {split: path for split, path in explicit.items() if path is not None}
    if online and not root.exists():
        if format not in (None, "datasets"):
            raise UserError(f"format {format!r} cannot be read online", "Leave out --online or --format", source)
        return "datasets", [Part(str(source), None, str(source).replace("/", "-"))]
    if not root.exists():
        looks_like_id = "datasets" in FORMATS[task] and _HUB_ID.fullmatch(str(source))
        mend = ", or add --online if it is the id of a dataset on the Hugging Face hub" if looks_like_id else ""
        raise UserError("there is no such file or folder", f"Check the path{mend}", source)
    try:
        if named:
            parts = [
                replace(part, name=f"{split}/{part.name}" if part.path != path else split)
                for split, path in ((split, _existing(path, root)) for split, path in named.items())
                for part in _contents(path, task, format, split, path)
            ]
        else:
            parts = _scan(root, task, format) if root.is_dir() else _contents(root, task, format, None, root)
        return _one_format(parts, task, format, source), parts
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", "Check its permissions", source) from error


def _existing(path: Path, root: Path) -> Path:
    for candidate in (Path(path), root / path):
        if candidate.exists():
            return candidate
    raise UserError("there is no such file or folder", "Check the path", path)


def _scan(root: Path, task: str, format: str | None) -> list[Part]:
    """The parts of a folder: split files go before split sub-folders, and those before the folder as a whole."""
    pairs = "brat" in FORMATS[task] and format in (None, "brat") and any(root.glob("*.ann"))
    if pairs or hub.is_dataset(root):
        return _contents(root, task, format, None, root)
    entries = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")]
    candidates = [entry for entry in entries if entry.is_file() and _file_format(entry, task, format)]
    split_files = [(entry, split) for entry in candidates if (split := split_of_file(entry))]
    if not split_files and format is not None:  # a forced format makes up for an unknown extension
        split_files = [(entry, split) for entry in entries if entry.is_file() and (split := split_of_file(entry))]
    if split_files:
        parts = [Part(entry, split, bare_name(entry)) for entry, split in split_files]
        _tell_ignored([entry for entry in candidates if entry not in dict(split_files)])
        return parts
    sub_folders = [(entry, split) for entry in entries if entry.is_dir() and (split := split_of_name(entry.name))]
    if "train" in dict(sub_folders).values():
        _tell_ignored([entry for entry in entries if entry.is_dir() and entry not in dict(sub_folders)])
        return [part for entry, split in sub_folders for part in _contents(entry, task, format, split, root)]
    return _contents(root, task, format, None, root)


def _contents(path: Path, task: str, format: str | None, split: str | None, root: Path) -> list[Part]:
    """What a file or a folder of one split consists of."""
    base = root if root.is_dir() and path.is_relative_to(root) else path.parent
    name = path.relative_to(base).as_posix() if path != root else ""
    if path.is_file():
        return [Part(path, split, (Path(name).parent / bare_name(path)).as_posix() if name else bare_name(path))]
    if _folder_format(path, task, format):
        return [Part(path, split, name)]
    found = [entry for entry in sorted(path.iterdir()) if entry.is_file() and not entry.name.startswith(".")]
    fitting = [entry for entry in found if _file_format(entry, task, format)]
    if not fitting:
        raise UserError(
            f"found no file that task {task!r} can be read from ({', '.join(FORMATS[task])})",
            "Check the folder, or name a file",
            path,
        )
    return [Part(entry, split, f"{name}/{bare_name(entry)}".lstrip("/")) for entry in fitting]


def _file_format(path: Path, task: str, format: str | None) -> str | None:
    """The format that a file's extension stands for, if the task can be read from it (and it is the forced one)."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    for known in (format,) if format else FORMATS[task]:
        if suffix in _SUFFIXES.get(known, ()):
            return known
    return None


def _folder_format(folder: Path, task: str, format: str | None) -> str | None:
    """The format of a folder that is read as a whole, or None."""
    for known in ("datasets", "brat", "folders"):
        if known not in FORMATS[task] or format not in (None, known):
            continue
        if known == "datasets":
            fits = hub.is_dataset(folder)
        elif known == "brat":
            fits = next(folder.rglob("*.ann"), None) is not None
        else:
            tables = any(_file_format(entry, task, None) for entry in folder.iterdir() if entry.is_file())
            fits = bool(folders.class_folders(folder)) and (format == known or not tables)
        if fits:
            return known
    return None


def _one_format(parts: Sequence[Part], task: str, format: str | None, source: object) -> str:
    if format is not None:
        return format
    found = set()
    for part in parts:
        path = Path(part.path)
        detected = _file_format(path, task, None) if path.is_file() else _folder_format(path, task, None)
        if detected is None:
            raise UserError(
                f"its extension stands for none of {', '.join(FORMATS[task])}, from which task {task!r} can be read",
                "Rename the file, convert it, or add --format",
                path,
            )
        found.add(detected)
    if len(found) > 1:
        raise UserError(f"holds several formats ({', '.join(sorted(found))})", "Choose one with --format", source)
    return found.pop()


def _tell_ignored(entries: Sequence[Path]) -> None:
    if entries:
        shown = ", ".join(entry.name for entry in entries[:5]) + (" ..." if len(entries) > 5 else "")
        say(f"Ignored, because their names are no splits: {shown}.")


def read(task: str, format: str, parts: Sequence[Part], how: Reading, counts: Counter[str]) -> list[Document]:
    """Reads the parts of a source.

    Returns:
        Documents with `split` where their part gives one.

    Raises:
        UserError: something in them is wrong.
    """
    if format == "datasets":
        return _read_datasets(task, parts, how, counts)
    if format == "conll":
        return _read_sentences([(part.split, _sentences(part, how)) for part in parts], how, counts)
    if format == "brat":
        return _read_brat(task, parts, how, counts)
    documents: list[Document] = []
    for part in parts:
        path = Path(part.path)
        if format == "folders":
            found = list(folders.read_class_folders(path, name=part.name, encoding=how.encoding))
        else:
            records = tabular.read_records(path, format, quoting=how.quoting, encoding=how.encoding)
            if part.split is None:
                _name_patients(records, how)
            found = _read_table(task, records, part.name, path, how, counts)
        documents += _with_split(found, part.split)
    return documents


def _name_patients(records: Sequence[tabular.Record], how: Reading) -> None:
    """Says so where splits are to be made of a table that seems to know the patients, and nobody has named the column."""
    found = next((name for name in records[0].values if name.lower() in _PATIENTS), None)
    if how.group is None and found is not None:
        say(f"column {found!r} seems to name the patient: with --group {found} none would be in several splits")


def _read_table(
    task: str, records: Sequence[tabular.Record], name: str, place: object, how: Reading, counts: Counter[str]
) -> list[Document]:
    annotated = task == "entities"
    columns = tabular.resolve(how.columns, records, needs_label=not annotated, place=place)
    documents = list(
        tabular.documents(records, columns, name=name, annotated=annotated, drop_empty=how.drop_empty, counts=counts)
    )
    if annotated:
        for document in documents:
            document.words = document.words or words_of(document.text)
    if task == "relations":
        documents = list(relations.from_marked(documents, marks=how.marks, markers=how.markers))
    return documents


def _sentences(part: Part, how: Reading) -> list[conll.Sentence]:
    return list(
        conll.read_sentences(
            Path(part.path),
            name=part.name,
            token_column=how.token_column,
            tag_column=how.tag_column,
            encoding=how.encoding,
        )
    )


def _read_sentences(
    groups: Sequence[tuple[str | None, list[conll.Sentence]]], how: Reading, counts: Counter[str]
) -> list[Document]:
    """All parts at once, since together they decide the tagging scheme."""
    split_of = [split for split, sentences in groups for _ in sentences]
    sentences = [sentence for _, sentences in groups for sentence in sentences]
    documents = list(conll.documents(sentences, scheme=how.scheme, mend=how.repair, counts=counts))
    for document, split in zip(documents, split_of, strict=True):
        document.split = split
    return documents


def _read_brat(task: str, parts: Sequence[Part], how: Reading, counts: Counter[str]) -> list[Document]:
    annotated = []
    split_of = {}
    for part in parts:
        for pair in brat.read_brat(Path(part.path), name=part.name, encoding=how.encoding):
            annotated.append(pair)
            split_of[pair.id] = part.split
    if task == "entities":
        documents = [brat.entity_document(pair, discontinuous=how.discontinuous, counts=counts) for pair in annotated]
    else:
        documents = list(
            relations.from_brat(
                annotated,
                arguments=_argument_types(how.arguments),
                negative=how.negative,
                markers=how.markers,
                sentences=how.sentences,
                counts=counts,
            )
        )
    for document in documents:
        document.split = split_of[document.group]  # the group is the pair of files in both tasks
    return documents


def _argument_types(arguments: Sequence[str] | None) -> list[tuple[str, str]] | None:
    if arguments is None:
        return None
    pairs = []
    for argument in arguments:
        first, _, second = argument.partition(":")
        if not first or not second:
            raise UserError(f"{argument!r} is no pair of types", "Write it as Chemical:Gene", "--arguments")
        pairs.append((first, second))
    return pairs


def _read_datasets(task: str, parts: Sequence[Part], how: Reading, counts: Counter[str]) -> list[Document]:
    groups: list[tuple[str | None, list[conll.Sentence]]] = []
    documents: list[Document] = []
    for part in parts:
        online = how.online and not Path(part.path).exists()
        loaded = hub.load(part.path, online=online)
        if not part.split and any(map(split_of_name, loaded)):
            _tell_ignored([Path(name) for name in loaded if not split_of_name(name)])
            loaded = {name: dataset for name, dataset in loaded.items() if split_of_name(name)}
        for name, dataset in loaded.items():
            split, place = part.split or split_of_name(name), f"{part.path}, split {name}"
            prefix = f"{part.name}-{name}" if part.name else name
            if task == "entities" and "spans" not in dataset.column_names:
                columns = {"tokens": how.text, "tags": how.label, "group": how.group, "id": how.id}
                groups.append((split, hub.sentences(dataset, name=prefix, place=place, **columns)))
            else:
                found = _read_table(task, hub.records(dataset, place), prefix, place, how, counts)
                documents += _with_split(found, split)
    return documents + (_read_sentences(groups, how, counts) if groups else [])


def _with_split(documents: list[Document], split: str | None) -> list[Document]:
    for document in documents:
        document.split = split
    return documents


def describe(format: str, parts: Sequence[Part], source: Path | str) -> dict[str, Any]:
    """Names and sums of what was read, without absolute paths; of many files one sum over all."""
    root = Path(source)
    found = dict(_files(parts, root))
    if not found:
        return {"format": format, "id": str(source)}
    if len(found) > _LISTED_FILES:
        content = "\n".join(f"{digest}  {name}" for name, digest in sorted(found.items()))
        return {"format": format, "files": len(found), "sha256": hashlib.sha256(content.encode()).hexdigest()}
    return {"format": format, "files": found}


def _files(parts: Sequence[Part], root: Path) -> Iterator[tuple[str, str]]:
    for part in parts:
        path = Path(part.path)
        for file in [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []:
            if file.is_file():
                name = file.relative_to(root).as_posix() if root.is_dir() and file.is_relative_to(root) else file.name
                yield name, files.sha256(file)


def tell_splits(parts: Sequence[Part]) -> None:
    """Says which files make which split, where files do."""
    for split in SPLITS:
        names = [Path(part.path).name for part in parts if part.split == split]
        if names:
            say(f"{split}: {', '.join(names)}")
