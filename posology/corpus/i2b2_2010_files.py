"""Where the files of i2b2/VA 2010 are, in the tree as distributed and in simpler folders."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from posology.corpus.i2b2 import natural
from posology.errors import UserError

HOSPITALS = ("beth", "partners")
GOLD = {".con": ("concept", "concepts"), ".ast": ("ast",), ".rel": ("rel",)}
"""Extensions of the annotation files, and the names of their folders."""


class Files(NamedTuple):
    """The files of one record."""

    text: Path
    gold: dict[str, Path]  # by extension
    hospital: str
    split: str | None


def record_files(root: Path) -> list[Files]:
    """The files of all records: the hospitals', then the test's; or those of the only folder.

    Raises:
        UserError: there are none, or a part of the tree or the counterpart of a file is missing.
    """
    folders = [root, *sorted(path for path in root.rglob("*") if path.is_dir())]

    def named(name: str) -> list[Path]:
        return [path for path in folders if path.absolute().name == name]

    found = []
    for hospital in HOSPITALS:
        homes = [path for path in named(hospital) if _gold_folder(path, ".con") or _files(_text_folder(path), ".txt")]
        if len(homes) > 1:
            raise UserError(f"{hospital} is there twice", "Name a folder that holds the training data once", homes[1])
        found += [record for path in homes for record in _pairs(path, path, hospital, "train")]
    references, texts = named("reference_standard_for_test_data"), named("test_data")
    if references:
        reference = next((path for path in references if _gold_folder(path, ".con")), references[0])
        candidates = [*texts, reference.absolute().parent / "test_data", reference]
        texts = [path for path in candidates if _files(_text_folder(path), ".txt")]
        if not texts:
            raise UserError("there is no test_data with its texts beside it", "Unpack test_data too", reference)
        found += _pairs(reference, texts[0], "", "test")
    elif texts:
        mend = "Unpack that too, or take test_data away"
        raise UserError("there is no reference_standard_for_test_data beside it", mend, texts[0])
    if found:
        return found
    if _gold_folder(root, ".con") is None:
        raise UserError(
            "holds no .con files: expected the tree as distributed, or the folders txt, concept, ast and rel",
            "Name the folder that the distribution was unpacked to",
            root,
        )
    return _pairs(root, root, "", None)


def _gold_folder(folder: Path, extension: str) -> Path | None:
    """Where the files with this extension are: in a sub-folder of their own, or in `folder` itself."""
    candidates = [folder / name for name in GOLD[extension]]
    return next((path for path in [*candidates, folder] if _files(path, extension)), None)


def _text_folder(folder: Path) -> Path:
    return folder / "txt" if _files(folder / "txt", ".txt") else folder


def _files(folder: Path, extension: str) -> dict[str, Path]:
    """Files by name without extension; hidden ones are left-overs of packing."""
    files = [path for path in folder.glob(f"*{extension}") if path.is_file() and not path.name.startswith(".")]
    return {path.stem: path for path in sorted(files, key=lambda path: natural(path.stem))}


def _pairs(gold_home: Path, text_home: Path, hospital: str, split: str | None) -> list[Files]:
    """The texts of one folder with their annotations of another or the same."""
    text_folder = _text_folder(text_home)
    texts = _files(text_folder, ".txt")
    gold = {extension: _files(_gold_folder(gold_home, extension) or gold_home, extension) for extension in GOLD}
    for files in gold.values():
        for name, path in files.items():
            if name not in texts:
                raise UserError(f"there is no {name}.txt in {text_folder}", "Put the text there", path)
    for name, path in texts.items():
        if name not in gold[".con"]:
            mend = "Make an empty one if nothing is annotated, or take the text away"
            raise UserError(f"there is no {name}.con for it in {gold_home}", mend, path)
    return [
        Files(text, {extension: files[name] for extension, files in gold.items() if name in files}, hospital, split)
        for name, text in texts.items()
    ]
