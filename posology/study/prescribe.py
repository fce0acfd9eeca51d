"""`posology prescribe`: which model, adapted how, for this task within these limits; and the trained answer.

    baseline on everything  ──>  profile of this machine: what breaks a limit is dropped
                                        └──> race on growing samples  ──>  finalists on everything  ──>  dose

Its folder holds `prescription.json`, the answer; `artifact`, the dose; and the ledger with all runs, unless another is
named. The same call after it was stopped or killed goes on from there, with the time that was left.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posology import console
from posology.engine.artifact import RECORD, load
from posology.engine.methods import METHODS
from posology.engine.predictor import Predictor
from posology.engine.stopping import interruptible
from posology.errors import Interrupted, UserError
from posology.evaluation.statistics import clean
from posology.files import check_free, staged_folder, write_json
from posology.measure import money
from posology.measure.memory import Watermark
from posology.seed import check_seed
from posology.study import candidates as listing
from posology.study import dose
from posology.study.candidates import Candidate, Profiler, serve
from posology.study.cell import Cell
from posology.study.dose import Limits
from posology.study.driver import carry_out
from posology.study.executor import Executor
from posology.study.ledger import Ledger
from posology.study.race import Race, Timer
from posology.tasks.prepared import PreparedTask

ANSWER, ARTIFACT = "prescription.json", "artifact"
_LONG = 600
"""Mean characters of training documents from which company gains nothing."""
_PROFILING = 0.35
"""Share of the time after which nothing further is profiled."""
_LEAST = 5.0
"""Seconds below which no measurement of a candidate is begun: a small model is loaded, answers and takes some steps."""
_SERVING = ("latency_ms", "documents_per_second", "memory_bytes")
_RESERVE = 1.0
"""Seconds for writing the answer."""
_INTERVAL = 1.0
"""Seconds to draw the interval of a finalist's score."""


def prescribe(
    data: Path | str,
    *,
    out: Path | str,
    max_seconds: float | None = None,
    max_cost: float | None = None,
    max_latency_ms: float | None = None,
    max_memory_mb: float | None = None,
    min_metric: float | None = None,
    backbones: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    recipes: Sequence[Mapping[str, Any]] | None = None,
    choose_seconds: float | None = None,
    seed: int = 42,
    ledger: Path | str | None = None,
    price: str = money.DEFAULT,
    prices: Path | str | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Finds the smallest model, adapted in the cheapest way, that does a task within limits, and trains it.

    Args:
        data: a prepared task.
        out: the folder of the answer; new, or left by the same call.
        max_seconds: wall clock of everything, the final training included; over all attempts.
        max_cost: money for everything, at `price`.
        max_latency_ms: of one document at a time on this machine, 95th percentile.
        max_memory_mb: of prediction, beyond what the program itself takes (not known but on Linux and on GPUs).
        min_metric: that the task's metric must reach on validation.
        backbones: candidates; by default the bundled model, its first 2, 3 and 4 layers, and what else of the catalogue
            is on this disk and has at most 400M parameters.
        methods: by default full, lora, ia3 and head. The baseline of the kind of task always takes part.
        recipes: for each the fields that differ from the standard recipe; by default none, and a third of the learning
            rate.
        choose_seconds: for what comes before the training on all documents.
        seed: of samples and runs.
        ledger: where runs are recorded; by default `ledger.db` in `out`.
        price: of an hour of this machine, by its name in the catalogue or in the file `prices`.
        overwrite: replace the prescription that `out` holds.
        executor: who does the runs; by default this machine, in company where texts are short.
        clock: in seconds.

    Returns:
        What is in `prescription.json`: `feasible`; `recommended`, an entry of `finalists`, and its `artifact`, both None
        where limits cannot be kept; `reason`, in words; `binding`, the names of the limits that cannot be kept, and
        `nearest`, what comes nearest to keeping them; `finalists`: all that were trained on everything, with
        `validation` and `test` (`value`, `low`, `high`), `seconds` and `money` of training, `latency_ms`,
        `documents_per_second`, `size_bytes`, `memory_bytes`, `parameters`, `on_front`; `candidates`: all, with what was
        measured, scores by sample size, and why they were `dropped`; `rungs`; `seconds` and `money` of the whole.

    Raises:
        UserError: input that does not fit, or `out` holds something else. Nothing is changed then.
        Interrupted: stopped; the same call goes on.
    """
    began = clock()
    limits = Limits(max_seconds, max_cost, max_latency_ms, max_memory_mb, min_metric)
    check_seed(seed)
    if choose_seconds is not None and not choose_seconds > 0:
        raise UserError(f"{choose_seconds:g} seconds are none", "Give more than 0", "--choose-seconds")
    task, out = PreparedTask.open(Path(data).absolute()), Path(out).absolute()
    path = Path(ledger).absolute() if ledger is not None else out / "ledger.db"
    rate = money.rate(price, prices)
    asked = {
        "task": task.fingerprint,
        **asdict(limits),
        "backbones": list(backbones) if backbones is not None else None,
        "methods": list(methods) if methods is not None else None,
        "recipes": [dict(recipe) for recipe in recipes] if recipes is not None else None,
        "choose_seconds": choose_seconds,
        "seed": seed,
        "price": price,
        "rate": rate._asdict(),
    }
    begun = None if overwrite else _begun(out, asked)
    done = begun if begun is not None and "reason" in begun else None
    if done is not None and (done["artifact"] is None or (out / ARTIFACT / RECORD).is_file()):
        console.say(f"{out} holds this prescription already")
        return done
    names = listing.backbones_here() if backbones is None else backbones
    entrants = listing.list_candidates(names, listing.METHODS if methods is None else methods, recipes)
    if begun is None:
        _make(out, asked, path, overwrite)
    study = f"prescribe {hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]}"
    with Ledger(path, write=True) as opened, interruptible():
        timer = Timer(limits.time(rate.per_hour)[0], float(opened.noted(study, "seconds") or 0.0), clock, began)
        session = _Prescription(
            opened, study, task, timer, limits, rate, out, seed, executor or default_executor(task), choose_seconds
        )
        try:
            found = session.answer(entrants) if done is None else session.again(done)
        except KeyboardInterrupt as error:
            raise Interrupted(f"what is done of {study} is in {path}; the same command continues") from error
        finally:
            session.race.note_time()
    found = {"asked": asked, "study": study, "ledger": str(path), **found}
    write_json(out / ANSWER, found)
    shutil.rmtree(out / "samples", ignore_errors=True)  # copies of notes, which nobody needs any more
    console.say(found["reason"])
    return found


def _make(out: Path, asked: Mapping[str, Any], ledger: Path, overwrite: bool) -> None:
    """Makes the folder of a prescription, in place of an old one with `overwrite`."""
    check_free(out, marker=ANSWER, overwrite=overwrite)
    if ledger.is_file():
        Ledger(ledger, write=True).close()  # fails where it is none, or another process writes it
    if (out / ANSWER).is_file():
        shutil.rmtree(out)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(out / ANSWER, {"asked": asked})


def _begun(out: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a folder holds of this very prescription; None where there is nothing yet."""
    path = out / ANSWER
    if not path.is_file():
        return None
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        before = known["asked"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("is damaged", "Remove it, or name another folder", path) from error
    if differs := [name for name, value in asked.items() if before.get(name) != value]:
        raise UserError(
            f"holds a prescription with another {', '.join(differs)}", "Name another folder, or ask as before", out
        )
    return known


def default_executor(task: PreparedTask) -> Executor:
    """This machine, with company where that is faster."""
    from posology.study.local import LocalExecutor

    documents = task.documents("train")
    characters = sum(len(document.text) for document in documents) / len(documents)
    return LocalExecutor(company=characters < _LONG)


class _Prescription:
    """One prescription under way.

    Args:
        ledger: opened for writing.
        study: its name there.
        task: what is to be done.
        timer: of all attempts.
        limits: what the user can afford.
        rate: what an hour costs.
        out: the folder of the answer.
        seed: of samples and runs.
        executor: who does the runs.
        choose_seconds: of everything before the training on all documents.

    Attributes:
        race: its runs.
    """

    def __init__(
        self,
        ledger: Ledger,
        study: str,
        task: PreparedTask,
        timer: Timer,
        limits: Limits,
        rate: money.Rate,
        out: Path,
        seed: int,
        executor: Executor,
        choose_seconds: float | None,
    ):
        self._ledger, self._study, self._task, self._timer, self._limits = ledger, study, task, timer, limits
        self._rate, self._out, self._profiler = rate, out, Profiler(task, seed)
        self._executor, self._longest = executor, _LEAST
        self.race = Race(
            ledger,
            study,
            task,
            timer,
            out / "samples",
            seed=seed,
            executor=executor,
            choose_until=choose_seconds,
        )

    def answer(self, candidates: list[Candidate]) -> dict[str, Any]:
        """Everything from the baseline to the dose."""
        baseline = Candidate(None, listing.BASELINE[self._task.kind])
        self.race.baseline(baseline)
        options = [] if baseline.dropped else [self._option(baseline, self.race.key_of(baseline))]
        begin = self._timer.spent()
        known = self._ledger.noted(self._study, "figures")
        if known is not None:  # a backbone may have been fetched since
            candidates = [each for each in candidates if each.title in known]
        self._profile(candidates, known)
        profiling = self._timer.spent() - begin
        finalists = self.race.run(candidates, _RESERVE, self._after(candidates))
        options += [self._option(candidate, self.race.key_of(candidate)) for candidate in finalists]
        options.sort(key=lambda option: -option["validation"]["value"])
        for option, front in zip(options, dose.on_front(options), strict=True):
            option["on_front"] = front
        chosen, near = dose.recommended(options), None
        if chosen is not None:
            reason = dose.reason(chosen, options, self._task.metric)
        else:
            near = dose.nearest(options, candidates)
            if near is not None and near.get("seconds") is None:
                near |= self._foretold(next(each for each in candidates if each.title == near["title"]))
            reason = "Nothing could be trained here."
            if near is not None:
                reason = dose.infeasible(near, options, candidates)
        if not finalists and (chosen is not None or not any(each.breaks for each in candidates)):
            reason += self._left_out(candidates)
        return clean(
            {
                "task": self._task.name,
                "kind": self._task.kind,
                "metric": self._task.metric,
                "feasible": chosen is not None,
                "recommended": chosen,
                "artifact": None if chosen is None else str(self._keep(chosen)),
                "reason": reason,
                "binding": list(near["breaks"]) if near is not None else [],
                "nearest": near,
                "finalists": options,
                "candidates": [candidate.record() for candidate in (baseline, *candidates)],
                "rungs": [
                    {
                        "name": rung.name,
                        "documents": rung.documents,
                        "validation_documents": rung.validation,
                        "candidates": len(rung.keys),
                        "seconds": rung.seconds,
                    }
                    for rung in self.race.rungs
                ],
                "profiling_seconds": profiling,
                "seconds": self._timer.spent(),
                "money": self._money(self._timer.spent()),
            }
        )

    def again(self, found: dict[str, Any]) -> dict[str, Any]:
        """An answer whose artifact is gone, with it: that of its run, which is trained again where it is gone too."""
        chosen = found["recommended"]
        key = chosen["key"]
        if self._ledger.state(key) is None:
            raise UserError("its artifact is gone, and its run is not in the ledger", "Add --overwrite", self._out)
        if not (self._ledger.artifacts / key / RECORD).is_file():
            console.say(f"the artifact of {chosen['title']} is gone: it is trained again")
            cell = Cell(**self._ledger.run(key)["cell"] | {"data": self._task.folder})
            self._ledger.forget([key])
            self._ledger.note(self._study, f"measured {key}", None)
            (run,) = carry_out(self._ledger, f"{self._study} again", [cell], self._executor, measured=False)
            if run["result"] is None:
                raise UserError(f"its artifact is gone, and training failed: {run['problem']}", "Mend that", self._out)
            candidate = Candidate(chosen["backbone"], chosen["method"], chosen["overrides"], figures=chosen)
            chosen = chosen | clean(self._option(candidate, key)) | {"title": chosen["title"]}
            reason = f"{found['reason']} Trained again later, it reaches {chosen['validation']['value']:.3f}."
            finalists = [chosen if option["key"] == key else option for option in found["finalists"]]
            found = found | {"recommended": chosen, "finalists": finalists, "reason": reason}
        return found | {"artifact": str(self._keep(chosen))}

    # --- before the race ----------------------------------------------------------------------------------------------

    def _profile(self, candidates: Sequence[Candidate], known: Mapping[str, Any] | None) -> None:
        """Measures candidates, small ones first, and drops those that break a limit. What an earlier attempt measured is
        `known`."""
        if known is None:
            open_ones = [each for each in candidates if each.dropped is None]
            names = {str(each.backbone) for each in open_ones}
            sizes = {name: listing.parameters(name, self._task.kind) for name in names}
            profile: dict[str, Any] | None = None
            for number, name in enumerate(sorted(sizes, key=lambda name: (sizes[name], name))):
                own = [each for each in open_ones if each.backbone == name]
                for each in own:
                    each.figures["parameters"] = sizes[name]
                short = self._no_time()
                if short is None and number and self._timer.spent() > _PROFILING * (self._timer.limit or math.inf):
                    short = "no time to measure it: the choice is made among the smaller backbones"
                if short is not None:
                    for each in own:
                        each.dropped = short
                    continue
                console.say(f"profiling {name} on this machine, {number + 1}/{len(names)}{self._timer.said()}")
                profile = self._measure(own, profile)
            known = {each.title: each.measured() for each in candidates}
            self._ledger.note(self._study, "figures", known)
        for each in candidates:
            each.take(known[each.title])

    def _measure(self, candidates: Sequence[Candidate], profile: dict[str, Any] | None) -> dict[str, Any] | None:
        """Figures of the candidates of one backbone; returns the profile, which has grown."""
        limits = self._limits
        for each in candidates:
            if (short := self._no_time()) is not None:
                each.dropped = short
                continue
            try:
                each.figures |= self._profiler.serving(each)
                self._longest = max(self._longest, each.figures["measuring_seconds"])
            except UserError as error:
                each.dropped = error.problem
            else:
                each.breaks |= self._served(each.figures)
        fast = [each for each in candidates if not (each.breaks or each.dropped)]
        if fast:
            profile = self._profiler.forecast(fast, profile, lambda: self._no_time() is None)
        for each in fast:
            if each.cost is None:
                each.dropped = self._no_time()
                continue
            left = self._timer.left() - _RESERVE - self._after([each])
            if each.figures["seconds"] > left:
                each.breaks[limits.time(self._rate.per_hour)[1]] = each.figures["seconds"], max(0.0, left)
        for each in candidates:
            if each.breaks:
                each.dropped = dose.why(each.breaks)
                console.say(f"{each.title} is out: it {each.dropped}")
        return profile

    def _no_time(self) -> str | None:
        """Why nothing more can be measured, if that is so: it takes as long as the longest measurement before it."""
        left = self._timer.left() - _RESERVE
        if left >= self._longest:
            return None
        needed = self._timer.spent() + self._longest + _RESERVE
        return (
            f"no time to measure it: that takes about {self._longest:,.0f} s, and {max(0.0, left):,.0f} s are left; "
            f"allow more than {needed:,.0f} s in all"
        )

    def _served(self, *measured: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        """The limits that prediction breaks by all measurements: what else a machine does makes it look slower only."""
        breaks = self._limits.broken("max_latency_ms", min(own["latency_ms"]["p95"] for own in measured if own))
        memory = [own["memory_bytes"] for own in measured if own and own["memory_bytes"] is not None]
        return breaks | (self._limits.broken("max_memory_mb", min(memory) / 10**6) if memory else {})

    def _after(self, candidates: Sequence[Candidate]) -> float:
        """Seconds to measure a finalist: its answers on validation and their interval, and its latency."""
        figures = [each.figures for each in candidates if "measuring_seconds" in each.figures]
        validation = self._task.counts["validation"]
        took = [each["measuring_seconds"] + validation / each["documents_per_second"] for each in figures]
        return _INTERVAL + max(took, default=0.0)

    def _foretold(self, candidate: Candidate) -> dict[str, Any]:
        """What training a candidate that was dropped early would take."""
        if "seconds" not in candidate.figures:
            if self._no_time() is not None:
                return {}
            self._profiler.forecast([candidate], None)
        seconds = candidate.figures["seconds"]
        return {"seconds": seconds, "money": self._money(seconds)}

    def _left_out(self, candidates: Sequence[Candidate]) -> str:
        """Why there was no language model to compare with."""
        out = [each for each in candidates if each.dropped]
        if not out:
            return ""
        first = min(out, key=lambda each: (not each.breaks, each.figures.get("parameters", math.inf)))
        return f" {first.title} for one {'' if first.breaks else 'had '}{first.dropped}."

    # --- after it -----------------------------------------------------------------------------------------------------

    def _option(self, candidate: Candidate, key: str) -> dict[str, Any]:
        """A candidate that was trained on everything, in the run `key`, with all that is to be weighed."""
        run = self._ledger.run(key)
        result = run["result"]
        measured = self._ledger.noted(self._study, f"measured {key}")
        if measured is None:
            measured = self._measured(Path(result["artifact"]), candidate)
            self._ledger.note(self._study, f"measured {key}", measured)
        breaks = self._limits.broken("min_metric", measured["validation"]["value"])
        breaks |= self._served(measured, candidate.figures)
        candidate.breaks = breaks
        training = result["training"]
        seconds = training["seconds"] + training["evaluation_seconds"]
        whole = candidate.backbone is None or METHODS[candidate.method].storage == "model"
        return {
            "title": candidate.title,
            "backbone": candidate.backbone,
            "method": candidate.method,
            "overrides": candidate.overrides,
            "key": key,
            "artifact": result["artifact"],
            **measured,
            "test": result["metrics"].get(self._task.metric),
            "seconds": seconds,
            "money": self._money(seconds),
            "size_bytes": result["adapter_bytes"] + (0 if whole else 4 * result["backbone_parameters"]),
            "parameters": result["backbone_parameters"],
            "trainable_parameters": result["trainable_parameters"],
            "stopped": training["stopped"],
            "breaks": breaks,
        }

    def _measured(self, artifact: Path, candidate: Candidate) -> dict[str, Any]:
        """The interval of its score on validation, and its latency, pace and memory; of these, where time is over, what
        was measured of its backbone before."""
        memory, task = Watermark(), self._task
        model = load(artifact)
        documents = task.documents("validation")
        answers = model.answer(documents, "measuring", unit=task.unit)
        metrics: Any = model.evaluate(answers.documents, answers.logits)["metrics"]
        validation = {"validation": metrics[task.metric]}
        if self._timer.left() < _RESERVE + candidate.figures.get("measuring_seconds", -math.inf):
            return validation | {name: candidate.figures[name] for name in _SERVING}
        if isinstance(model, Predictor):
            model.merge()
        found = serve(model, documents, task.unit)
        return {**validation, **found, "memory_bytes": memory.peak()}

    def _money(self, seconds: float) -> dict[str, Any]:
        return {"value": seconds / 3600 * self._rate.per_hour, "currency": self._rate.currency}

    def _keep(self, chosen: Mapping[str, Any]) -> Path:
        """Copies the artifact of the dose to where it is looked for."""
        folder = self._out / ARTIFACT
        with staged_folder(folder, marker=RECORD, overwrite=True) as staging:
            shutil.copytree(self._ledger.artifacts / chosen["key"], staging, dirs_exist_ok=True)
        return folder
