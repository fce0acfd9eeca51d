"""Checkpoints: what a training needs to go on after it was killed, in one file that is either old or new, never half.

    .NAME.checkpoint/            beside the output NAME, readable by its owner only
        state.safetensors        tensors; settings, facts and a SHA-256 of everything in its metadata
        lock                     held by the process that trains

Nothing in it is a pickle, and nothing is text of a note. A write goes to another name, is flushed to the disk, and only
then takes the old file's place; whatever happens in between leaves the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from posology import console
from posology.errors import UserError

EVERY_SECONDS = 60.0
_STATE, _LOCK = "state.safetensors", "lock"
_SHARE = 20
"""Writing takes no more than one part in so many of the time."""
_WORTH_SECONDS = 10.0
"""Less work than this is done again sooner than it is worth a file after every evaluation of a short training."""
_UNSAID = ("data", "weights", "reading")
"""Settings that are fingerprints: that they differ says enough."""

State = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors by name, and facts for JSON."""
Fresh = bool | Literal["if-other"]
"""Whether to start over where there is a checkpoint: `"if-other"` where it cannot be continued, since it was made with
other settings, by other versions, or with another number of threads."""


class Checkpoint:
    """The checkpoint of one output folder; a context, which locks it against a second process.

    Args:
        out: the output folder.
        settings: everything that a run's result depends on, by name: short values, or fingerprints.
        every: write after so many seconds; after each step where it is 0.
        fresh: forget a checkpoint that is there, or (`"if-other"`) one that was made with other settings.

    Raises:
        UserError: on entering, when another process trains into `out`, or the checkpoint was made with other settings and
            `fresh` is False.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, every: float = EVERY_SECONDS, fresh: Fresh = False):
        self.folder = folder_of(out)
        self._settings: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self._every, self._fresh = every, fresh
        self._file = self.folder / _STATE
        self._lock: int | None = None
        self._entered = False
        self._written_at, self._took, self._warned = time.monotonic(), 0.0, False

    def __enter__(self) -> Checkpoint:
        with contextlib.suppress(OSError):  # where it cannot be written, the first write says so
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(self.folder, 0o700)
            self._lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            self._take_lock()
            if self._fresh is True:
                self._file.unlink(missing_ok=True)
            for path in self.folder.iterdir() if self.folder.is_dir() else ():
                if path.name not in (_STATE, _LOCK):  # left by a write that was killed
                    path.unlink()
            self._check_settings()
        except OSError as error:
            self._release()
            raise _cannot_read(self.folder, error) from error
        except BaseException:
            self._release()
            raise
        self._entered = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back, once; what there is to continue from stays."""
        if self._entered:
            self._entered = False
            if not self.exists:
                self.remove()
            self._release()

    @property
    def exists(self) -> bool:
        """Whether there is something to continue from."""
        return self._file.is_file()

    def read(self) -> State | None:
        """What was written last; None where there is nothing, or (which it says) nothing that can be used.

        Raises:
            UserError: it cannot be opened.
        """
        if not self.exists:
            return None
        try:
            with safe_open(self._file, "pt") as stream:
                metadata = stream.metadata()
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            if metadata["sha256"] != _digest(tensors, metadata["settings"], metadata["facts"]):
                raise ValueError
            facts: dict[str, Any] = json.loads(metadata["facts"])
        except (SafetensorError, KeyError, TypeError, ValueError):
            self._say_damaged()
            return None
        except OSError as error:
            raise _cannot_read(self._file, error) from error
        return tensors, facts

    def due(self, *, evaluated: bool = False, waiting: int = 1) -> bool:
        """Whether it is time to write: after `every` seconds, and after evaluations, but writing takes a small share.

        Args:
            evaluated: whether an evaluation has just been made.
            waiting: how many runs wait while one of them writes.
        """
        if self._every == 0:
            return True
        wait = min(self._every, _WORTH_SECONDS) if evaluated else self._every
        return time.monotonic() - self._written_at >= max(wait, _SHARE * self._took * waiting)

    def write(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> float:
        """Replaces what was written last. Where that fails the old one stays; it is said once, and no error.

        Returns:
            The seconds it took.
        """
        began = time.monotonic()
        partial = self.folder / f"{_STATE}.partial"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _save(partial, tensors, json.dumps(self._settings), json.dumps(dict(facts)))
            os.replace(partial, self._file)
            _flush(self.folder)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            if not self._warned:
                self._warned = True
                why = (error.strerror if isinstance(error, OSError) else None) or str(error)
                console.say(
                    f"{self.folder}: a checkpoint could not be written ({why}); training goes on and tries again, "
                    + ("the one before is kept" if self.exists else "but cannot be continued if it is killed before")
                )
        self._written_at = time.monotonic()
        self._took = self._written_at - began
        return self._took

    def remove(self) -> None:
        """Deletes it, when the run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take_lock(self) -> None:
        if self._lock is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is training into this folder", "Wait until it ends, or name another folder", "--out"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check_settings(self) -> None:
        """Raises `UserError` where what is there was made with others, or forgets it where that is wanted."""
        if not self.exists:
            return
        try:
            with safe_open(self._file, "pt") as stream:
                made: dict[str, Any] = json.loads(stream.metadata()["settings"])
        except (SafetensorError, KeyError, TypeError, ValueError):
            self._say_damaged()
            self._file.unlink()
            return
        differing = [
            name if name in _UNSAID else f"{name} {_short(made.get(name))}, now {_short(self._settings.get(name))}"
            for name in sorted(made.keys() | self._settings.keys())
            if made.get(name) != self._settings.get(name)
        ]
        if differing and self._fresh == "if-other":
            self._file.unlink()
        elif differing:
            raise UserError(
                f"a run that was cut off left this checkpoint, and it was made with other settings: {'; '.join(differing)}",
                "Run the command with the settings it was made with to continue it, name another --out, or add --fresh to "
                "drop it and start over",
                self.folder,
            )

    def _say_damaged(self) -> None:
        console.say(f"{self.folder}: the checkpoint is damaged and cannot be used; training starts over")


def folder_of(out: Path) -> Path:
    """Where the checkpoint of an output folder is."""
    out = out.absolute()
    return out.parent / f".{out.name}.checkpoint"


def left_behind(out: Path) -> bool:
    """Whether a run into `out` left a checkpoint."""
    return (folder_of(out) / _STATE).is_file()


def generators() -> dict[str, torch.Tensor]:
    """The state of the random generators that dropout draws from: PyTorch's, on the CPU and on each GPU in use."""
    found = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found |= {f"random/cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def restore_generators(tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts back what `generators` gave; other tensors are left alone."""
    for name, state in tensors.items():
        if name == "random/cpu":
            torch.set_rng_state(state)
        elif name.startswith("random/cuda"):
            torch.cuda.set_rng_state(state, int(name.removeprefix("random/cuda")))


@contextlib.contextmanager
def untouched_generators() -> Iterator[None]:
    """Whatever the block draws, training draws what it would have drawn without it."""
    before = generators()
    try:
        yield
    finally:
        restore_generators(before)


def _save(path: Path, tensors: Mapping[str, torch.Tensor], settings: str, facts: str) -> None:
    """Writes a file and waits until it is on the disk."""
    saved = {name: _own(tensor) for name, tensor in tensors.items()}
    metadata = {"settings": settings, "facts": facts, "sha256": _digest(saved, settings, facts)}
    save_file(saved, path, metadata)
    os.chmod(path, 0o600)
    _flush(path)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, without gaps, and not a view of more, which safetensors does not write."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _digest(tensors: Mapping[str, torch.Tensor], *texts: str) -> str:
    """SHA-256 over texts, names, shapes and bytes."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _short(value: Any) -> str:
    return "none" if value is None else str(value)


def _cannot_read(path: Path, error: OSError) -> UserError:
    return UserError(
        f"the checkpoint cannot be read ({error.strerror or error})",
        "Check permissions, or add --fresh to drop it and start over",
        path,
    )
