"""The memory that a piece of work needs, measured in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak(prepare: Callable[..., Callable[[], None]], *arguments: Any) -> int | None:
    """Bytes that `prepare(*arguments)()` holds at its peak beyond what the process held before, in a new process.

    On CUDA the peak of PyTorch's allocator, else that of resident memory (Linux only; None elsewhere). What
    `prepare` itself allocates (texts, libraries) does not count; the work it returns should load its own model.

    Args:
        prepare: a function at the top level of a module.
        arguments: for it; they are pickled.
    """
    if not torch.cuda.is_available() and not _CLEAR.exists():
        return None
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, torch.get_num_threads(), prepare, arguments).result()


def release() -> None:
    """Gives memory that is free back to the system, so that it does not count as held."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


class Watermark:
    """The most memory that this process holds from now on, beyond what it holds now."""

    def __init__(self) -> None:
        self._before: int | None = None
        self._most = 0
        if torch.cuda.is_available():
            self._before = 0
        elif _CLEAR.exists():
            release()
            self._before = _status("VmRSS")
        self._restart()

    def peak(self) -> int | None:
        """In bytes: of PyTorch's allocator on CUDA, else of resident memory; None where neither is known."""
        if self._before is None:
            return None
        now = (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")) - self._before
        return max(self._most, now)

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """What the block holds, and gives back in its end, does not count."""
        self._most = self.peak() or 0
        try:
            yield
        finally:
            if self._before:
                release()
            self._restart()

    def _restart(self) -> None:
        """Lets the high-water mark fall to what is held now."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        elif _CLEAR.exists():
            _CLEAR.write_text("5")  # man 5 proc


def _measure(threads: int, prepare: Callable[..., Callable[[], None]], arguments: tuple[Any, ...]) -> int:
    from posology import console

    console.QUIET = True
    torch.set_num_threads(threads)
    work = prepare(*arguments)
    memory = Watermark()
    work()
    peak = memory.peak()
    assert peak is not None  # `peak` has seen that it is known here
    return peak


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
