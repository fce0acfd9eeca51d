"""Folders of text files, one folder for each class: `DIR/CLASS/*.txt`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from posology.corpus.document import Document
from posology.corpus.textfile import read_text


def read_class_folders(folder: Path, *, name: str, encoding: str = "utf-8") -> Iterator[Document]:
    """Yields one document for each `.txt` file under a sub-folder of `folder`, which names its class.

    Args:
        name: what ids begin with, empty for nothing; `CLASS/FILE` follows.

    Raises:
        UserError: a file cannot be read.
    """
    for class_folder in class_folders(folder):
        for path in sorted(class_folder.rglob("*.txt")):
            relative = path.relative_to(folder).with_suffix("").as_posix()
            yield Document(
                id=f"{name}/{relative}" if name else relative,
                text=read_text(path, encoding),
                label=class_folder.name,
                place=str(path),
            )


def class_folders(folder: Path) -> list[Path]:
    """Sub-folders that hold text files, by name."""
    return [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and next(sub.rglob("*.txt"), None) is not None]
