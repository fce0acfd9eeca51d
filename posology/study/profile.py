"""What a short measurement on this machine says of runs that have not been made: the input of a forecast.

A profile is a plain dict, ready for JSON. Each part is found by a key of exactly what it depends on, so that a study of
hundreds of runs needs few measurements, and the next plan of it none:

    machine     what was measured on; on another one, or with other threads, everything is measured anew
    tasks       seconds to read a task, to score validation once, to score test with its intervals
    corpora     what is read of it in one run: documents, windows, pieces, seconds to tokenise
    models      floating-point operations as polynomials of a window's length, and memory
    paces       seconds per step and per operation, from a few steps on the task's own documents
    baselines   seconds per character, of fitting one to a sample

Operations carry a pace over: from one task to others of its kind and length, from LoRA to IA3, from a sample to the
whole. That holds as long as windows are of about one length, so lengths are put into classes.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from posology import __version__, console
from posology.errors import UserError
from posology.study.cell import Cell

if TYPE_CHECKING:
    from posology.corpus.document import Document
    from posology.engine.encode import Encoded

FORMAT = 1
LENGTH_CLASSES = (64, 128, 256)
"""Upper ends of the classes of lengths, in pieces; the last one is open. A piece's own window counts: the mean of
squared lengths over the mean of lengths."""
SAMPLE_CHARACTERS = 400_000
"""A baseline is fitted to a sample of the training texts of about this size."""
_OF_ENCODER = ("max_length", "long_text", "overlap")
_OF_LOOP = (
    *("learning_rate", "epochs", "batch_size", "weight_decay", "warmup", "schedule", "max_grad_norm", "class_weights"),
    *("patience", "alpha", "adapter_dropout", *_OF_ENCODER),
)
"""Fields of a recipe that change neither what a model computes for a window nor what it holds."""
_OF_SPEED = ("precision", "quantise", "backbone_dtype", "checkpointing", "dropout", "attention_dropout")
_OWN_PACE = ("full", "dora")
"""Methods that spend much beside the matrices that operations are counted of: an optimiser of all weights, norms of all
adapted matrices. The others are near enough to each other: LoRA, IA3, BitFit, prefix and prompt took within 15 % of the
same time per operation (MiniLM on two cores, sentences and notes)."""


class Wanted:
    """What a cell needs of a profile: keys.

    Args:
        cell: the run.

    Attributes:
        cell: as given.
        identity: `cell.identity()`.
        recipe: all hyper-parameters, or all settings of a baseline.

    Raises:
        UserError: the task, the backbone or the recipe is not there or does not fit.
    """

    def __init__(self, cell: Cell):
        from posology.engine.baselines import BASELINES

        self.cell, self.identity = cell, cell.identity()
        self.recipe: dict[str, Any] = self.identity["recipe"]
        self.is_baseline = cell.method in BASELINES
        self._task: str = self.identity["task"]["fingerprint"]
        self._drawn = [cell.shots, cell.seed] if cell.shots else None

    @cached_property
    def task(self) -> str:
        """Key of the seconds that depend on the task alone."""
        return _key(self._task)

    @cached_property
    def whole(self) -> str:
        """Key of the whole corpus as it is read in this run."""
        return self._corpus(None)

    @cached_property
    def corpus(self) -> str:
        """Key of what of it is trained on."""
        return self._corpus(self._drawn)

    def _corpus(self, drawn: Any) -> str:
        if self.is_baseline:
            return _key(self._task, drawn)
        from posology.engine.virtual import VIRTUAL

        virtual = self.recipe["virtual_tokens"] if self.cell.method in VIRTUAL else 0
        tokenizer = self.identity["backbone"]["sha256"]
        return _key(self._task, tokenizer, virtual, [self.recipe[name] for name in _OF_ENCODER], drawn)

    @cached_property
    def model(self) -> str:
        """Key of its operations."""
        own = {name: value for name, value in self.recipe.items() if name not in _OF_LOOP}
        return _key(self._task, self.identity["backbone"], self.cell.method, own)

    @cached_property
    def memory(self) -> str:
        """Key of its memory, with that of the whole corpus: drawing shots leaves micro-batches about as heavy."""
        return _key(self.model, self.whole, self.recipe["batch_size"])

    @cached_property
    def baseline(self) -> str:
        """Key of a baseline's pace."""
        return _key(self._task, self.cell.method, self.recipe)

    def pace(self, kind: str, frozen: int, length: float) -> str:
        """Key of its pace.

        Args:
            kind: of the task.
            frozen: layers that are run once.
            length: typical length of its windows, in pieces.
        """
        method = self.cell.method if self.cell.method in _OWN_PACE else "adapter"
        speed = [self.recipe[name] for name in _OF_SPEED]
        return _key(self.identity["backbone"], method, kind, frozen, length_class(length), speed)


def measure(
    cells: Iterable[Cell],
    known: Mapping[str, Any] | None = None,
    *,
    seconds: float = 2.0,
    more: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """The profile of some cells: what `known` lacks is measured.

    Args:
        cells: the runs.
        known: an earlier profile; not changed. One of another machine is not used.
        seconds: about how long the steps of one pace are measured; loading the model comes on top.
        more: is asked before each cell that needs a measurement, and says no where there is no time for it.

    Raises:
        UserError: an input of a cell is not there or does not fit.
    """
    wanted = [Wanted(cell) for cell in cells]
    machine = this_machine()
    profile: dict[str, Any] = {"format": FORMAT, "machine": machine, "start": None}
    parts = ("tasks", "corpora", "models", "memory", "paces", "baselines")
    usable = known is not None and known.get("format") == FORMAT and known.get("machine") == machine
    for part in parts:
        profile[part] = dict(known[part]) if usable and known is not None else {}
    if usable and known is not None:
        profile["start"] = known["start"]
    missing = sorted((each for each in wanted if not is_complete(each, profile)), key=lambda each: each.task)
    if not missing:
        return profile
    from posology.study.profiling import Measurement

    if profile["start"] is None:
        profile["start"] = _start_seconds()
    console.say(f"profiling this machine for {len(missing):,} runs")
    measurement = Measurement(profile, seconds)
    with console.progress("profiling", len(missing)) as advance:
        for each in missing:
            if is_complete(each, profile) or more():
                measurement.add(each)
            advance()
    return profile


def is_complete(wanted: Wanted, profile: Mapping[str, Any]) -> bool:
    """Whether everything is known that a forecast of it reads."""
    if wanted.task not in profile["tasks"] or wanted.corpus not in profile["corpora"]:
        return False
    if wanted.is_baseline:
        return wanted.baseline in profile["baselines"]
    if wanted.model not in profile["models"] or wanted.memory not in profile["memory"]:
        return False
    return pace_key(wanted, profile) in profile["paces"]


def pace_key(wanted: Wanted, profile: Mapping[str, Any]) -> str:
    """The key of a cell's pace, by its model and its corpus, which must be in the profile."""
    model, corpus = profile["models"][wanted.model], profile["corpora"][wanted.corpus]
    return wanted.pace(profile["tasks"][wanted.task]["kind"], model["frozen"], length_of(corpus["train"]))


def length_of(split: Mapping[str, Any]) -> float:
    """The length of the window that a piece is in, on average."""
    return float(split["squares"] / max(1, split["pieces"]))


def length_class(length: float) -> int:
    """The number of the class that a length is in."""
    return sum(length > end for end in LENGTH_CLASSES)


def sizes(encoded: Encoded, documents: Iterable[Document]) -> dict[str, int]:
    """What operations and seconds are counted by: documents, characters, windows, pieces, squares of lengths, words."""
    lengths = [len(window.ids) for own in encoded.windows for window in own]
    return {
        **size_of(documents),
        "windows": len(lengths),
        "pieces": sum(lengths),
        "squares": sum(length * length for length in lengths),
        "words": sum(len(window.words) for own in encoded.windows for window in own),
    }


def size_of(documents: Iterable[Document]) -> dict[str, int]:
    """Documents and their characters."""
    lengths = [len(document.text) + len(document.text_pair or "") for document in documents]
    return {"documents": len(lengths), "characters": sum(lengths)}


def this_machine() -> dict[str, Any]:
    """What seconds depend on beside the run itself."""
    import torch

    from posology.engine.precision import decide
    from posology.machine import processor_name

    device = decide().device
    return {
        "processor": processor_name(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "posology": __version__,
    }


def _start_seconds() -> float:
    """Seconds that a new process takes until it can train: loading what its first run would load besides, too."""
    begin = time.perf_counter()
    modules = "posology.engine.train, peft, polars, transformers.models.bert.modeling_bert"
    command = [sys.executable, "-c", f"import {modules}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def _key(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def not_profiled(cell: Cell) -> UserError:
    """The error for a cell that a profile says nothing of."""
    return UserError("the profile says nothing of this run", "Measure it first, on this machine", cell.title)
