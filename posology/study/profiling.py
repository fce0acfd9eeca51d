"""The measurements behind a profile: a few real steps, and what follows from shapes. See `posology.study.profile`."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posology.engine import quiet  # noqa: F401  (before transformers)

# isort: split
import numpy as np
import peft  # noqa: F401  (the first run of a process loads these two: they are no part of what is measured)
import polars  # noqa: F401
import torch
from safetensors.torch import save_file

from posology import console
from posology.corpus.document import Document
from posology.engine import baselines
from posology.engine.activations import IN_MEMORY_BYTES, Activations, frozen_layers
from posology.engine.backbone import load_config, load_tokenizer, resolve
from posology.engine.batch import batches
from posology.engine.decode import tags_of, word_tags
from posology.engine.encode import Encoded, Encoder
from posology.engine.loop import TOKEN_BUDGET, backward
from posology.engine.memory import Rehearsal, heaviest
from posology.engine.model import Model
from posology.engine.precision import decide
from posology.engine.predictor import Predictor, outputs_of
from posology.engine.recipe import Recipe, make_recipe
from posology.engine.run import build, few, reads_mean, targets
from posology.engine.virtual import VIRTUAL
from posology.measure.flops import Cost, cost_of
from posology.measure.ours import Planned
from posology.measure.rounds import timed
from posology.study.profile import SAMPLE_CHARACTERS, Wanted, pace_key, size_of, sizes
from posology.tasks.prepared import SPLITS, PreparedTask

_SAMPLE_DOCUMENTS = 256
_SAMPLE_PIECES = 3072
"""Pieces of what is predicted to measure prediction: a micro-batch and a half."""
_SCORED_DOCUMENTS = 1000
_CORPORA_AT_ONCE = 3
_SLOWEST_STEP = 1.2
"""Seconds: where whole batches would take longer, steps are measured on smaller ones."""


@dataclass(frozen=True)
class _Corpus:
    """A task as one run reads it."""

    documents: dict[str, list[Document]]
    encoded: dict[str, Encoded]


class _Gold(Model):
    """Answers what is right, and now and then not: scores cost what they cost after a training."""

    text_pair = False
    units = ("word", "piece")

    def __init__(self, task: PreparedTask):
        self.labels, self._kind = task.labels, task.kind
        names = tags_of(task.labels) if task.kind == "token-classification" else list(task.labels)
        self._index = {name: position for position, name in enumerate(names)}
        self._draw = np.random.default_rng(0)

    @property
    def kind(self) -> str:
        return self._kind

    def answer(self, documents: Sequence[Document], description: str = "", *, unit: str = "word") -> Any:
        raise NotImplementedError

    def logits(self, document: Document) -> np.ndarray:
        """Logits of one document, (classes,) or (words, tags)."""
        tagging = self._kind == "token-classification"
        names = word_tags(document) if tagging else [str(document.label)]
        noise = self._draw.normal(size=(len(names), len(self._index)))
        noise[np.arange(len(names)), [self._index[name] for name in names]] += 4
        return noise if tagging else noise[0]


class Measurement:
    """Fills a profile, cell by cell.

    Args:
        profile: see `posology.study.profile`; changed.
        seconds: of the steps of one pace.
    """

    def __init__(self, profile: dict[str, Any], seconds: float):
        self._profile, self._seconds = profile, seconds
        self._tasks: dict[str, tuple[PreparedTask, dict[str, list[Document]]]] = {}
        self._corpora: dict[str, _Corpus] = {}
        self._rehearsals: dict[str, Rehearsal] = {}

    def add(self, wanted: Wanted) -> None:
        """Measures what is missing for one cell.

        Raises:
            UserError: an input does not fit.
        """
        profile = self._profile
        with _undisturbed():
            if wanted.task not in profile["tasks"]:
                profile["tasks"][wanted.task] = self._measure_task(wanted)
            if wanted.is_baseline:
                self._add_baseline(wanted)
                return
            if wanted.corpus not in profile["corpora"]:
                profile["corpora"][wanted.corpus] = self._measure_corpus(wanted)
            if wanted.model not in profile["models"]:
                profile["models"][wanted.model] = _operations(self._rehearsal(wanted), wanted)
            if wanted.memory not in profile["memory"]:
                profile["memory"][wanted.memory] = self._memory(wanted)
            key = pace_key(wanted, profile)
            if key not in profile["paces"]:
                profile["paces"][key] = self._pace(wanted)

    # --- tasks and corpora --------------------------------------------------------------------------------------------

    def _task(self, wanted: Wanted) -> tuple[PreparedTask, dict[str, list[Document]]]:
        if wanted.task not in self._tasks:
            for cache in (self._tasks, self._corpora, self._rehearsals):
                cache.clear()  # cells come task by task, and a corpus can be large
            task = PreparedTask.open(wanted.cell.data)
            self._tasks[wanted.task] = task, {split: task.documents(split) for split in SPLITS}
        return self._tasks[wanted.task]

    def _measure_task(self, wanted: Wanted) -> dict[str, Any]:
        begin = time.perf_counter()
        task, documents = self._task(wanted)
        reading = time.perf_counter() - begin
        model = _Gold(task)
        found = {"kind": task.kind, "outputs": len(outputs_of(task.kind, task.labels)), "reading": reading}
        for name, split, score in (("score", "validation", model.score), ("intervals", "test", model.evaluate)):
            sample = documents[split][:_SCORED_DOCUMENTS]
            logits = [model.logits(document) for document in sample]
            found[name] = _timed(score, sample, logits) * len(documents[split]) / len(sample)
        return found

    def _read(self, wanted: Wanted) -> tuple[_Corpus, dict[str, float]]:
        """What a run reads, and the seconds it takes to do so when the tokens of train and validation are kept."""
        task, splits = self._task(wanted)
        cell, recipe = wanted.cell, _recipe(wanted)
        source = resolve(str(cell.backbone))
        virtual = recipe.virtual_tokens if cell.method in VIRTUAL else 0
        encoder = Encoder(load_tokenizer(source), load_config(source), recipe, task.kind, virtual)
        documents, encoded, seconds = {}, {}, {}
        for split in SPLITS:
            own = splits[split] if split != "train" or cell.shots is None else few(splits[split], cell.shots, cell.seed)
            cache = None if split == "test" else task.folder  # as runs do
            for _ in range(2 if cache is not None else 1):
                begin = time.perf_counter()
                documents[split], encoded[split] = encoder.read(own, task.unit, cache=cache)
                seconds[split] = time.perf_counter() - begin
        return _Corpus(documents, encoded), seconds

    def _measure_corpus(self, wanted: Wanted) -> dict[str, Any]:
        corpus, seconds = self._read(wanted)
        self._keep(wanted, corpus)
        found: dict[str, Any] = {split: sizes(corpus.encoded[split], corpus.documents[split]) for split in SPLITS}
        return found | {"tokenising": sum(seconds.values())}

    def _corpus(self, wanted: Wanted) -> _Corpus:
        self._task(wanted)  # drops those of other tasks
        if wanted.corpus not in self._corpora:
            self._keep(wanted, self._read(wanted)[0])
        return self._corpora[wanted.corpus]

    def _keep(self, wanted: Wanted, corpus: _Corpus) -> None:
        while len(self._corpora) >= _CORPORA_AT_ONCE:
            self._corpora.pop(next(iter(self._corpora)))
        self._corpora[wanted.corpus] = corpus

    # --- models -------------------------------------------------------------------------------------------------------

    def _rehearsal(self, wanted: Wanted) -> Rehearsal:
        if wanted.model not in self._rehearsals:
            task = self._profile["tasks"][wanted.task]
            source, recipe = resolve(str(wanted.cell.backbone)), _recipe(wanted)
            self._rehearsals[wanted.model] = Rehearsal(
                load_config(source),
                wanted.cell.method,
                recipe,
                task["kind"],
                decide(recipe.precision),
                outputs=task["outputs"],
                family=source.family,
                mean=reads_mean(recipe, source),
            )
        return self._rehearsals[wanted.model]

    def _memory(self, wanted: Wanted) -> dict[str, int]:
        """The estimate for the heaviest micro-batch of the task, and for what frozen layers give if it is kept."""
        cell = wanted.cell
        corpus = self._corpus(Wanted(cell.model_copy(update={"shots": None})) if cell.shots else wanted)
        rehearsal = self._rehearsal(wanted)
        process = {} if rehearsal.precision.device.type == "cpu" else {"process": 0}
        lengths = heaviest(rehearsal, corpus.encoded["train"], cell.seed)
        config = rehearsal.adapted.base.config
        frozen, kept = frozen_layers(rehearsal.adapted), 0
        for split in ("train", "validation") if frozen else ():
            size = sizes(corpus.encoded[split], corpus.documents[split])
            head_reads = "words" if rehearsal.adapted.kind == "token-classification" else "windows"
            rows = size[head_reads if frozen == config.num_hidden_layers else "pieces"]
            own = 4 * config.hidden_size * rows
            kept += own if own <= IN_MEMORY_BYTES else 0  # larger ones are in a file
        return rehearsal.estimate(lengths, **process).record() | {"kept_activations": kept}

    # --- paces --------------------------------------------------------------------------------------------------------

    def _pace(self, wanted: Wanted) -> dict[str, Any]:
        """Seconds of loading, of a step, of an operation in training and in prediction, and of saving."""
        cell, model = wanted.cell, self._profile["models"][wanted.model]
        task, _ = self._task(wanted)
        recipe = _recipe(wanted)
        sample = self._corpus(wanted).documents["train"]
        order = np.random.default_rng(0).permutation(len(sample))[:_SAMPLE_DOCUMENTS]
        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            source = resolve(str(cell.backbone))
            assert source.fingerprint  # of the weights: runs compute it as well
            predictor = build(task, source, cell.method, recipe, cell.seed)
            loading = time.perf_counter() - begin
            steps = _Steps(predictor, task, recipe, [sample[index] for index in order], model, Path(folder))
            first = steps.run(np.arange(1))
            found = steps.measure(recipe.batch_size, self._seconds)
            weights = {name: weight.detach().clone() for name, weight in predictor.adapted.trainable().items()}
            saving = _timed(save_file, weights, Path(folder) / "weights.safetensors")
            prediction = steps.prediction()
        return {"loading": loading + first, "saving": saving, "prediction": prediction, **found}

    # --- baselines ----------------------------------------------------------------------------------------------------

    def _add_baseline(self, wanted: Wanted) -> None:
        profile, cell = self._profile, wanted.cell
        task, splits = self._task(wanted)
        if wanted.corpus not in profile["corpora"]:
            own = splits["train"] if cell.shots is None else few(splits["train"], cell.shots, cell.seed)
            profile["corpora"][wanted.corpus] = {
                "train": size_of(own),
                "validation": size_of(splits["validation"]),
                "test": size_of(splits["test"]),
            }
        if wanted.baseline not in profile["baselines"]:
            settings = baselines.make_settings(cell.method, task.kind, cell.recipe, cell.overrides)
            profile["baselines"][wanted.baseline] = _baseline_pace(cell.method, task, splits, settings)


class _Steps:
    """A training that takes a few steps, on what frozen layers give where they are frozen.

    Args:
        predictor: the model.
        task: what it learns.
        recipe: hyper-parameters.
        sample: training documents.
        model: its operations.
        folder: for activations.
    """

    def __init__(
        self,
        predictor: Predictor,
        task: PreparedTask,
        recipe: Recipe,
        sample: Sequence[Document],
        model: dict[str, Any],
        folder: Path,
    ):
        documents, self._encoded = predictor.encoder.read(sample, task.unit)
        adapted, precision = predictor.adapted, predictor.precision
        self._predictor, self._model = predictor, model
        self._lengths = [np.array([len(window.ids) for window in own]) for own in self._encoded.windows]
        self._training = Planned(
            adapted.trainable(),
            self._encoded,
            targets(documents, task.kind, task.labels),
            recipe,
            kind=adapted.kind,
            outputs=adapted.base.config.num_labels,
            device=precision.device,
            seed=0,
        )
        self._kept = None
        if model["frozen"]:
            self._kept = Activations(adapted, precision, folder / "run", {}).of(self._encoded, "profiling")

    def run(self, batch: np.ndarray) -> float:
        """Seconds of one step on these documents."""
        self._training.batch = batch
        return timed(self._step)

    def _step(self) -> None:
        training, predictor = self._training, self._predictor
        documents = training.documents()
        loss, tokens = backward(training, predictor.adapted, documents, predictor.precision, TOKEN_BUDGET, self._kept)
        training.finish_step(loss, tokens)

    def measure(self, batch_size: int, seconds: float) -> dict[str, float]:
        """A step's own seconds, seconds per operation on top, and how much steps differed from that."""
        count = len(self._lengths)
        small = [self.run(np.array([index % count])) for index in range(1, 4)]
        works = [self._work(np.array([index % count])) for index in range(1, 4)]
        size = max(2, min(batch_size, count, int(_SLOWEST_STEP / max(1e-9, float(np.median(small))))))
        order = np.concatenate([batch for epoch in range(8) for batch in batches(count, count, 0, epoch)])
        whole = [order[start : start + size] for start in range(0, len(order) - size + 1, size)][:40]
        self.run(whole[0])  # lets libraries prepare
        times, large = [], []
        deadline = time.perf_counter() + seconds
        for batch in whole[1:] or whole:
            times.append(self.run(batch))
            large.append(self._work(batch))
            if time.perf_counter() > deadline and len(times) > 1:
                break
        step, operation = _line(np.array(works + large), np.array(small + times))
        relative = np.array(times) / (step + operation * np.array(large))
        low, high = np.quantile(relative, (0.1, 0.9))
        # Steps say what is typical of them; their sum over a run comes out a little above.
        centre = float(np.mean(relative))
        return {
            "step": step * centre,
            "operation": operation * centre,
            "low": float(low / centre),
            "high": float(high / centre),
        }

    def prediction(self) -> float:
        """Seconds per operation of a forward pass."""
        ends = np.cumsum([lengths.sum() for lengths in self._lengths])
        count = min(len(ends), int(np.searchsorted(ends, _SAMPLE_PIECES)) + 1)
        work = operations(self._model["forward"], self._model["virtual"], np.concatenate(self._lengths[:count]))
        self._predict(1)
        return _timed(self._predict, count) / work

    def _predict(self, count: int) -> None:
        whole = self._encoded
        part = Encoded(whole.windows[:count], whole.pieces[:count], whole.covered[:count], whole.owners[:count])
        self._predictor.logits(part, "profiling")

    def _work(self, batch: np.ndarray) -> float:
        model = self._model
        factors = np.array(model["forward"]) + np.array(model["backward"]) - np.array(model["lower"])
        return operations(factors, model["virtual"], np.concatenate([self._lengths[index] for index in batch]))


def operations(factors: Any, virtual: int, lengths: np.ndarray) -> float:
    """Operations for windows of these lengths; see `posology.measure.flops.Cost`."""
    return Cost(np.array(factors), np.zeros(3), virtual).predicting(lengths)


def _operations(rehearsal: Rehearsal, wanted: Wanted) -> dict[str, Any]:
    """Operations of a window by powers of its length: forward, backward, and forward of the layers that are run once."""
    adapted = rehearsal.adapted
    cost, frozen = cost_of(adapted), frozen_layers(adapted)
    depth = adapted.base.config.num_hidden_layers
    lower = np.zeros(3)
    if frozen == depth:
        # A head has gradients of its own weights, each of which takes what its forward pass does.
        lower = np.maximum(0, cost.forward - cost.backward)
    elif frozen:
        # The layers below are a model of their own, of which all positions are needed.
        config = load_config(resolve(str(wanted.cell.backbone)))
        config.num_hidden_layers = frozen
        body = Rehearsal(config, "head", make_recipe("head"), adapted.kind, rehearsal.precision)
        lower = cost_of(body.adapted, all_positions=True).forward
    return {
        "forward": cost.forward.tolist(),
        "backward": cost.backward.tolist(),
        "lower": lower.tolist(),
        "virtual": cost.virtual_tokens,
        "frozen": frozen,
        "depth": depth,
    }


def _line(work: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """The line of least relative deviations in square: seconds at no work, and per unit of it; neither is negative."""
    ones = np.ones_like(work)
    (start, slope), *_ = np.linalg.lstsq(np.stack([ones, work], axis=1) / seconds[:, None], ones, rcond=None)
    if slope <= 0:
        return float(np.median(seconds)), 0.0
    if start < 0:
        return 0.0, float(np.median(seconds / work))
    return float(start), float(slope)


def _baseline_pace(
    method: str, task: PreparedTask, splits: dict[str, list[Document]], settings: Any
) -> dict[str, float]:
    """Seconds at no text and per character of training, and per character of prediction."""
    order = np.random.default_rng(0).permutation(len(splits["train"]))
    shuffled = [splits["train"][index] for index in order]
    ends = np.cumsum([len(document.text) for document in shuffled])
    count = min(len(shuffled), max(32, int(np.searchsorted(ends, SAMPLE_CHARACTERS))))
    validation = splits["validation"][:_SCORED_DOCUMENTS]
    points = []
    for part in (shuffled[: max(16, count // 4)], shuffled[:count]):
        fitted = baselines.fit(method, part, validation, task.labels, settings, task.metric, seed=0)
        points.append((size_of(part)["characters"], fitted.seconds))
    (few_characters, short), (characters, long) = points
    slope = max((long - short) / max(1, characters - few_characters), 0.5 * long / characters)
    test = splits["test"][:_SCORED_DOCUMENTS]
    return {
        "start": max(0.0, long - slope * characters),
        "character": slope,
        "evaluations": len(fitted.evaluations),
        "prediction": _timed(fitted.model.answer, test) / max(1, size_of(test)["characters"]),
    }


def _recipe(wanted: Wanted) -> Recipe:
    return Recipe(**wanted.recipe)


def _timed(work: Callable[..., Any], *arguments: Any) -> float:
    return timed(lambda: work(*arguments))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """What is measured says nothing to the person at the terminal, and leaves the random generators as they were."""
    before = console.QUIET
    console.QUIET = True
    try:
        yield
    finally:
        console.QUIET = before
