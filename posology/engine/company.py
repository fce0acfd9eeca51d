"""Several trainings on one frozen backbone in company: one pass over the texts of all of them.

    texts of run 1  ┐
    texts of run 2  ├─ one packed row ── layers, each token with the adapters of its run ─┬─ head 1, loss 1
    texts of run 3  ┘                                                                     ├─ head 2, loss 2
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
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from posology import console
from posology.engine.adapted import Adapted
from posology.engine.attention import Segments
from posology.engine.batch import Batch, pack
from posology.engine.checkpoint import Checkpoint, untouched_generators
from posology.engine.encode import Window
from posology.engine.packed import Row
from posology.engine.precision import Precision
from posology.engine.predictor import NotFinite
from posology.engine.projection import shares_of
from posology.engine.stopping import Stop
from posology.engine.training import Diverged, Training
from posology.errors import UserError

METHODS = ("lora", "rslora", "ia3", "head")
"""Methods whose runs may keep company: the layers are frozen, and what is added to them looks at one token at a time."""
TOKENS = 4096
"""Pieces of a micro-batch, of all runs together: 2,048 was a sixth slower, and 8,192 no faster."""


@dataclass
class Member:
    """A run in a company.

    Attributes:
        name: for messages.
        adapted: its model, whose frozen weights become those of the carrier.
        training: its state.
        validate: every metric of its model on validation.
        metric: the one that chooses the best state.
        leave: called when it is over, with its best weights in place where it has some; its argument says why it failed.
        checkpoint: where to write checkpoints, entered.
        first_trained: `Adapted.first_trained`, which does not change.
    """

    name: str
    adapted: Adapted
    training: Training
    validate: Callable[[], Mapping[str, float]]
    metric: str
    leave: Callable[[UserError | None], None]
    checkpoint: Checkpoint | None = None
    first_trained: int = field(init=False)

    def __post_init__(self) -> None:
        first = self.adapted.first_trained
        self.first_trained = len(self.adapted.layers) if first is None else first

    def save_due(self, evaluated: bool, members: int) -> bool:
        """Whether it is time for a checkpoint, as one of so many runs that all wait for it."""
        return self.checkpoint is not None and self.checkpoint.due(evaluated=evaluated, waiting=members)

    def save(self) -> None:
        """Writes a checkpoint, without the random generators, which are those of all runs in the process."""
        if self.checkpoint is not None:
            tensors, facts = self.training.state()
            self.training.spend_on_checkpoint(self.checkpoint.write(tensors, {"training": facts}))


class Part(NamedTuple):
    """What one run has in a micro-batch: its windows, and which columns of them its head reads."""

    member: Member
    batch: Batch
    reads: np.ndarray

    @property
    def segments(self) -> Segments:
        """The borders of its texts."""
        assert self.batch.segments is not None
        return self.batch.segments


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
        self._queue: Iterator[Callable[[], Member | None]] = iter(())

    def train(self, waiting: Iterable[Callable[[], Member | None]]) -> bool:
        """Trains runs until all are finished.

        Ctrl-C and SIGTERM end it after the step they come in: runs under way then leave as they are, `interrupted`, with
        checkpoints of that moment.

        Args:
            waiting: makes each run when there is room for it; None where it cannot be made.

        Returns:
            Whether it was interrupted.
        """
        self._queue = iter(waiting)
        with Stop.deferred() as stop:
            self._fill(stop)
            while self._members and not stop.asked:
                self.step()
                self._settle(stop)
                self._fill(stop)
            # Only where it was stopped. All checkpoints come first: whoever stops it may not wait for the artifacts.
            for member in self._members:
                member.save()
            for member in list(self._members):
                member.training.fit.stopped = "interrupted"
                self._leave(member)
        return stop.asked

    def enter(self, members: Sequence[Member]) -> None:
        """Lets runs take part from the next step on; their frozen weights become those of the carrier."""
        for member in members:
            member.adapted.adopt(self._carrier)
            self._members.append(member)
        self._share()

    def _fill(self, stop: Stop) -> None:
        """Lets waiting runs enter while there is room."""
        entering: list[Member] = []
        while (
            not stop.asked
            and len(self._members) + len(entering) < self._at_once
            and (make := next(self._queue, None)) is not None
        ):
            if (member := make()) is not None:
                entering.append(member)
        if entering:
            self.enter(entering)
            self._settle(stop)  # one that goes on from a checkpoint may be over
            self._fill(stop)

    def _settle(self, stop: Stop) -> None:
        """What is due between two steps: evaluations, checkpoints, and the end of runs that have come to it."""
        for member in list(self._members):
            evaluated = saved = False
            while not stop.asked:
                if member.training.evaluation_due:
                    if not self._evaluate(member, stop):
                        break
                    evaluated = True
                elif member.training.finished:
                    self._leave(member)
                    break
                elif not saved and member.save_due(evaluated, len(self._members)):
                    member.save()
                    saved = True  # the time it took may be the last of the budget
                else:
                    break

    def _share(self) -> None:
        for number, layer in enumerate(self._carrier.layers):
            layer.share([member.adapted.layers[number] for member in self._members])

    def _leave(self, member: Member, error: UserError | None = None) -> None:
        self._members.remove(member)
        self._share()
        member.training.restore_best()
        member.leave(error)

    def _evaluate(self, member: Member, stop: Stop) -> bool:
        """Whether it could be evaluated: not where it was stopped meanwhile, nor where its metric is undefined."""
        begin = time.perf_counter()
        try:
            with stop.at_once(), untouched_generators():
                metrics = member.validate()
            member.training.record(metrics, member.metric, time.perf_counter() - begin)
        except KeyboardInterrupt:
            stop.asked = True
            return False
        except NotFinite:
            return self._diverged(member)
        except UserError as error:
            self._leave(member, error)
            return False
        last = member.training.fit.evaluations[-1]
        console.say(
            f"{member.name}: epoch {last['epoch']:.3g}, loss {last['loss']:.3f}, validation {last['score']:.4f}"
        )
        return True

    def _diverged(self, member: Member) -> bool:
        """Whether it is still there, to leave with the best state before that."""
        try:
            member.training.diverge("the weights are no longer finite numbers")
        except Diverged as error:
            self._leave(member, error)
            return False
        return True

    def step(self) -> None:
        """One step of every run."""
        begin = time.perf_counter()
        members = self._members
        documents = [member.training.documents() for member in members]
        scales = [member.training.scale(own) for member, own in zip(members, documents, strict=True)]
        units = [member.training.units(own) for member, own in zip(members, documents, strict=True)]
        losses, tokens = [0.0] * len(members), [0] * len(members)
        for group in cut(units, self._tokens):
            parts = {place: self._part(members[place], windows) for place, windows in group.items()}
            for place, loss in self._losses(parts, scales).items():
                losses[place] += loss
                tokens[place] += parts[place].batch.tokens
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

    def _part(self, member: Member, windows: Sequence[Window]) -> Part:
        batch = pack(windows, self._precision.device)
        reads = member.adapted.read(batch)
        return Part(member, batch, np.arange(batch.tokens) if reads is None else reads.cpu().numpy())

    def _losses(self, parts: Mapping[int, Part], scales: Sequence[float]) -> dict[int, float]:
        """Adds the gradients of a micro-batch to the runs in it, and gives their losses, by place among the members."""
        answers, losses = {}, {}
        with self._precision.autocast():
            hidden = self._hidden(parts)
            for (place, part), seen in zip(parts.items(), hidden, strict=True):
                adapted = part.member.adapted
                _switch(adapted.module, training=True)
                if adapted.pooling == "mean" and adapted.kind == "sequence-classification":
                    seen = Row(part.segments).means(seen)
                if part.member.first_trained == self._depth:
                    seen = seen.detach()
                answers[place] = adapted.upper(seen, part.batch, self._depth)
        for place, own in answers.items():
            losses[place] = parts[place].member.training.loss(own, parts[place].batch) / scales[place]
        torch.stack(list(losses.values())).sum().backward()
        return {place: loss.item() for place, loss in losses.items()}

    def _hidden(self, parts: Mapping[int, Part]) -> tuple[torch.Tensor, ...]:
        """What the heads read of one row for all runs, (reads of a run, width) each."""
        inputs, segments, reads = together(list(parts.values()), self._precision.device)
        present = [parts.get(place) for place in range(len(self._members))]
        own = (
            shares_of(0 if part is None else part.batch.tokens for part in present),
            shares_of(0 if part is None else len(part.reads) for part in present),
        )
        for layer in self._carrier.layers:
            layer.shares = own
        frozen = min(part.member.first_trained for part in parts.values())
        module = self._carrier.module
        hidden = None
        if frozen:  # what no run trains has no dropout, in company as alone
            _switch(module, training=False)
            with torch.no_grad():
                read = reads if frozen == self._depth else None
                hidden = self._carrier.body(inputs, segments, range(frozen), read=read)
        if frozen < self._depth:
            _switch(module, training=True)
            hidden = self._carrier.body(inputs, segments, range(frozen, self._depth), entering=hidden, read=reads)
        assert hidden is not None
        return hidden.split([len(part.reads) for part in parts.values()])


def _switch(module: nn.Module, *, training: bool) -> None:
    """Switches dropout where it is not as wanted: to walk through all modules takes as long as a small product."""
    if module.training is not training:
        module.train(training)


def together(parts: Sequence[Part], device: torch.device) -> tuple[dict[str, torch.Tensor], Segments, torch.Tensor]:
    """One row of the texts of several runs.

    Returns:
        Inputs, (1, tokens); borders; and the columns that are read, (reads,).
    """
    inputs = {"input_ids": torch.cat([part.batch.inputs["input_ids"] for part in parts], dim=1)}
    if any("token_type_ids" in part.batch.inputs for part in parts):
        types = [
            part.batch.inputs.get("token_type_ids", torch.zeros_like(part.batch.inputs["input_ids"])) for part in parts
        ]
        inputs["token_type_ids"] = torch.cat(types, dim=1)
    starts = itertools.accumulate((part.batch.tokens for part in parts[:-1]), initial=0)
    reads = np.concatenate([part.reads + start for part, start in zip(parts, starts, strict=True)])
    segments = Segments(np.concatenate([part.segments.lengths for part in parts]), device)
    return inputs, segments, segments.tensor(reads)


def cut(units: Sequence[Sequence[Sequence[Window]]], tokens: int) -> list[dict[int, list[Window]]]:
    """Cuts the batches of several runs into micro-batches of about as many tokens, whichever runs these are of.

    Windows of like lengths come together, since attention then has less to pad.

    Args:
        units: for each run windows that must stay together.
        tokens: of a micro-batch, about.

    Returns:
        For each micro-batch the windows of each run that is in it, by the number of the run.
    """
    sizes = [
        (max(len(window.ids) for window in unit), sum(len(window.ids) for window in unit), run, number)
        for run, own in enumerate(units)
        for number, unit in enumerate(own)
    ]
    total = sum(size for _, size, _, _ in sizes)
    count = max(1, round(total / tokens))
    groups: list[dict[int, list[Window]]] = [{} for _ in range(count)]
    held = 0
    for _, size, run, number in sorted(sizes, reverse=True):
        group = groups[min(count - 1, int((held + size / 2) * count / total))]
        group.setdefault(run, []).extend(units[run][number])
        held += size
    return [dict(sorted(group.items())) for group in groups if group]
