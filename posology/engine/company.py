"""Several trainings on one frozen backbone in company: one pass over the texts of all of them.

    run 1   its texts, filled up  ┐
    run 2   its texts, filled up  ├─ one packed row ── layers, adapters stacked ─┬─ head 1, loss 1
    run 3   its texts, filled up  ┘                                              ├─ head 2, loss 2
                                                                                 └─ head 3, loss 3

On short texts most of a step is not arithmetic, and small products use little of a processor: one step for all costs
less than one each. Every run keeps what is its own: data, task, head, adapter, optimiser, schedule, budget,
evaluations. It has the gradients it would have alone, since no text sees another, and adapters are applied to the
tokens of their run only. Runs enter while others are under way, and leave when they are done.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from posology import console
from posology.engine.adapted import Adapted
from posology.engine.attention import Segments
from posology.engine.batch import Batch, pack
from posology.engine.checkpoint import untouched_generators
from posology.engine.encode import Window
from posology.engine.packed import Row
from posology.engine.precision import Precision
from posology.engine.stopping import Stop
from posology.engine.training import Diverged, Training

METHODS = ("lora", "rslora", "ia3", "head")
"""Methods whose runs may keep company: the layers are frozen, and what is added to them can be stacked."""
TOKENS = 4096
"""Pieces of a micro-batch, of all runs together and filled up."""


@dataclass
class Member:
    """A run in a company.

    Attributes:
        name: for messages.
        adapted: its model, whose frozen weights become those of the carrier.
        training: its state.
        validate: every metric of its model on validation.
        metric: the one that chooses the best state.
        leave: called when it is finished, with its best weights in place; its argument says why it failed.
        rank: of its LoRA; 0 where it has none.
    """

    name: str
    adapted: Adapted
    training: Training
    validate: Callable[[], Mapping[str, float]]
    metric: str
    leave: Callable[[Diverged | None], None]
    rank: int = 0


class Part(NamedTuple):
    """What one run has in a micro-batch: its windows, and where in the row its head reads."""

    member: Member
    batch: Batch | None
    reads: np.ndarray


class Company:
    """Trainings that go on together.

    Args:
        carrier: a model of the frozen backbone without adapters, of a written-out architecture. The rows of all runs go
            through it; its own head is not used.
        precision: device and type of products, of all runs.
        at_once: runs that train at the same time, at most.
        tokens: pieces of a micro-batch.
    """

    def __init__(self, carrier: Adapted, precision: Precision, *, at_once: int, tokens: int = TOKENS):
        self._carrier, self._precision, self._at_once, self._tokens = carrier, precision, at_once, tokens
        self._members: list[Member] = []
        self._depth = len(carrier.layers)
        self._queue: Iterator[Callable[[], Member]] = iter(())

    def train(self, waiting: Iterable[Callable[[], Member]]) -> bool:
        """Trains runs until all are finished.

        Ctrl-C and SIGTERM end it after the step they come in: runs under way then leave as they are, `interrupted`.

        Args:
            waiting: makes each run when there is room for it.

        Returns:
            Whether it was interrupted.
        """
        self._queue = iter(waiting)
        with Stop.deferred() as stop:
            self._fill()
            while self._members and not stop.asked:
                self.step()
                for member in self._members:
                    if member.training.evaluation_due and not stop.asked:
                        self._evaluate(member, stop)
                finished = [member for member in self._members if member.training.finished and not stop.asked]
                for member in finished:
                    self._leave(member)
                if finished:
                    self._fill()
            for member in list(self._members):  # only where it was stopped
                member.training.fit.stopped = "interrupted"
                self._leave(member)
        return stop.asked

    def enter(self, members: Sequence[Member]) -> None:
        """Lets runs take part from the next step on; their frozen weights become those of the carrier."""
        for member in members:
            for own, shared in zip(member.adapted.layers, self._carrier.layers, strict=True):
                own.adopt(shared)
            self._members.append(member)
        self._members.sort(key=lambda member: member.rank)  # neighbours of like ranks are stacked
        for number, layer in enumerate(self._carrier.layers):
            layer.share([member.adapted.layers[number] for member in self._members])

    def _fill(self) -> None:
        """Lets waiting runs enter while there is room."""
        free = self._at_once - len(self._members)
        self.enter([make() for make in itertools.islice(self._queue, free)])

    def _leave(self, member: Member, error: Diverged | None = None) -> None:
        self._members.remove(member)
        member.training.restore_best()
        member.leave(error)

    def _evaluate(self, member: Member, stop: Stop) -> None:
        begin = time.perf_counter()
        try:
            with stop.at_once(), untouched_generators():
                metrics = member.validate()
        except KeyboardInterrupt:
            stop.asked = True
            return
        member.training.record(metrics, member.metric, time.perf_counter() - begin)
        last = member.training.fit.evaluations[-1]
        console.say(
            f"{member.name}: epoch {last['epoch']:.3g}, loss {last['loss']:.3f}, validation {last['score']:.4f}"
        )

    def step(self) -> None:
        """One step of every run."""
        begin = time.perf_counter()
        losses, tokens = [0.0] * len(self._members), [0] * len(self._members)
        trainings = [member.training for member in self._members]
        documents = [training.documents() for training in trainings]
        scales = [training.scale(own) for training, own in zip(trainings, documents, strict=True)]
        for parts in self._rows([training.units(own) for training, own in zip(trainings, documents, strict=True)]):
            for place, loss in self._losses(parts, scales):
                losses[place] += loss
            for place, part in enumerate(parts):
                tokens[place] += part.batch.tokens if part.batch is not None else 0
        failed = []
        for member, loss, own in zip(self._members, losses, tokens, strict=True):
            try:
                member.training.finish_step(loss, own)
            except Diverged as error:
                failed.append((member, error))
        seconds = time.perf_counter() - begin
        for member, own in zip(self._members, tokens, strict=True):
            member.training.spend(seconds * own / sum(tokens))  # its share: the sum over the runs is the time taken
        for member, why in failed:
            self._leave(member, why)
        if failed:
            self._fill()

    def _rows(self, units: Sequence[Sequence[Sequence[Window]]]) -> Iterator[list[Part]]:
        """Micro-batches in which all runs have about as many tokens."""
        sizes = [[sum(len(window.ids) for window in unit) for unit in own] for own in units]
        longest = max(sum(own) for own in sizes)
        count = min(-(-longest * len(units) // self._tokens), max(len(own) for own in units))
        shares = [dealt(own, size, count) for own, size in zip(units, sizes, strict=True)]
        for number in range(count):
            parts = []
            for member, own in zip(self._members, shares, strict=True):
                if not own[number]:
                    parts.append(Part(member, None, np.zeros(0, np.int64)))
                    continue
                batch = pack(own[number], self._precision.device)
                reads = member.adapted.read(batch)
                columns = np.arange(batch.tokens) if reads is None else reads.cpu().numpy()
                parts.append(Part(member, batch, columns))
            yield parts

    def _losses(self, parts: Sequence[Part], scales: Sequence[float]) -> list[tuple[int, float]]:
        """Adds the gradients of a micro-batch to all runs, and gives the losses of those that are in it."""
        with self._precision.autocast():
            hidden = self._hidden(parts)
            answers = []
            for (member, batch, reads), own in zip(parts, hidden, strict=True):
                if batch is None:
                    continue
                adapted, seen = member.adapted, own[: len(reads)]
                adapted.module.train()
                if adapted.pooling == "mean" and adapted.kind == "sequence-classification":
                    assert batch.segments is not None
                    seen = Row(batch.segments).means(seen)
                if adapted.first_trained == self._depth:
                    seen = seen.detach()
                answers.append((member, batch, adapted.upper(seen, batch, self._depth)))
        found, total = [], torch.zeros((), device=self._precision.device)
        for member, batch, own in answers:
            place = self._members.index(member)
            loss = member.training.loss(own, batch) / scales[place]
            total = total + loss
            found.append((place, loss.detach()))
        total.backward()
        return [(place, loss.item()) for place, loss in found]

    def _hidden(self, parts: Sequence[Part]) -> torch.Tensor:
        """What the heads read of one row for all runs, filled up to as much for each: (runs, reads, width)."""
        inputs, segments, reads = together(parts, self._carrier.base.config.pad_token_id, self._precision.device)
        firsts = [part.member.adapted.first_trained for part in parts]
        frozen = min(self._depth if first is None else first for first in firsts)
        module = self._carrier.module
        entering = None
        if frozen:  # what no run trains has no dropout, in company as alone
            module.eval()
            with torch.no_grad():
                read = reads if frozen == self._depth else None
                entering = self._carrier.body(inputs, segments, range(frozen), read=read)
        hidden = entering
        if frozen < self._depth:
            module.train()
            hidden = self._carrier.body(inputs, segments, range(frozen, self._depth), entering=entering, read=reads)
        assert hidden is not None
        return hidden.view(len(parts), -1, hidden.shape[-1])


def together(
    parts: Sequence[Part], padding: int, device: torch.device
) -> tuple[dict[str, torch.Tensor], Segments, torch.Tensor]:
    """One row of the texts of all runs, in which each has as many tokens and reads as many of them.

    What a run lacks is filled up with texts of one token, which see nothing and which nobody sees.

    Returns:
        Inputs, (1, runs x tokens); borders; and the columns that are read, (runs x reads,), the first of a run repeated
        where it reads fewer.
    """
    sizes = [part.batch.tokens if part.batch is not None else 0 for part in parts]
    size, most = max(sizes), max(len(part.reads) for part in parts)
    ids, types = np.full((len(parts), size), padding, np.int64), np.zeros((len(parts), size), np.int64)
    lengths, reads = [], np.zeros((len(parts), most), np.int64)
    for number, (part, own) in enumerate(zip(parts, sizes, strict=True)):
        if part.batch is not None:
            assert part.batch.segments is not None
            ids[number, :own] = part.batch.inputs["input_ids"][0].cpu()
            if "token_type_ids" in part.batch.inputs:
                types[number, :own] = part.batch.inputs["token_type_ids"][0].cpu()
            lengths.append(part.batch.segments.lengths)
        lengths.append(np.ones(size - own, np.int64))
        reads[number, : len(part.reads)] = part.reads
    reads += size * np.arange(len(parts))[:, None]
    inputs = {"input_ids": torch.from_numpy(ids.reshape(1, -1)).to(device)}
    if types.any():
        inputs["token_type_ids"] = torch.from_numpy(types.reshape(1, -1)).to(device)
    segments = Segments(np.concatenate(lengths), device)
    return inputs, segments, segments.tensor(reads.reshape(-1))


def dealt(units: Sequence[Sequence[Window]], sizes: Sequence[int], count: int) -> list[list[Window]]:
    """Deals units out to so many groups of about as many tokens each: the largest first, to the smallest group."""
    groups: list[list[Window]] = [[] for _ in range(count)]
    held = [0] * count
    for index in sorted(range(len(units)), key=lambda index: -sizes[index]):
        smallest = held.index(min(held))
        groups[smallest] += units[index]
        held[smallest] += sizes[index]
    return groups
