"""The race: successive halving of candidates on growing samples of the training set (Jamieson and Talwalkar 2016).

    rung 1   a ninth of the training documents   every candidate
    rung 2   a third                             the better half, and the best of each method
    rung 3   all of them                         the best third of these

in each as many as its time allows. Where there is one sample only, since the other would be too small or too large, its
better half is trained on all. Scores are on validation; the test split is not in the samples, is scored at the end
of runs on the whole task, and chooses nothing. Every run is one of the ledger's. What a rung is to do is noted there
before it begins, so that a race that was killed goes on with the very same runs.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posology import console
from posology.study.candidates import Candidate, Cost
from posology.study.cell import Cell
from posology.study.driver import carry_out
from posology.study.executor import Event, Executor
from posology.study.ledger import Ledger
from posology.study.samples import sizes, validation_of, write_sample
from posology.tasks.prepared import PreparedTask

SHARES = (9, 3)
"""What the training set is divided by in the rungs before the last."""
FEWEST = 128
"""Documents of the smallest sample that says anything: on 66 sentences most taggers had not found their first entity
after five epochs."""
_KEPT = (1 / 2, 1 / 3)
_SLACK = 1.15
"""How many times longer than foretold every run may train, where time is limited."""
_NOTE_EVERY = 5.0
"""Seconds of which an attempt that is killed may forget that it used them."""
_ENOUGH = 0.3
"""Share of its training that a candidate must have time for to be worth beginning."""


class OutOfTime(Exception):
    """A rung has used up its time."""


class Timer:
    """The wall clock of a prescription, over all its attempts.

    Args:
        limit: seconds; None for no limit.
        spent: by earlier attempts.
        clock: in seconds.
        begin: what the clock said when this attempt began; now where None.
    """

    def __init__(
        self,
        limit: float | None,
        spent: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        begin: float | None = None,
    ):
        self.limit, self._before, self._clock = limit, spent, clock
        self._begin = clock() if begin is None else begin

    def spent(self) -> float:
        """Seconds so far."""
        return self._before + self._clock() - self._begin

    def left(self) -> float:
        """Seconds; infinite where there is no limit."""
        return math.inf if self.limit is None else self.limit - self.spent()

    def said(self) -> str:
        """For the end of a message: nothing where there is no limit."""
        return "" if self.limit is None else f"; {max(0.0, self.left()):,.0f} s left"


@dataclass
class Rung:
    """One rung that was run.

    Attributes:
        name: in the ledger, behind that of the prescription.
        documents, validation: how many it trained and was scored on.
        keys: the run of each candidate, by title.
        seconds: wall clock.
    """

    name: str
    documents: int
    validation: int
    keys: dict[str, str]
    seconds: float


class Race:
    """Candidates against each other.

    Args:
        ledger: opened for writing.
        study: what the runs' studies in it are called, the rung's name behind it.
        task: what they are to do.
        timer: of the whole prescription.
        samples: folder of the samples.
        seed: of samples and runs.
        executor: who does the runs.
        choose_until: seconds of the timer by which samples are done with; None for no limit of their own.

    Attributes:
        rungs: those that were run.
    """

    def __init__(
        self,
        ledger: Ledger,
        study: str,
        task: PreparedTask,
        timer: Timer,
        samples: Path,
        *,
        seed: int,
        executor: Executor,
        choose_until: float | None = None,
    ):
        self._ledger, self._study, self._task, self._timer, self._samples = ledger, study, task, timer, samples
        self._seed, self._executor = seed, executor
        self._choose_until, self._after = choose_until, 0.0
        self._training, self._validation = task.documents("train"), task.documents("validation")
        self._total = task.counts["train"]
        self._scored: dict[int, int] = {}
        self.rungs: list[Rung] = []

    def baseline(self, candidate: Candidate) -> None:
        """Runs the baseline on the whole task; if that fails, the candidate says why."""
        most = None if self._timer.limit is None else max(1.0, 0.1 * self._timer.limit)
        plan = self._noted("baseline") or self._note("baseline", [candidate], [candidate], self._total, [most])
        self._rung("baseline", [candidate], plan, self._total, math.inf)

    def run(self, candidates: Sequence[Candidate], reserve: float, after: float) -> list[Candidate]:
        """Races those that are not dropped; each then has its scores, or says why it was dropped.

        Args:
            candidates: with their costs.
            reserve: seconds to leave for what comes after the last rung.
            after: seconds to leave besides, for each finalist.

        Returns:
            Those that were trained on everything, the best on validation first.
        """
        self._after = after
        entrants = [candidate for candidate in candidates if candidate.dropped is None]
        asked = [self._total // share for share in SHARES if self._total // share >= FEWEST]
        samples = sizes(self._training, asked, self._seed)
        for number, size in enumerate(samples):
            if len(entrants) < 2:
                break
            name, allowed = f"rung {number + 1}", self._allowed(entrants, reserve, len(samples) - number)
            plan = self._noted(name)
            if plan is None and allowed <= 0:
                continue
            self._rung(name, entrants, plan or self._plan(name, entrants, size, allowed), size, allowed)
            entrants = self._promoted(entrants, number, more=number + 1 < len(samples))
        waiting, number = entrants, 1
        while waiting:  # what there seemed to be no time for has another chance where the others took less
            name, allowed = f"rung all {number}", self._timer.left() - reserve
            plan = self._noted(name) or self._plan(name, waiting, self._total, allowed, cut=number == 1)
            self._rung(name, waiting, plan, self._total, allowed)
            waiting = [each for each in waiting if each.title not in plan["cells"]] if plan["cells"] else []
            number += 1
        finished = [each for each in entrants if each.dropped is None]
        return sorted(finished, key=lambda each: -each.scores[self._total])

    def key_of(self, candidate: Candidate) -> str:
        """The run of a candidate on everything, which must have been."""
        return next(
            rung.keys[candidate.title]
            for rung in self.rungs
            if rung.documents == self._total and candidate.title in rung.keys
        )

    # --- time ---------------------------------------------------------------------------------------------------------

    def _allowed(self, entrants: Sequence[Candidate], reserve: float, rungs: int) -> float:
        """Seconds for the next of so many rungs on samples, when even the dearest may still win and be trained."""
        last = max(self._seconds(each, self._total) for each in entrants)
        left = self._timer.left() - reserve - last
        if self._choose_until is not None:
            left = min(left, self._choose_until - self._timer.spent())
        return left / rungs

    def _seconds(self, candidate: Candidate, documents: int) -> float:
        """What a run will take, with some slack, and what comes after it."""
        cost = candidate.cost
        assert cost is not None
        slack = (_SLACK - 1) * cost.training * documents + (self._after if documents == self._total else 0.0)
        if documents not in self._scored:
            self._scored[documents] = len(validation_of(self._task, self._validation, documents, self._seed))
        return slack + cost.seconds(documents, self._scored[documents])

    def _plan(
        self, name: str, entrants: Sequence[Candidate], documents: int, allowed: float, *, cut: bool = True
    ) -> dict[str, Any]:
        """Who takes part, as many as there is time for, and for how long each may train.

        Those with scores are taken in their order, else plain recipes first, and the cheapest of them. Those left out
        say so. With `cut` the first is begun even if it has to be cut short, since something has to be.
        """
        order = list(entrants)
        if not any(each.scores for each in entrants):
            order.sort(key=lambda each: (bool(each.variant), self._seconds(each, documents)))
        chosen: list[Candidate] = []
        used = 0.0
        for candidate in order:
            assert candidate.cost is not None
            seconds, training = self._seconds(candidate, documents), candidate.cost.training * documents
            least = seconds if chosen or not cut else seconds - (_SLACK - _ENOUGH) * training
            if used + least > allowed:
                candidate.dropped = (
                    f"no time for it on {documents:,} documents: it takes about {seconds:,.0f} s, and "
                    f"{max(0.0, allowed - used):,.0f} s are left"
                )
                continue
            candidate.dropped = None
            chosen.append(candidate)
            used += seconds
        limited = self._timer.limit is not None or self._choose_until is not None
        caps = self._caps(chosen, documents, allowed) if limited and math.isfinite(allowed) else [None] * len(chosen)
        return self._note(name, entrants, chosen, documents, caps)

    def _caps(self, chosen: Sequence[Candidate], documents: int, allowed: float) -> list[float | None]:
        """Seconds of training for each: its share of what loading, evaluating and testing leave of the time."""
        training = [each.cost.training * documents for each in chosen if each.cost is not None]
        others = sum(self._seconds(each, documents) for each in chosen) - _SLACK * sum(training)
        share = (allowed - others) / max(1e-9, sum(training))
        return [max(0.5, round(share * own, 1)) for own in training]

    # --- one rung -----------------------------------------------------------------------------------------------------

    def _noted(self, name: str) -> dict[str, Any] | None:
        plan: dict[str, Any] | None = self._ledger.noted(self._study, name)
        return plan

    def _note(
        self,
        name: str,
        entrants: Sequence[Candidate],
        chosen: Sequence[Candidate],
        documents: int,
        caps: Sequence[float | None],
    ) -> dict[str, Any]:
        """Writes down what a rung is to do, before it begins."""
        task = self._task_of(documents)
        cells = {
            each.title: each.cell(task.name, task.folder, self._seed, cap).model_dump(mode="json")
            for each, cap in zip(chosen, caps, strict=True)
        }
        plan = {"cells": cells, "dropped": {each.title: each.dropped for each in entrants if each.dropped}}
        self._ledger.note(self._study, name, plan)
        return plan

    def _task_of(self, documents: int) -> PreparedTask:
        if documents == self._total:
            return self._task
        return write_sample(
            self._samples / str(documents), self._task, self._training, self._validation, documents, self._seed
        )

    def _rung(
        self, name: str, entrants: Sequence[Candidate], plan: Mapping[str, Any], documents: int, allowed: float
    ) -> None:
        """Runs what is planned, unless that was done before, and reads what came of it."""
        task = self._task_of(documents)
        for each in entrants:
            each.dropped = plan["dropped"].get(each.title)
        chosen = [each for each in entrants if each.title in plan["cells"]]
        # The plan may be older than the place where the task lies now.
        cells = [Cell(**plan["cells"][each.title] | {"data": task.folder}) for each in chosen]
        if not cells:
            return
        keys = {each.title: cell.key() for each, cell in zip(chosen, cells, strict=True)}
        seconds = plan.get("seconds")
        if seconds is None:
            begin = self._timer.spent()
            after = self._after * len(cells) if documents == self._total else 0.0
            self._drive(name, cells, keys, documents, begin + allowed - after)
            seconds = self._timer.spent() - begin
            self._ledger.note(self._study, name, {**plan, "seconds": seconds})
        rung = Rung(name, documents, task.counts["validation"], keys, seconds)
        self.rungs.append(rung)
        self._read(rung, chosen)
        if task is not self._task:  # nobody will use what was trained on a sample, and whole models are large
            for key in keys.values():
                shutil.rmtree(self._ledger.artifacts / key, ignore_errors=True)

    def _drive(self, name: str, cells: Sequence[Cell], keys: Mapping[str, str], documents: int, end: float) -> None:
        """Carries out runs until all are done or the time is over."""
        titles = {key: title for title, key in keys.items()}
        ended = sum(self._ledger.state(key) == "done" for key in titles)
        what = f"{name}, {documents:,} documents"
        with _silent() as say:
            say(f"{what}: {len(cells)} candidate{'s' * (len(cells) != 1)}{self._timer.said()}")
            watch = _Watch(self._timer, self._task.metric, titles, what, end, say, self.note_time, ended)
            with contextlib.suppress(OutOfTime):
                carry_out(self._ledger, f"{self._study} {name}", cells, self._executor, watch=watch, measured=False)
        self.note_time()

    def note_time(self) -> None:
        """Writes down how much time is used up, for an attempt that goes on after this one."""
        self._ledger.note(self._study, "seconds", self._timer.spent())

    def _read(self, rung: Rung, chosen: Sequence[Candidate]) -> None:
        """Takes scores from the runs of a rung, and costs to foretell the next one by."""
        trained: list[tuple[Candidate, dict[str, Any]]] = []
        for each in chosen:
            run = self._ledger.run(rung.keys[each.title])
            if run["state"] == "failed":
                each.dropped = f"failed: {run['problem']}"
            elif run["state"] != "done":
                each.dropped = f"time was over before it was trained on {rung.documents:,} documents"
            elif (score := run["result"]["validation"].get(self._task.metric)) is None:
                each.dropped = f"{self._task.metric} is undefined on validation"
            else:
                each.scores[rung.documents] = score
                trained.append((each, run["result"]["training"]))
        spent = sum(training["seconds"] + training["evaluation_seconds"] for _, training in trained)
        fixed = max(0.1, (rung.seconds - spent) / max(1, len(trained)))
        for each, training in trained:
            done = training["evaluations"][-1].get("epoch", 0) if training["evaluations"] else 0
            if each.backbone is not None and done:
                epochs = each.figures["epochs"]
                evaluation = training["evaluation_seconds"] / len(training["evaluations"]) / rung.validation
                each.cost = Cost(training["seconds"] / done * epochs / rung.documents, evaluation * epochs, fixed)

    def _promoted(self, entrants: Sequence[Candidate], number: int, *, more: bool) -> list[Candidate]:
        """Those that go on, the most promising first; the others say where they were left behind."""
        order = sorted((each for each in entrants if each.dropped is None), key=promise, reverse=True)
        kept = order[: max(2, math.ceil(_KEPT[min(number, len(_KEPT) - 1)] * len(order)))]
        if more:
            for method in dict.fromkeys(each.method for each in order):
                if not any(each.method == method for each in kept):
                    kept.append(next(each for each in order if each.method == method))
        for place, each in enumerate(order, start=1):
            if each not in kept:
                documents, score = list(each.scores.items())[-1]
                each.dropped = f"left behind: {score:.3f} on {documents:,} documents, place {place} of {len(order)}"
        return kept


class _Watch:
    """Sees to it that a rung ends in time, and tells people how it goes."""

    def __init__(
        self,
        timer: Timer,
        metric: str,
        titles: Mapping[str, str],
        name: str,
        end: float,
        say: Callable[[str], None],
        note_time: Callable[[], None],
        ended: int,
    ):
        self._timer, self._metric, self._titles, self._name, self._end = timer, metric, titles, name, end
        self._say, self._note_time = say, note_time
        self._begun: set[str] = set()
        self._ended, self._noted = ended, -math.inf

    def __call__(self, event: Event) -> bool:
        now = self._timer.spent()
        over = now >= self._end
        if now > self._noted + _NOTE_EVERY:
            self._note_time()
            self._noted = now
        if event.state == "running":
            self._begun.add(event.key)
        elif event.state in ("done", "failed"):
            self._begun.discard(event.key)
            self._ended += 1
            outcome = f"failed: {event.problem}"
            if event.result is not None:
                score = event.result["validation"].get(self._metric)
                outcome = f"validation {self._metric} " + ("undefined" if score is None else f"{score:.3f}")
            done = f"{self._ended}/{len(self._titles)}"
            self._say(f"{self._name}, {done}: {self._titles[event.key]}: {outcome}{self._timer.said()}")
            if over and not self._begun:  # what waits is not begun; what is under way ends with its next evaluation
                raise OutOfTime
        return over


def promise(candidate: Candidate) -> float:
    """The score to expect of more documents: the last one, and half of what it was better than the one before.

    Each rung has three times as many documents as the last, and scores grow with their logarithm, slower and slower.
    Without this, what learns fast from little would always beat what needs more and gets further.
    """
    scores = list(candidate.scores.values())
    return scores[-1] + (0.5 * (scores[-1] - scores[-2]) if len(scores) > 1 else 0.0)


@contextlib.contextmanager
def _silent() -> Iterator[Callable[[str], None]]:
    """Keeps others from speaking (they would tell test scores of samples); yields a way to speak all the same."""
    was, console.QUIET = console.QUIET, True

    def say(message: str) -> None:
        if not was:
            print(message, file=sys.stderr, flush=True)

    try:
        yield say
    finally:
        console.QUIET = was
