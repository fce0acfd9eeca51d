"""The models of a server: by name, on as few backbones as there can be, added and removed while others answer."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from posology import console
from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.engine.artifact import load, read_record, set_calibration, source_of
from posology.engine.baselines import BASELINES
from posology.engine.encode import Encoded, Encoder
from posology.engine.model import Answers, Model
from posology.engine.precision import decide
from posology.engine.predict import rows_of
from posology.engine.predictor import Predictor, outputs_of
from posology.engine.projection import Unsupported
from posology.engine.recipe import Recipe
from posology.errors import UserError
from posology.ship.serve.batching import TOKENS, Batcher, Engine, Unit
from posology.ship.serve.sharing import Alone, Backbone, Head, Reading, Track, shareable

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What a model may be called."""
_CHARACTERS = 4  # of a piece, about: what a model without pieces of its own is counted by
_NO_TRACK = Track(())


@dataclass(eq=False)
class Served(Model):
    """A model that answers through the queue.

    Attributes:
        name: under which it is asked.
        facts: what `GET /v1/models` says of it.
        kind, labels, text_pair, units: as in `Model`.
        engine: what runs it.
        fleet: whose it is.
        encoder: cuts texts into windows; None for a model that takes texts as they are.
        track, head, reads: see `posology.ship.serve.sharing`.
        coverage: the share of a text that a model without an encoder reads; None where nobody knows.
        seconds: how long `answer` waits.
    """

    name: str
    facts: dict[str, Any]
    task_kind: str
    labels: tuple[str, ...]
    text_pair: bool
    units: tuple[str, ...]
    engine: Engine
    fleet: Fleet = field(repr=False)
    encoder: Encoder | None = None
    track: Track = _NO_TRACK
    head: Head | None = None
    reads: str = "whole"
    coverage: float | None = 1.0
    seconds: float | None = None

    @property
    def kind(self) -> str:
        """Of the task."""
        return self.task_kind

    def within(self, seconds: float) -> Served:
        """The same model, whose `answer` waits so long and then raises TimeoutError."""
        limited = copy.copy(self)
        limited.seconds = seconds
        return limited

    def answer(self, documents: Sequence[Document], description: str = "", *, unit: str = "word") -> Answers:
        """See `Model.answer`; raises what `Batcher.submit` does where too much waits."""
        asked = self.fleet.ask(documents, [self])
        work = self.fleet.batcher.submit(asked.units)
        try:
            work.future.result(self.seconds)
        except FutureTimeoutError:
            self.fleet.batcher.cancel(work)
            raise
        return Answers(documents, [own.logits for own in asked.found[0]], asked.coverage())


@dataclass(eq=False)
class Whole:
    """A text as a model without windows of ours reads it; `logits` are there when it has."""

    document: Document
    logits: np.ndarray = field(default_factory=lambda: np.empty(0))


class WholeTexts:
    """A model that takes texts as they are, a baseline or an exported one; an engine of the queue."""

    def __init__(self, model: Model):
        self._model = model

    def run(self, units: Sequence[Unit]) -> None:
        """Answers texts."""
        answers = self._model.answer([unit.reading.document for unit in units])
        for unit, logits in zip(units, answers.logits, strict=True):
            unit.reading.logits = logits


@dataclass
class Found:
    """Where one model's answer to one document will be, and the share of the text that it reads (None: not known)."""

    reading: Reading | Whole
    place: int
    coverage: float | None

    @property
    def logits(self) -> np.ndarray:
        """The answer."""
        return self.reading.logits if isinstance(self.reading, Whole) else self.reading.values[self.place]


class Asked:
    """Documents and the models that are to answer them.

    Attributes:
        units: what is to be run.
        found: for each model, by document, where its answers will be.
    """

    def __init__(self, documents: Sequence[Document], models: Sequence[Served]):
        self.documents, self.models = documents, models
        self.units: list[Unit] = []
        self.found: list[list[Found]] = [[] for _ in models]
        if any(model.kind == "token-classification" for model in models):
            for document in documents:
                document.words = document.words or words_of(document.text)
        encoded: dict[tuple[object, ...], Encoded] = {}
        for places in _together(models):
            first = models[places[0]]
            if first.encoder is None:
                self._ask_whole(places[0])
                continue
            key = first.encoder.key
            if key not in encoded:
                encoded[key] = first.encoder.encode(documents)
            self._ask(places, encoded[key])

    def _ask(self, places: Sequence[int], encoded: Encoded) -> None:
        """Lets models that share a pass read the documents."""
        first = self.models[places[0]]
        heads = tuple(head for place in places if (head := self.models[place].head) is not None)
        for document, windows, pieces, covered in zip(
            self.documents, encoded.windows, encoded.pieces, encoded.covered, strict=True
        ):
            values = [_empty(self.models[place], document) for place in places]
            reading = Reading(first.track, heads, first.reads, values, len(windows))
            for window in windows:
                if first.reads != "words" or len(window.words):
                    self.units.append(Unit(first.engine, len(window.ids), reading, window))
            for number, place in enumerate(places):
                self.found[place].append(Found(reading, number, float(covered / pieces) if pieces else 1.0))

    def _ask_whole(self, place: int) -> None:
        model = self.models[place]
        for document in self.documents:
            whole = Whole(document)
            size = (len(document.text) + len(document.text_pair or "")) // _CHARACTERS + 1
            self.units.append(Unit(model.engine, size, whole))
            self.found[place].append(Found(whole, 0, model.coverage))

    def coverage(self) -> float:
        """The mean over everything that is asked."""
        known = [found.coverage for own in self.found for found in own if found.coverage is not None]
        return sum(known) / len(known) if known else 1.0

    def rows(self) -> list[list[dict[str, Any]]]:
        """For each document what each model says: `model`, and `label`, `score`, `probabilities` or `spans`, `coverage`."""
        by_model = [
            rows_of(model, Answers(self.documents, [found.logits for found in own], 1.0))
            for model, own in zip(self.models, self.found, strict=True)
        ]
        return [
            [
                {"model": model.name, **rows[place], "coverage": own[place].coverage}
                for model, rows, own in zip(self.models, by_model, self.found, strict=True)
            ]
            for place in range(len(self.documents))
        ]


def _together(models: Sequence[Served]) -> list[list[int]]:
    """Places of models that share a pass: heads that read the same of the same windows of a bare backbone."""
    groups: dict[object, list[int]] = {}
    for place, model in enumerate(models):
        key: object = place
        if isinstance(model.engine, Backbone) and model.track is model.engine.bare and model.encoder is not None:
            key = (id(model.engine), model.encoder.key, model.reads)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _empty(model: Served, document: Document) -> np.ndarray:
    outputs = len(outputs_of(model.kind, model.labels))
    if model.kind == "token-classification":
        return np.full((len(document.words), outputs), np.nan, np.float32)
    return np.zeros(outputs, np.float32)


class Fleet:
    """Models by name.

    Args:
        backend: `torch` for artifacts, `onnx` for what `posology export` wrote.
        most_waiting: see `Batcher`.
        tokens: of a row.
        watch: see `Batcher`.

    Attributes:
        batcher: the queue to the models.
        backbones: those in memory, by what tells them apart.
    """

    def __init__(
        self,
        backend: Literal["torch", "onnx"] = "torch",
        *,
        most_waiting: int = 2**16,
        tokens: int = TOKENS,
        watch: Callable[[int, int, float], None] = lambda tokens, requests, seconds: None,
    ):
        self._backend = backend
        threads = torch.get_num_threads()
        # OpenMP counts threads for each thread that calls it.
        self.batcher = Batcher(most_waiting, tokens=tokens, prepare=lambda: torch.set_num_threads(threads), watch=watch)
        self.backbones: dict[tuple[object, ...], Backbone] = {}
        self._models: dict[str, Served] = {}
        self._changing = threading.Lock()

    def add(self, name: str, folder: Path) -> bool:
        """Loads a model and serves it from then on; one that had the name answers until then.

        Args:
            name: that matches `NAME`.
            folder: an artifact, or an exported one.

        Returns:
            Whether it took another's place.

        Raises:
            UserError: it cannot be loaded, or does not answer.
        """
        check_name(name)
        with self._changing:
            try:
                model = self._export(name, folder) if self._backend == "onnx" else self._artifact(name, folder)
                self._try(model)
            except (UserError, MemoryError):
                raise
            except Exception as error:  # what a damaged file makes libraries raise
                raise UserError(
                    f"cannot be loaded ({type(error).__name__})", "Copy the artifact again or train anew", folder
                ) from error
            replaced = name in self._models
            self._models = {**self._models, name: model}
            self._free()
        return replaced

    def remove(self, name: str) -> bool:
        """Serves a model no more; requests that have it answer all the same. Gives whether there was one."""
        with self._changing:
            found = name in self._models
            self._models = {own: model for own, model in self._models.items() if own != name}
            self._free()
        return found

    def models(self) -> list[Served]:
        """All, in the order they came."""
        return list(self._models.values())

    def get(self, name: str) -> Served | None:
        """The one of a name."""
        return self._models.get(name)

    def ask(self, documents: Sequence[Document], models: Sequence[Served]) -> Asked:
        """Prepares documents for models; what to run is in `units` of the result."""
        return Asked(documents, models)

    def close(self) -> None:
        """Answers what waits, and takes no more."""
        self.batcher.close()

    def _try(self, model: Served) -> None:
        """Lets a model answer once before anybody else asks it."""
        asked = self.ask([Document("0", "1 a.", text_pair="b" if model.text_pair else None)], [model])
        self.batcher.submit(asked.units, always=True).future.result()
        asked.rows()

    def _artifact(self, name: str, folder: Path) -> Served:
        _check_folder(folder, exported=False)
        record = read_record(folder)
        if record["method"] in BASELINES:
            model = load(folder)
            served = self._served(name, record, model, WholeTexts(model))
        else:
            served = self._on_backbone(name, folder, record)
        set_calibration(served, record)
        return served

    def _on_backbone(self, name: str, folder: Path, record: dict[str, Any]) -> Served:
        """A model on a backbone that others share, or on one of its own."""
        why = f"{record['method']} cannot share one"
        if shareable(record):
            try:
                backbone = self._backbone(folder, record)
                loaded = backbone.load(folder, record)
            except Unsupported as error:
                why = f"it has {error}"
            else:
                served = self._served(name, record, loaded.predictor, backbone)
                served.encoder = loaded.predictor.encoder
                served.track, served.head, served.reads = loaded.track, loaded.head, loaded.reads
                return served
        console.say(f"{name}: a backbone of its own in memory ({why})")
        predictor = load(folder)
        assert isinstance(predictor, Predictor), "baselines have no backbone"
        served = self._served(name, record, predictor, Alone(predictor))
        served.encoder = predictor.encoder
        served.reads = "words" if predictor.kind == "token-classification" else "first"
        return served

    def _backbone(self, folder: Path, record: dict[str, Any]) -> Backbone:
        known, recipe = record["backbone"], Recipe(**record["recipe"])
        # What else an artifact says of reading its backbone is its encoder's and its head's.
        held = decide(recipe.precision).bf16, recipe.backbone_dtype == "bfloat16"
        key = known.get("sha256"), known.get("layers"), *held
        if known.get("sha256") is None or key not in self.backbones:
            source = source_of(folder, record)
            key = source.fingerprint, source.layers, *held
            if key not in self.backbones:
                self.backbones[key] = Backbone(source, recipe)
        return self.backbones[key]

    def _free(self) -> None:
        """Forgets backbones that no model reads any more."""
        used = {id(model.engine) for model in self._models.values()}
        self.backbones = {key: own for key, own in self.backbones.items() if id(own) in used}

    def _served(self, name: str, record: dict[str, Any], model: Model, engine: Engine) -> Served:
        return Served(
            name, _facts(name, record), model.kind, tuple(model.labels), model.text_pair, model.units, engine, self
        )

    def _export(self, name: str, folder: Path) -> Served:
        from posology.ship.serve.exported import Exported

        _check_folder(folder, exported=True)
        model = Exported(folder)
        served = self._served(name, model.record, model, WholeTexts(model))
        served.temperature, served.threshold = model.temperature, model.threshold
        served.coverage = model.coverage
        return served


def check_name(name: str) -> None:
    """Raises UserError for what no model may be called."""
    if not re.fullmatch(NAME, name):
        raise UserError(
            "a model's name has up to 64 letters, digits, dots, dashes and underscores, the first of them a letter or digit",
            "Give it another with NAME=FOLDER",
            "name",
        )


def _check_folder(folder: Path, *, exported: bool) -> None:
    """Raises UserError where a folder is for the other backend."""
    if (folder / "posology_runtime.py").is_file() != exported:
        raise UserError(
            "is an artifact, not an ONNX export" if exported else "is an export, not an artifact",
            "Export it with `posology export`, or serve it without --backend onnx"
            if exported
            else "Serve exported folders with --backend onnx",
            folder,
        )


def _facts(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What is said of a model, from the record of an artifact or of an export."""
    own: dict[str, Any] = record.get("artifact") or record
    task, tested = own["task"], (record.get("test") or {}).get("metrics") or {}
    metric = task["metric"]
    measured = tested.get(metric) or {"value": (record.get("gate") or {}).get("after")}
    threshold = record.get("threshold")
    return {
        "name": name,
        "kind": record["kind"],
        "task": task["name"],
        "labels": list(record["labels"]),
        "method": own["method"],
        "metric": metric,
        "value": measured.get("value"),
        "low": measured.get("low"),
        "high": measured.get("high"),
        "text_pair": bool(record.get("text_pair")),
        "threshold": threshold and {key: threshold[key] for key in ("positive", "probability")},
        "temperature": float(record.get("temperature") or 1.0),
        "backbone": own["backbone"]["name"] if own.get("backbone") else None,
    }
