"""What runs will take, before they run: seconds, memory and, with a price, money.

    training     what frozen layers give, once  +  steps x a step's own seconds  +  operations x seconds per operation
    evaluation   validation: forward passes and scores, after each epoch and as often as is asked for
    fixed        reading, tokenising, loading, saving, and the test with its intervals

Everything is taken from a profile of this machine (`posology.study.profile`); this is arithmetic, without a model. It
is an upper bound where training may end early: patience is not foretold, and a budget of seconds is spent to its end.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posology.errors import UserError
from posology.measure import money
from posology.study.cell import Cell
from posology.study.ledger import Ledger
from posology.study.profile import Wanted, measure, not_profiled, pace_key

LEAST_UNCERTAINTY = 0.15
"""A machine that other things run on is never steadier than this, however even the measured steps were."""
COMPANY_GAIN = 1.5
"""How many times less time runs of one task, backbone and method take in company than one by one. Measured 1.66 and 1.70
for their steps on two cores (benchmarks/results/company.md), and evaluations are not shared; for runs of different tasks,
which gained less, nothing is foretold."""

_EVERY_STUDY, _NOTE = "", "profile"
"""Where a ledger keeps the profile: it is of the machine, and serves all studies."""


@dataclass(frozen=True)
class Forecast:
    """What one run will take.

    Attributes:
        training, evaluation, fixed: seconds.
        low, high: of all seconds.
        memory: bytes of the whole process at its peak; None for baselines, whose memory is not foretold.
        process: of these, what the program takes itself.
        documents: trained on in each pass.
        steps: of the optimiser; settings tried, of a baseline.
        bounded: whether training may end earlier, by patience or by its budget of seconds.
    """

    training: float
    evaluation: float
    fixed: float
    low: float
    high: float
    memory: int | None
    process: int | None
    documents: int
    steps: int
    bounded: bool

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.training + self.evaluation + self.fixed

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**vars(self), "seconds": self.seconds}


@dataclass(frozen=True)
class Total:
    """What a study will take.

    Attributes:
        seconds, low, high: of all runs, one by one.
        in_company: seconds where runs of one task, backbone and method share its frozen layers.
        elapsed: until the last run is done, one by one, with so many workers of which each is as fast as the measured
            machine.
        memory: bytes of the largest run; None where no run's is known.
        money: of `seconds`, where a price was named.
    """

    runs: int
    seconds: float
    low: float
    high: float
    in_company: float
    elapsed: float
    memory: int | None
    money: money.Amount | None

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**vars(self), "money": self.money._asdict() if self.money is not None else None}


def forecast(cells: Sequence[Cell], profile: Mapping[str, Any]) -> list[Forecast]:
    """What each run will take, in order.

    Args:
        cells: the runs.
        profile: as `posology.study.profile.measure` gives it for them, or for more.

    Raises:
        UserError: an input of a cell is not there or does not fit, or the profile says nothing of it.
    """
    return [_forecast(Wanted(cell), profile) for cell in cells]


def total(
    cells: Sequence[Cell],
    forecasts: Sequence[Forecast],
    profile: Mapping[str, Any],
    *,
    workers: int = 1,
    price: str | None = None,
    prices: Path | str | None = None,
) -> Total:
    """What some runs take together.

    Args:
        cells: the runs.
        forecasts: of each.
        profile: says how long a worker takes to start.
        workers: GPUs or machines that work at once.
        price: name of a price.
        prices: a file of prices; see `posology.measure.money`.

    Raises:
        UserError: there is no such price.
    """
    seconds = sum(each.seconds for each in forecasts)
    return Total(
        runs=len(forecasts),
        seconds=seconds,
        low=sum(each.low for each in forecasts),
        high=sum(each.high for each in forecasts),
        in_company=seconds - _saved(cells, forecasts),
        elapsed=_elapsed([each.seconds for each in forecasts], workers, profile["start"] or 0.0),
        memory=max((each.memory for each in forecasts if each.memory is not None), default=None),
        money=money.cost(seconds, price, prices) if price is not None else None,
    )


def forecast_study(
    ledger: Ledger | None,
    cells: Sequence[Cell],
    *,
    price: str = money.DEFAULT,
    workers: int = 1,
    cluster: bool = False,
    times: int = 1,
    prices: Path | str | None = None,
) -> dict[str, Any]:
    """What some runs of a study will take, with a profile that the ledger keeps for the next time.

    Args:
        ledger: open for reading or writing; None where there is none. Where it cannot be written, the profile is not kept.
        cells: the runs.
        price, prices: as in `total`; the price is looked up before anything is measured.
        workers: processes that are to share the work.
        cluster: whether each is on a node of its own. Those on this machine make it faster by its GPUs only: without,
            they share the processors that one would have.
        times: how often each is done, in a search.

    Returns:
        The record of `Total`, with `money` a number and its `currency` beside it.

    Raises:
        UserError: an input of a cell is not there or does not fit, or there is no such price.
    """
    money.rate(price, prices)
    known = None if ledger is None else ledger.noted(_EVERY_STUDY, _NOTE)
    profile = measure(cells, known)
    if profile != known and ledger is not None:
        _keep(ledger, profile)
    forecasts = forecast(cells, profile) * times
    at_once = workers if cluster else min(workers, max(1, _gpus()))
    found = total([*cells] * times, forecasts, profile, workers=at_once, price=price, prices=prices).record()
    amount = found.pop("money")
    return found | {"money": amount["value"], "currency": amount["currency"]}


def _keep(ledger: Ledger, profile: Mapping[str, Any]) -> None:
    if ledger.writable:
        ledger.note(_EVERY_STUDY, _NOTE, profile)
        return
    with contextlib.suppress(UserError, OSError), Ledger(ledger.path, write=True) as opened:  # unless a study runs
        opened.note(_EVERY_STUDY, _NOTE, profile)


def _forecast(wanted: Wanted, profile: Mapping[str, Any]) -> Forecast:
    try:
        return _of_baseline(wanted, profile) if wanted.is_baseline else _of_adapted(wanted, profile)
    except KeyError:
        raise not_profiled(wanted.cell) from None


def _of_adapted(wanted: Wanted, profile: Mapping[str, Any]) -> Forecast:
    cell, recipe = wanted.cell, wanted.recipe
    task, corpus = profile["tasks"][wanted.task], profile["corpora"][wanted.corpus]
    model, pace = profile["models"][wanted.model], profile["paces"][pace_key(wanted, profile)]
    training, validation = corpus["train"], corpus["validation"]
    virtual = model["virtual"]

    def work(name: str, split: Mapping[str, Any]) -> float:
        return _operations(model[name], virtual, split)

    # What frozen layers give is the same in every epoch, and made once.
    once = work("lower", training) * pace["prediction"]
    upper = work("forward", training) + work("backward", training) - work("lower", training)
    steps = math.ceil(training["documents"] / recipe["batch_size"])
    epoch = steps * pace["step"] + upper * pace["operation"]
    whole = once + recipe["epochs"] * epoch
    spent = whole if cell.max_seconds is None else min(whole, cell.max_seconds)
    epochs = recipe["epochs"] if spent >= whole else max(0.0, spent - once) / epoch
    above = work("forward", validation) - work("lower", validation)
    each = above * pace["prediction"] + task["score"]
    evaluation = _evaluations(epochs, epoch, cell.evaluate_seconds) * each
    evaluation += work("lower", validation) * pace["prediction"]
    fixed = task["reading"] + corpus["tokenising"] + pace["loading"] + pace["saving"]
    fixed += work("forward", corpus["test"]) * pace["prediction"] + task["intervals"]
    memory = profile["memory"][wanted.memory]
    peak = memory["peak"] + (memory["kept_activations"] if recipe["epochs"] > 1 else 0)
    low, high = min(pace["low"], 1 - LEAST_UNCERTAINTY), max(pace["high"], 1 + LEAST_UNCERTAINTY)
    others = evaluation + fixed
    return Forecast(
        training=spent,
        evaluation=evaluation,
        fixed=fixed,
        low=spent * low + others * (1 - LEAST_UNCERTAINTY),
        high=min(spent * high, cell.max_seconds or math.inf) + others * (1 + LEAST_UNCERTAINTY),
        memory=peak if cell.max_memory is None else min(peak, cell.max_memory),
        process=memory["process"],
        documents=training["documents"],
        steps=math.ceil(epochs * steps),
        bounded=spent < whole or recipe["patience"] < recipe["epochs"],
    )


def _of_baseline(wanted: Wanted, profile: Mapping[str, Any]) -> Forecast:
    cell, task = wanted.cell, profile["tasks"][wanted.task]
    corpus, pace = profile["corpora"][wanted.corpus], profile["baselines"][wanted.baseline]
    whole = pace["start"] + pace["character"] * corpus["train"]["characters"]
    tried = pace["evaluations"]
    if cell.max_seconds is not None and whole > cell.max_seconds:
        # A setting that was begun is tried to its end, and one always is.
        tried = min(tried, math.ceil(cell.max_seconds / whole * tried))
    training = whole * tried / pace["evaluations"]
    evaluation = tried * task["score"]
    fixed = task["reading"] + task["intervals"] + pace["prediction"] * corpus["test"]["characters"]
    seconds = training + evaluation + fixed
    return Forecast(
        training=training,
        evaluation=evaluation,
        fixed=fixed,
        low=seconds / 2,  # how fast a solver converges is not known before
        high=seconds * 2,
        memory=None,
        process=None,
        documents=corpus["train"]["documents"],
        steps=tried,
        bounded=tried < pace["evaluations"],
    )


def _operations(factors: Sequence[float], virtual: int, split: Mapping[str, Any]) -> float:
    """Operations for the windows of a split: factors of 1, n and n² of a window of n pieces and its virtual tokens."""
    windows, pieces, squares = split["windows"], split["pieces"], split["squares"]
    longer = pieces + virtual * windows
    return (
        factors[0] * windows
        + factors[1] * longer
        + factors[2] * (squares + 2 * virtual * pieces + virtual**2 * windows)
    )


def _evaluations(epochs: float, epoch_seconds: float, evaluate_seconds: float | None) -> int:
    """How often validation is scored: after each epoch, at the end, and by time, which begins anew with each of these."""
    complete, rest = divmod(epochs, 1)
    count = int(complete) + (rest > 0)
    if evaluate_seconds is not None:
        count += int(complete) * int(epoch_seconds / evaluate_seconds) + int(rest * epoch_seconds / evaluate_seconds)
    return max(1, count)


def _saved(cells: Sequence[Cell], forecasts: Sequence[Forecast]) -> float:
    """Seconds that company saves; runs with a budget of seconds use theirs up."""
    from posology.study.grouping import company_of

    companies = [None if cell.max_seconds is not None else company_of(cell) for cell in cells]
    groups = [(company, cell.data, cell.method) for company, cell in zip(companies, cells, strict=True)]
    sizes = Counter(groups)
    return sum(
        each.training * (1 - 1 / COMPANY_GAIN)
        for group, each in zip(groups, forecasts, strict=True)
        if group[0] is not None and sizes[group] > 1
    )


def _gpus() -> int:
    """Of this machine."""
    import torch

    return torch.cuda.device_count()


def _elapsed(seconds: Sequence[float], workers: int, start: float) -> float:
    """When the last of some workers is done, if each takes the longest run that is left."""
    free = [start] * min(workers, max(1, len(seconds)))
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(free) if seconds else 0.0
