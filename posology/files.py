"""Writing so that nothing is ever left half-written, and only its owner can read it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posology.errors import UserError


@contextlib.contextmanager
def staged_folder(target: Path, *, marker: str, needs_bytes: int = 0, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty, owner-only folder beside `target` that takes its place when the block succeeds.

    If the block raises, the staging folder is removed and `target` is as it was before.

    Args:
        target: the folder to make; may exist only if it is empty, or if it is one of ours and `overwrite` is set.
        marker: the file that shows that a folder is one of ours.
        needs_bytes: an estimate of what will be written; refused beforehand where the disk has less.
        overwrite: replace an existing folder.

    Raises:
        UserError: `target` is in the way or cannot be made, or the disk is too full.
    """
    target = Path(target)
    check_free(target, marker=marker, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target.parent, needs_bytes)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        yield staging
        if target.is_dir():
            retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
            os.replace(target, retired / "was")
            try:
                os.replace(staging, target)
            except BaseException:
                os.replace(retired / "was", target)
                raise
            finally:
                shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(staging, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yields an owner-only path beside `target` that takes its place when the block succeeds.

    Raises:
        UserError: the file cannot be written.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(target, error) from error
    staging = Path(name)
    try:
        yield staging
        os.replace(staging, target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        staging.unlink(missing_ok=True)


def check_free(target: Path, *, marker: str, overwrite: bool) -> None:
    """Raises UserError if `target` cannot become a new folder.

    Args:
        target: may be empty, or, with `overwrite`, a folder that holds `marker`: nobody loses a folder of notes by it.
        marker: the file that shows that a folder is one of ours.
        overwrite: whether a folder of ours may be replaced.
    """
    try:
        if target.resolve() == Path.cwd():
            raise UserError("is the folder you are in", "Name a new folder", target)
        if target.exists() and not target.is_dir():
            raise UserError("is a file, and --out must be new", "Name another folder", target)
        if not target.is_dir() or not any(target.iterdir()):
            return
    except OSError as error:  # a folder on the way that one may not enter
        raise _cannot_write(target, error) from error
    if not overwrite:
        raise UserError(
            "is a folder that is not empty, and --out must be new", "Name another folder or add --overwrite", target
        )
    if not (target / marker).is_file():
        raise UserError(f"holds no {marker}, so --overwrite does not replace it", "Name another folder", target)


def check_writable(target: Path, needs_bytes: int) -> None:
    """Raises UserError, before long work, where `target` could not be made after it.

    Args:
        target: a folder or file that does not exist yet.
        needs_bytes: an estimate of what it will hold.
    """
    try:
        existing = next(folder for folder in target.absolute().parents if folder.exists())
        if not existing.is_dir():
            raise UserError("is a file, where a folder would be needed", "Name another place", existing)
        check_space(existing, needs_bytes)
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise _cannot_write(target, error) from error


def check_space(folder: Path, needs_bytes: int) -> None:
    """Raises UserError if the disk that holds `folder` has less than `needs_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < needs_bytes:
        raise UserError(
            f"the disk has {free / 1e6:,.0f} MB free and about {needs_bytes / 1e6:,.0f} MB are needed",
            "Free some space or name a folder on another disk",
            folder,
        )


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with staged_file(path) as staging:
        staging.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cannot_write(target: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot be written ({error.strerror or error})",
        "Check permissions and free space, or name another place",
        target,
    )
