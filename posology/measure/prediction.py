"""`posology bench predict`: our prediction beside a transformers pipeline and a sorted loop, in one process, taking turns.

All sides answer the same texts from start to end, tokenisation included, with the same trained weights. A pipeline is
what most users take; the loop is what an expert writes: texts sorted by length, adapters merged, bfloat16.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import pipeline

from posology import console
from posology.corpus.document import Document
from posology.engine.artifact import load
from posology.engine.backbone import Source, load_model, load_tokenizer
from posology.engine.methods import METHODS
from posology.engine.precision import decide
from posology.engine.predictor import Predictor, outputs_of
from posology.engine.train import train
from posology.errors import UserError
from posology.measure import memory
from posology.measure.flops import cost_of
from posology.measure.rounds import as_alone, interleave, peaks_of, rates, ratios, spread, timed
from posology.measure.setting import Setting, make_setting
from posology.measure.trainer import Rows, check_peer, tokenise
from posology.tasks.prepared import SPLITS, write_prepared

_BATCH = 32
_TRAINING = {"train": 256, "validation": 32, "test": 32}
"""Documents of the short training that gives the model something to say."""
_TRAINING_SECONDS = 30.0

Labels = list[list[str]]
"""For each document its class, or the most probable tag of each word that was read, by the word's first piece."""


@dataclass(frozen=True)
class LoopFlags:
    """What an expert can choose in the sorted loop.

    Attributes:
        bf16: `no`, `autocast`, or `weights`, converted once.
        attention: `attn_implementation` of transformers.
    """

    bf16: str
    attention: str


def bench_predict(
    data: Path,
    *,
    matrix_peak: Callable[[str, str], float],
    backbone: str = "minilm",
    method: str = "lora",
    recipe: str = "standard",
    overrides: dict[str, Any] | None = None,
    max_length: int | None = None,
    peer: bool = False,
    documents: int = 512,
    repeats: int = 5,
    seed: int = 42,
) -> dict[str, Any]:
    """Measures prediction on test documents; see `posology bench predict --help` for the arguments.

    Returns:
        As `bench_train`: `ours`, and `peer_as_paper` (the pipeline, batches of 32 in the given order) and `peer_best`
        (the sorted loop), which also have `same_labels`, the share of labels that equal ours.

    Raises:
        UserError: input that does not fit.
    """
    if documents < 1 or repeats < 1:
        raise UserError("nothing is measured", "Give numbers from 1", "--documents, --repeats")
    if peer:
        check_peer(method)
    setting = make_setting(data, backbone, method, recipe, overrides or {}, max_length, seed)
    texts = _draw(setting.task.documents("test"), documents, seed)
    with tempfile.TemporaryDirectory() as folder:
        artifact = _train_briefly(setting, Path(folder))
        return _measure(setting, artifact, texts, peer, repeats, matrix_peak)


def _measure(
    setting: Setting,
    artifact: Path,
    texts: list[Document],
    peer: bool,
    repeats: int,
    matrix_peak: Callable[[str, str], float],
) -> dict[str, Any]:
    ours = Ours(setting, artifact)
    runs: dict[str, Any] = {"ours": ours}
    facts: dict[str, dict[str, Any]] = {"ours": {"precision": "bf16" if ours.predictor.precision.bf16 else "fp32"}}
    if peer:
        runs["peer_as_paper"] = Pipeline(setting, artifact)
        facts["peer_as_paper"] = {"precision": "fp32", "flags": {"batch_size": _BATCH}}
        runs["peer_best"], tried = _best(setting, artifact, texts)
        flags = runs["peer_best"].flags
        facts["peer_best"] = {
            "precision": "fp32" if flags.bf16 == "no" else "bf16",
            "flags": dataclasses.asdict(flags),
            "tried": tried,
        }
    longest = sorted(texts, key=lambda document: -len(document.text))[:_BATCH]
    for name, run in runs.items():
        flags = run.flags if isinstance(run, SortedLoop) else None
        facts[name]["peak_memory_bytes"] = memory.peak(_memory_of, type(run), setting, artifact, flags, longest)
    answers: dict[str, Labels] = {name: run(texts) for name, run in runs.items()}  # and everything is warm
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    peaks, measure_peaks = peaks_of(matrix_peak, ours.predictor.precision.device.type)
    sides = {name: _call(run, texts) for name, run in runs.items()}
    sides = {name: side if name == "ours" else as_alone(side) for name, side in sides.items()}
    seconds = interleave(sides, repeats, measure_peaks)
    encoded = ours.predictor.encoder.encode(texts)
    lengths = np.array([len(windows[0].ids) for windows in encoded.windows])
    work = cost_of(ours.predictor.adapted).predicting(lengths) / 1e9
    found: dict[str, Any] = {}
    for name, own in seconds.items():
        gflops = rates(work, own)
        found[name] = {
            "seconds": spread(own),
            "examples_per_second": rates(len(texts), own),
            "tokens_per_second": rates(int(lengths.sum()), own),
            "gflops": gflops,
            "share_of_peak": gflops["median"] / peaks[facts[name]["precision"]],
            **facts[name],
        }
        if name != "ours":
            found[name]["same_labels"] = _agreement(answers["ours"], answers[name])
    found["matrix_peak_gflops"] = peaks
    found["ratios"] = {name: ratios(seconds[name], seconds["ours"]) for name in runs if name != "ours"}
    found["setting"] = {
        **setting.facts(),
        "device": str(ours.predictor.precision.device),
        "threads": torch.get_num_threads(),
        "documents": len(texts),
        "tokens": int(lengths.sum()),
        "repeats": repeats,
        "load_average": busy,
    }
    return found


def _call(run: Callable[[list[Document]], Labels], texts: list[Document]) -> Callable[[], None]:
    def once() -> None:
        run(texts)

    return once


def _draw(documents: Sequence[Document], count: int, seed: int) -> list[Document]:
    order = np.random.default_rng(seed).permutation(len(documents))[:count]
    return [documents[position] for position in order]


def _train_briefly(setting: Setting, folder: Path) -> Path:
    """An artifact that was trained on a few documents, so that its labels are no accident of its initial weights."""
    task = setting.task
    splits = {split: _draw(task.documents(split), _TRAINING[split], setting.seed) for split in SPLITS}
    write_prepared(
        folder / "task",
        name=task.name,
        kind=task.kind,
        labels=task.labels,
        metric="accuracy" if task.kind == "sequence-classification" else task.metric,  # is defined on few documents
        splits=splits,
        unit=task.unit,
    )
    console.say("training a model to predict with")
    train(
        folder / "task",
        setting.backbone,
        setting.method,
        folder / "run",
        overrides=setting.recipe.model_dump() | {"epochs": 3},
        seed=setting.seed,
        max_seconds=_TRAINING_SECONDS,
    )
    return folder / "run"


class Ours:
    """Posology as users have it: an artifact is loaded, merged, and answers documents."""

    def __init__(self, setting: Setting, artifact: Path, _flags: LoopFlags | None = None):
        self.predictor: Predictor = load(artifact, backbone=None if setting.method == "full" else setting.backbone)  # type: ignore[assignment]
        self.predictor.merge()
        self._tags = outputs_of(setting.task.kind, setting.task.labels)

    def __call__(self, texts: list[Document]) -> Labels:
        _, logits, _ = self.predictor.answer(texts)
        if self.predictor.kind == "sequence-classification":
            return [[self._tags[int(values.argmax())]] for values in logits]
        self.predictor.spans(texts, logits)  # what a user gets, and so a part of the time
        return [["" if np.isnan(row[0]) else self._tags[int(row.argmax())] for row in values] for values in logits]


class Pipeline:
    """`transformers.pipeline` with batches of 32, adapters merged."""

    def __init__(self, setting: Setting, artifact: Path, _flags: LoopFlags | None = None):
        self._tagging = setting.task.kind == "token-classification"
        tokenizer = load_tokenizer(setting.source)
        tokenizer.model_max_length = setting.recipe.max_length  # where this pipeline truncates
        self._run = pipeline(
            "token-classification" if self._tagging else "text-classification",
            model=_merged(setting, artifact),
            tokenizer=tokenizer,
            batch_size=_BATCH,
            device=0 if torch.cuda.is_available() else -1,
        )

    def __call__(self, texts: list[Document]) -> Labels:
        if not self._tagging:
            given = [
                document.text
                if document.text_pair is None
                else {"text": document.text, "text_pair": document.text_pair}
                for document in texts
            ]
            return [[each["label"]] for each in self._run(given, truncation=True)]
        found = self._run([document.text for document in texts])
        labels = []
        for document, entities in zip(texts, found, strict=True):
            tags = {entity["start"]: entity["entity"] for entity in entities}
            labels.append([tags.get(start, "O") for start, _ in document.words])
        return labels


class SortedLoop:
    """A loop by hand: tokenised at once, sorted by length, batches of 32, the most probable label."""

    def __init__(self, setting: Setting, artifact: Path, flags: LoopFlags | None = None):
        assert flags is not None
        self.flags, self._setting = flags, setting
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = _merged(setting, artifact).eval().to(self._device)
        self._model.set_attn_implementation(flags.attention)
        if flags.bf16 == "weights":
            self._model.to(torch.bfloat16)
        self._tokenizer = load_tokenizer(setting.source)
        self._outputs = outputs_of(setting.task.kind, setting.task.labels)

    @torch.inference_mode()
    def __call__(self, texts: list[Document]) -> Labels:
        rows = tokenise(self._setting, texts, self._tokenizer)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
        labels: Labels = [[] for _ in rows]
        for start in range(0, len(order), _BATCH):
            own = order[start : start + _BATCH]
            inputs = [{name: rows[index][name] for name in rows[index] if name != "labels"} for index in own]
            batch = self._tokenizer.pad(inputs, return_tensors="pt").to(self._device)
            with torch.autocast(self._device, torch.bfloat16, enabled=self.flags.bf16 == "autocast"):
                best = self._model(**batch).logits.argmax(-1).cpu().numpy()
            for index, values in zip(own, best, strict=True):
                labels[index] = self._names(rows, index, values)
        return labels

    def _names(self, rows: Rows, index: int, values: np.ndarray) -> list[str]:
        if not rows.words:
            return [self._outputs[int(values)]]
        words, asked = rows.words[index], np.array(rows[index]["labels"]) != -100
        names = [""] * (int(words.max(initial=-1)) + 1)
        for word, value in zip(words, values[: len(asked)][asked], strict=True):
            names[word] = self._outputs[int(value)]
        return names


def _merged(setting: Setting, artifact: Path) -> Any:
    """The Hugging Face model of an artifact, in float32, with its adapter merged: faster for the peer than PEFT's."""
    task, storage = setting.task, METHODS[setting.method].storage
    outputs = outputs_of(task.kind, task.labels)
    if storage == "model":
        source = Source(str(artifact), artifact)
        return load_model(source, task.kind, outputs, setting.recipe, tuned=True)[0]
    model, _ = load_model(setting.source, task.kind, outputs, setting.recipe, seed=setting.seed)
    if storage == "peft":
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(artifact), local_files_only=True).merge_and_unload()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(artifact / "tuned.safetensors"), strict=False)
    return model


def _best(setting: Setting, artifact: Path, texts: list[Document]) -> tuple[SortedLoop, list[dict[str, Any]]]:
    """The sorted loop that is fastest here, and all that were tried with their examples per second."""
    kinds = ("weights", "autocast") if decide("auto").bf16 else ("no",)
    runs = [
        SortedLoop(setting, artifact, LoopFlags(bf16, attention)) for bf16 in kinds for attention in ("sdpa", "eager")
    ]
    trial = texts[: 4 * _BATCH]
    for run in runs:
        run(trial[:_BATCH])
    times = [timed(as_alone(_call(run, trial))) for run in runs]
    times = [min(first, timed(as_alone(_call(run, trial)))) for first, run in zip(times, runs, strict=True)]
    tried = [
        {**dataclasses.asdict(run.flags), "examples_per_second": len(trial) / seconds}
        for run, seconds in zip(runs, times, strict=True)
    ]
    return runs[int(np.argmin(times))], tried


def _memory_of(
    kind: type[Any], setting: Setting, artifact: Path, flags: LoopFlags | None, texts: list[Document]
) -> Callable[[], None]:
    import peft  # noqa: F401  (libraries are there before the measurement begins)

    def work() -> None:
        kind(setting, artifact, flags)(texts)

    return work


def _agreement(ours: Labels, theirs: Labels) -> float:
    """The share of equal labels, over all that both sides gave; the tokenizer drops some words ("")."""
    pairs = [
        (own, other)
        for one, two in zip(ours, theirs, strict=True)
        for own, other in zip(one, two, strict=False)
        if own and other
    ]
    return sum(own == other for own, other in pairs) / len(pairs)
