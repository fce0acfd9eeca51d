"""Long work over an input in parts beside its output, so that what was killed goes on where it was.

    .OUT.parts/ ── made_of.json      input, artifact and options: parts of others are never mixed
                ├─ 0.part 1.part ..  what will be in OUT
                ├─ journal.jsonl     a line for each part that is whole: rows of the input up to there, and counts
                └─ lock              held by the process at work

A part counts once its line stands in the journal. OUT appears as a whole, at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from posology.errors import Interrupted, UserError
from posology.files import sha256, staged_file, write_json

_MADE_OF, _JOURNAL, _WHOLE = "made_of.json", "journal.jsonl", "whole"

Entry = dict[str, Any]


class Journal:
    """The parts of one output. A context: only one process at a time is in it.

    Left by an exception, parts stay for the next time, if there are any.

    Args:
        out: the file or folder to make.
        made_of: what it is made of, by name; compared with that of parts that are there.
        fresh: forget parts that are there.
        overwrite: `out` may be there.

    Attributes:
        entries: of the parts that are done: `rows` of the input up to there, and what `add` was given.

    Raises:
        UserError: another process is at it, parts are of something else, `out` is there, or nothing can be written.
    """

    def __init__(self, out: Path, made_of: Mapping[str, Any], *, fresh: bool = False, overwrite: bool = False):
        self.out, self.folder = out, out.with_name(f".{out.name}.parts")
        self.entries: list[Entry] = []
        self._finished = self._may_go = False
        self._made_of = json.loads(json.dumps(made_of))
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise UserError(
                f"cannot be written ({error.strerror or error})",
                "Check permissions and free space, or name another place",
                out,
            ) from error
        try:
            self._take_lock()
            if fresh:
                self._forget()
            self._read()
            self._may_go = True
            if out.exists() and not overwrite and not self._finished:
                raise UserError("exists", "Name another file or add --overwrite", out)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        if isinstance(error, KeyboardInterrupt) and self.entries:
            documents = sum(entry["documents"] for entry in self.entries)
            raise Interrupted(f"{documents:,} documents are done, and the same command goes on from there") from error

    @property
    def rows(self) -> int:
        """Rows of the input that are done."""
        return int(self.entries[-1]["rows"]) if self.entries else 0

    def parts(self, kind: str) -> list[Path]:
        """The parts of one kind, in order."""
        return [self.folder / f"{number}.{kind}" for number in range(len(self.entries))]

    def add(self, contents: Mapping[str, bytes], entry: Entry) -> None:
        """Adds a part.

        Args:
            contents: of files, by kind; each part has the same kinds.
            entry: `rows`, `documents`, and what else is to be known of it.
        """
        number = len(self.entries)
        for kind, content in contents.items():
            with staged_file(self.folder / f"{number}.{kind}") as staging:
                staging.write_bytes(content)
        self._write(entry)
        self.entries.append(entry)

    def finish(self, join: Callable[[str, Path], None], beside: Mapping[Path, str] | None = None) -> None:
        """Makes `out` from its parts, owner-only, and removes them.

        Args:
            join: joins the parts of a kind (`part` is that of `out`) into a path.
            beside: further files to make, and the kind of parts each is made of; an empty one is not left there.
        """
        for path, kind in {**(beside or {}), self.out: "part"}.items():
            whole = self.folder / _WHOLE
            _remove(whole)
            try:
                join(kind, whole)
                if whole.is_file():
                    os.chmod(whole, 0o600)
                if path == self.out:
                    if not self._finished:  # from here on `out` may be there
                        self._write({"finished": True})
                    if path.is_dir():
                        _remove(path)
                elif not whole.stat().st_size:
                    path.unlink(missing_ok=True)
                    continue
                os.replace(whole, path)
            except OSError as error:
                raise UserError(
                    f"cannot be written ({error.strerror or error}); what is done is kept",
                    "Check permissions and free space, and give the command again",
                    path,
                ) from error
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is writing it", "Wait until it ends, or name another file", self.out
            ) from None
        except OSError:  # a file system without locks
            pass

    def _close(self) -> None:
        os.close(self._lock)
        if self._may_go and not self.entries and not self._finished:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _forget(self) -> None:
        for path in self.folder.iterdir():
            if path.name != "lock":
                _remove(path)

    def _read(self) -> None:
        """Takes over what is there."""
        try:
            before = json.loads((self.folder / _MADE_OF).read_text(encoding="utf-8"))
        except FileNotFoundError:
            before = None
        except ValueError:
            raise UserError("is damaged", "Add --fresh to start over", self.folder / _MADE_OF) from None
        if before is None:
            write_json(self.folder / _MADE_OF, self._made_of)
            (self.folder / _JOURNAL).unlink(missing_ok=True)
            return
        lines, whole = _lines(self.folder / _JOURNAL)
        done = [line for line in lines if "rows" in line]
        other = [name for name in self._made_of if before.get(name) != self._made_of[name]]
        if other and done:
            message = f"parts of it are there, made of {_listed(other)} that {'is' if len(other) == 1 else 'are'} no longer the same"
            raise UserError(message, "Give the command again as it was, or add --fresh to start over", self.out)
        if other:
            self._forget()
            write_json(self.folder / _MADE_OF, self._made_of)
            return
        self.entries, self._finished = done, len(lines) > len(done)
        if not whole:  # it was killed while it wrote a line
            with staged_file(self.folder / _JOURNAL) as staging:
                staging.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    def _write(self, line: Entry) -> None:
        try:
            with open(self.folder / _JOURNAL, "a", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(line)}\n")
        except OSError as error:
            raise UserError(
                f"cannot be written ({error.strerror or error})",
                "Check free space, and give the command again",
                self.out,
            ) from error
        self._finished |= "finished" in line


def fingerprint_of(folder: Path) -> str:
    """SHA-256 over the names and bytes of an artifact's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "README.md":
            digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _lines(path: Path) -> tuple[list[Entry], bool]:
    """The lines of a journal, and whether the last one is whole."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return [], True
    whole, _, torn = text.rpartition("\n")
    return [json.loads(line) for line in whole.split("\n") if line], not torn


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
