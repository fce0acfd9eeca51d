"""`posology bench train`: our training beside that of `transformers.Trainer` + PEFT, in one process, taking turns."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posology import console
from posology.corpus.document import Document
from posology.engine.precision import decide
from posology.errors import UserError
from posology.measure import memory
from posology.measure.flops import cost_of
from posology.measure.ours import OurTraining
from posology.measure.rounds import as_alone, interleave, peaks_of, rates, ratios, spread, timed
from posology.measure.setting import Plan, Setting, make_plan, make_setting
from posology.measure.trainer import (
    AS_PAPER,
    Flags,
    PeerTraining,
    Rows,
    candidates,
    check_peer,
    peer_logits,
    tokenise,
    train_whole,
)


def bench_train(
    data: Path,
    *,
    matrix_peak: Callable[[str, str], float],
    backbone: str = "minilm",
    method: str = "lora",
    recipe: str = "standard",
    overrides: dict[str, Any] | None = None,
    max_length: int | None = None,
    peer: bool = False,
    steps: int = 8,
    repeats: int = 5,
    quality: bool = False,
    seed: int = 42,
) -> dict[str, Any]:
    """Measures training steps; see `posology bench train --help` for the arguments.

    Every round trains every side on the same documents, and ratios are taken within rounds. Seconds are those of
    optimiser steps with their collation; models are loaded, texts tokenised and everything warmed up before. The
    learning rate is constant here, so that how long one measures does not change what is measured.

    Args:
        data: a prepared task.
        matrix_peak: measures the fastest matrix product, (type's name, device) -> GFLOP/s.

    Returns:
        `ours` and, beside a peer, `peer_as_paper` and `peer_best`: each with `examples_per_second`,
        `tokens_per_second` (real ones), `gflops` (what the task needs, by `posology.measure.flops`, whoever computes
        more) as {median, min, max}, `share_of_peak` (of its own precision), `peak_memory_bytes`, `padding` (share of
        places), `tokenising_seconds` (of the whole training set), `loss` (mean of the first and the last round) and,
        if asked for, `quality`; `matrix_peak_gflops` by precision; `ratios` ({peer: {median, min, max}}, how many
        times longer the peer took); `setting`, with the machine's load average before the first round.

    Raises:
        UserError: input that does not fit.
    """
    if steps < 1 or repeats < 1:
        raise UserError("nothing is measured without steps and repeats", "Give numbers from 1", "--steps, --repeats")
    if peer:
        check_peer(method)
    asked = make_setting(data, backbone, method, recipe, overrides or {}, max_length, seed)
    setting = dataclasses.replace(asked, recipe=asked.recipe.model_copy(update={"schedule": "constant", "warmup": 0.0}))
    documents = setting.task.documents("train")
    ours = OurTraining(setting, documents)
    plan = make_plan(ours.lengths, setting.recipe.batch_size, steps, repeats, seed)
    lengths = np.array(ours.lengths)
    ours.run([plan.trial, plan.rounds[0][0]])
    peers, facts = _peers(setting, documents, plan, lengths) if peer else ({}, {})
    precision = ours.predictor.precision
    facts["ours"] = {"precision": "bf16" if precision.bf16 else "fp32", "tokenising_seconds": ours.tokenising}
    facts["ours"]["peak_memory_bytes"] = _memory(setting, None, plan.rounds[0], lengths)
    turns = (batch for batches in plan.rounds for batch in batches)
    sides: dict[str, Callable[[], None]] = {
        "ours": lambda: ours.run([next(turns)]),
        **{name: as_alone(side.run) for name, side in peers.items()},
    }
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    peaks, measure_peaks = peaks_of(matrix_peak, precision.device.type)
    seconds = interleave(sides, repeats, measure_peaks, turns=len(plan.rounds[0]))
    work = cost_of(ours.predictor.adapted).training(lengths[plan.documents]) / 1e9
    found: dict[str, Any] = {}
    for name, own in seconds.items():
        gflops = rates(work, own)
        side: OurTraining | PeerTraining = peers.get(name, ours)
        losses = np.array(side.losses[-repeats * len(plan.rounds[0]) :]).reshape(repeats, -1).mean(axis=1)
        found[name] = {
            "seconds": spread(own),
            "examples_per_second": rates(len(plan.documents), own),
            "tokens_per_second": rates(int(lengths[plan.documents].sum()), own),
            "gflops": gflops,
            "share_of_peak": gflops["median"] / peaks[facts[name]["precision"]],
            "loss": {"first": float(losses[0]), "last": float(losses[-1])},
            **facts[name],
        }
    for each in peers.values():
        each.close()
    if quality:
        _add_quality(asked, documents, found, {name: side.flags for name, side in peers.items()})
    found["matrix_peak_gflops"] = peaks
    found["ratios"] = {name: ratios(seconds[name], seconds["ours"]) for name in peers}
    found["setting"] = {
        **asked.facts(),
        "device": str(precision.device),
        "threads": torch.get_num_threads(),
        "documents": len(plan.documents),
        "tokens": int(lengths[plan.documents].sum()),
        "steps": len(plan.rounds[0]),
        "repeats": repeats,
        "load_average": busy,
    }
    return found


def _peers(
    setting: Setting, documents: list[Document], plan: Plan, lengths: np.ndarray
) -> tuple[dict[str, PeerTraining], dict[str, dict[str, Any]]]:
    """Both peers, warmed up, and what is known of them before the first round."""
    begin = time.perf_counter()
    rows = tokenise(setting, documents)
    tokenising = time.perf_counter() - begin
    trial = [plan.trial]
    as_paper = PeerTraining(setting, AS_PAPER, rows, [*trial, *itertools.chain(*plan.rounds)])
    as_paper.run()
    best, tried = _best(setting, rows, plan)
    facts: dict[str, dict[str, Any]] = {}
    for name, side, batches in (
        ("peer_as_paper", as_paper, plan.rounds[0]),
        ("peer_best", best, plan.grouped[0]),
    ):
        facts[name] = {
            "precision": "bf16" if side.flags.bf16 else "fp32",
            "flags": dataclasses.asdict(side.flags),
            "padding": side.flags.padding([lengths[batch] for batch in batches]),
            "tokenising_seconds": tokenising,
            "peak_memory_bytes": _memory(setting, side.flags, batches, lengths),
        }
    facts["peer_best"]["tried"] = tried
    return {"peer_as_paper": as_paper, "peer_best": best}, facts


def _best(setting: Setting, rows: Rows, plan: Plan) -> tuple[PeerTraining, list[dict[str, Any]]]:
    """The peer with the flags that are fastest here, and all that were tried with their examples per second."""
    trial = [plan.trial]
    runs = [
        PeerTraining(setting, flags, rows, [*trial, *trial, *trial, *itertools.chain(*plan.grouped)])
        for flags in candidates(decide("auto").bf16)
    ]
    for run in runs:
        run.run()
    times = [timed(as_alone(run.run)) for run in runs]
    times = [min(first, timed(as_alone(run.run))) for first, run in zip(times, runs, strict=True)]
    best = runs[int(np.argmin(times))]
    for run in runs:
        if run is not best:
            run.close()
    console.say(f"the peer's best flags here: {best.flags}")
    tried = [
        {**dataclasses.asdict(run.flags), "examples_per_second": len(trial[0]) / seconds}
        for run, seconds in zip(runs, times, strict=True)
    ]
    return best, tried


def _memory(setting: Setting, flags: Flags | None, batches: Sequence[np.ndarray], lengths: np.ndarray) -> int | None:
    """Peak memory of two steps, the second on the batch that holds the longest document, in a process of its own."""
    batch = max(batches, key=lambda batch: int(lengths[batch].max()))
    return memory.peak(_memory_of, setting, flags, batch)


def _memory_of(setting: Setting, flags: Flags | None, batch: np.ndarray) -> Callable[[], None]:
    import peft  # noqa: F401  (libraries are there before the measurement begins)

    documents = setting.task.documents("train")
    documents = [documents[index] for index in batch]
    everything = np.arange(len(documents))
    # The optimiser's state is there from the first step on: the second shows the peak.
    steps = [everything[:1], everything]
    if flags is None:
        return lambda: OurTraining(setting, documents).run(steps)
    return functools.partial(_run_peer, setting, flags, tokenise(setting, documents), steps)


def _run_peer(setting: Setting, flags: Flags, rows: Rows, steps: Sequence[np.ndarray]) -> None:
    run = PeerTraining(setting, flags, rows, steps)
    for _ in steps:
        run.run()
    run.close()


def _add_quality(setting: Setting, documents: list[Document], found: dict[str, Any], peers: dict[str, Flags]) -> None:
    """Trains each side from scratch on the whole training set as the recipe says, and scores its last state."""
    ours, task = OurTraining(setting, documents), setting.task
    predictor, splits = ours.predictor, ("validation", "test")
    read = {split: predictor.encoder.read(task.documents(split), task.unit) for split in splits}

    def add(name: str, logits: Callable[[str], list[np.ndarray]], seconds: float) -> None:
        scores = {split: predictor.score(read[split][0], logits(split))[task.metric] for split in splits}
        found[name]["quality"] = {"metric": task.metric, **scores, "training_seconds": seconds}

    seconds = timed(ours.run_all)
    add("ours", lambda split: predictor.logits(read[split][1], split), seconds)
    rows = {split: tokenise(setting, task.documents(split)) for split in ("train", *splits)} if peers else {}
    for name, flags in peers.items():
        trainer, seconds = train_whole(setting, flags, rows["train"])
        add(name, functools.partial(_logits_of, trainer, rows), seconds)


def _logits_of(trainer: Any, rows: dict[str, Rows], split: str) -> list[np.ndarray]:
    return peer_logits(trainer, rows[split])
