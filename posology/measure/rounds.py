"""Fair timing on a machine that others use too: sides take turns, and are compared round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from posology import console
from posology.engine.process import keep_memory


def interleave(
    sides: Mapping[str, Callable[[], None]], repeats: int, before: Callable[[], None] = lambda: None, *, turns: int = 1
) -> dict[str, list[float]]:
    """Seconds of each side in each round: A B C, A B C, ... so that a slow moment of the machine hits all of them.

    Args:
        sides: what each does in one turn: over a round, the same work on all sides.
        repeats: rounds.
        before: called at the beginning of each round, outside of all timings.
        turns: of each side in a round; the more, the less it matters what else the machine does.
    """
    seconds: dict[str, list[float]] = {name: [0.0] * repeats for name in sides}
    with console.progress("measuring", repeats * turns) as advance:
        for number in range(repeats):
            before()
            for _ in range(turns):
                for name, run in sides.items():
                    seconds[name][number] += timed(run)
                advance()
    return seconds


def as_alone(run: Callable[[], None]) -> Callable[[], None]:
    """A peer's turn, under the memory settings that it would have in a process of its own."""

    def turn() -> None:
        keep_memory(False)
        try:
            run()
        finally:
            keep_memory(True)

    return turn


def peaks_of(matrix_peak: Callable[[str, str], float], device: str) -> tuple[dict[str, float], Callable[[], None]]:
    """The best matrix products measured so far in GFLOP/s by precision, and what measures once more.

    Args:
        matrix_peak: measures one, (type's name, device) -> GFLOP/s.
        device: a PyTorch device.
    """
    peaks = {"fp32": 0.0, "bf16": 0.0}

    def measure() -> None:
        for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
            peaks[name] = max(peaks[name], matrix_peak(dtype, device))

    return peaks, measure


def timed(run: Callable[[], None]) -> float:
    """Wall clock of one call, in seconds, with all that it has started on a GPU."""
    _wait()
    begin = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - begin


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def rates(amount: float, seconds: Sequence[float]) -> dict[str, float]:
    """Median and extremes of amount per second, where each round did the same amount."""
    return spread([amount / each for each in seconds])


def ratios(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times longer one side took than the other in the same round: median and extremes over rounds."""
    return spread([one / other for one, other in zip(slow, fast, strict=True)])
