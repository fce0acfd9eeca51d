"""The memory that a piece of work needs, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
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


def _measure(threads: int, prepare: Callable[..., Callable[[], None]], arguments: tuple[Any, ...]) -> int:
    from posology import console

    console.QUIET = True
    torch.set_num_threads(threads)
    work = prepare(*arguments)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    _CLEAR.write_text("5")  # the high-water mark starts anew (man 5 proc)
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
