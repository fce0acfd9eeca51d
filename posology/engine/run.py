"""What a training needs beside its loop: the model and the documents before it, the artifact and the test after it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from posology import console
from posology.corpus.document import Document
from posology.engine import artifact as artifacts
from posology.engine import predictions
from posology.engine.activations import Activations, frozen_layers
from posology.engine.architectures import architecture_of
from posology.engine.backbone import Source, checkpoint_layers, load_config, load_model, load_tokenizer
from posology.engine.calibrate import fit_calibration
from posology.engine.checkpoint import untouched_generators
from posology.engine.decode import word_tags
from posology.engine.encode import Encoded, Encoder
from posology.engine.memory import Rehearsal, readable, resident_bytes, tokens_that_fit
from posology.engine.methods import adapt, check
from posology.engine.model import Answers, Model
from posology.engine.precision import decide
from posology.engine.predictor import Predictor, outputs_of, units_of
from posology.engine.recipe import Recipe
from posology.engine.record import (
    adapted_record,
    label_counts,
    machine,
    scoring,
    summary,
    task_record,
    training_record,
    versions,
)
from posology.engine.teaching import Soft, Teaching, ask, read_unlabelled, without_labels
from posology.engine.training import Budget, Fit
from posology.engine.virtual import VIRTUAL
from posology.errors import Interrupted, UserError
from posology.evaluation.statistics import clean
from posology.machine import machine_memory
from posology.tasks.prepared import PreparedTask

_MOST_BYTES = 500
"""Of activations for each piece, layer and unit of width, at most: below that nothing is rehearsed, which takes seconds."""


class _Best(NamedTuple):
    """The evaluation that scored best in this process, counted from 0, and what the model answered in it."""

    score: float
    number: int
    answers: Answers


class Material(NamedTuple):
    """What a run learns from, and what it is validated on.

    Attributes:
        encoded, targets: what it is trained on: labelled documents before those without labels.
        labelled: how many have labels.
        paired: whether texts have a second one.
        validation, encoded_validation: the documents of validation.
    """

    encoded: Encoded
    targets: list[np.ndarray]
    labelled: int
    paired: bool
    validation: list[Document]
    encoded_validation: Encoded


class Run:
    """One run of a method that adapts a backbone, apart from its loop.

    Args:
        task: what is learnt.
        source: the backbone.
        method: a key of `METHODS`.
        recipe: hyper-parameters.
        out: the artifact's folder.
        asked: `recipe_name`, `seed` and `budget` (`max_seconds`, `evaluate_seconds`, `shots`), as the record says them.
        overwrite: replace an existing folder.
        keep_activations: the folder in which to keep what frozen layers make of the documents.
        teaching: whom it learns from beside the labels.

    Attributes:
        activations: what frozen layers make of the documents; None where there are none, or one epoch and no folder.
        predictor: the model, which training changes.
        encoded, targets: what it is trained on, after `read`.
        soft: what the teacher says of these; None where there is no teacher.

    Raises:
        UserError: they do not go together, or the artifact could not be written.
    """

    soft: Soft | None = None
    _material: Material

    def __init__(
        self,
        task: PreparedTask,
        source: Source,
        method: str,
        recipe: Recipe,
        out: Path,
        asked: dict[str, Any],
        *,
        overwrite: bool,
        keep_activations: Path | str | None = None,
        teaching: Teaching | None = None,
    ):
        self.task, self.source, self.recipe, self.out = task, source, recipe, out
        self._asked, self._overwrite, self._teaching = asked, overwrite, teaching
        self._best: _Best | None = None
        self._evaluations = 0
        self._before = resident_bytes()
        self.predictor = build(task, source, method, recipe, asked["seed"])
        artifacts.check_writable(out, self.predictor.adapted)
        self.activations = None
        keep = None if keep_activations is None else Path(keep_activations)
        frozen = frozen_layers(self.predictor.adapted)
        if frozen and (keep is not None or recipe.epochs > 1):
            depends = {
                "weights": source.fingerprint,
                "reading": source.reading,
                "quantise": recipe.quantise,
                **versions("torch", "transformers"),
            }
            self.activations = Activations(self.predictor.adapted, self.predictor.precision, out, depends, keep)
        elif keep is not None:
            raise UserError(
                f"{method} trains the first layer or what lies before it, so that nothing below it stays the same",
                "Use head, or LoRA and its kin with --set top_layers=K, or leave it out",
                "--keep-activations",
            )

    @property
    def encoded(self) -> Encoded:
        """Training documents as windows."""
        return self._material.encoded

    @property
    def targets(self) -> list[np.ndarray]:
        """What the loss compares with, for each training document."""
        return self._material.targets

    @property
    def budget(self) -> Budget:
        """Time."""
        return Budget(self._asked["budget"]["max_seconds"], self._asked["budget"]["evaluate_seconds"])

    def settings(self) -> dict[str, Any]:
        """All that the weights at the end depend on: a checkpoint is continued by a run with the same ones only."""
        adapted, precision = self.predictor.adapted, self.predictor.precision
        return {
            "data": self.task.fingerprint,
            "metric": self.task.metric,
            "backbone": self.source.title,
            "weights": self.source.fingerprint,
            "reading": self.source.reading,
            "method": adapted.method,
            "seed": self._asked["seed"],
            **self._asked["budget"],
            **self.recipe.model_dump(mode="json"),
            "layout": adapted.layout,
            "device": precision.device.type,
            "bf16": precision.bf16,
            **(self._teaching.settings() if self._teaching is not None else {}),
            **versions("torch", "transformers", "peft", "tokenizers"),
        }

    def read(self, known: dict[Hashable, Material] | None = None) -> None:
        """Reads and tokenises the documents of training and validation.

        Args:
            known: what other runs beside this one have read, to which this adds: each corpus is held once for all.
        """
        before = resident_bytes()
        shots, seed, encoder = self._asked["budget"]["shots"], self._asked["seed"], self.predictor.encoder
        corpus = self.task.folder, self.task.fingerprint, encoder.key
        key = corpus, shots, None if shots is None else seed
        known = {} if known is None else known
        if key not in known:
            found = self._read(*training_documents(self.task, shots, seed))
            if (same := known.setdefault(corpus, found)) is not found:  # other shots of it
                found = found._replace(validation=same.validation, encoded_validation=same.encoded_validation)
            known[key] = found
        self._material = found = known[key]
        console.say(
            f"{len(found.targets):,} training documents, {int(found.encoded.pieces.sum()):,} pieces, "
            f"{found.encoded.coverage:.1%} of them read in {sum(map(len, found.encoded.windows)):,} windows of up to "
            f"{encoder.max_length}"
        )
        self._before += resident_bytes() - before

    def _read(self, labelled: list[Document], validation: list[Document]) -> Material:
        task, encoder = self.task, self.predictor.encoder
        paired = any(document.text_pair is not None for document in labelled)
        if self._teaching is None:
            training, encoded = encoder.read(labelled, task.unit, cache=task.folder)
            wanted = targets(training, task.kind, task.labels)
        else:
            encoded, wanted = self._read_taught(labelled, self._teaching)
        validated = encoder.read(validation, task.unit, cache=task.folder)
        return Material(encoded, wanted, len(labelled), paired, *validated)

    def _read_taught(self, labelled: list[Document], teaching: Teaching) -> tuple[Encoded, list[np.ndarray]]:
        """Reads the documents with labels and those without, and asks the teacher about them."""
        task = self.task
        unlabelled, said = read_unlabelled(teaching, task, labelled)
        both = [*labelled, *unlabelled]
        documents, encoded = self.predictor.encoder.read(both, task.unit)
        words = [len(document.words) for document in documents[len(labelled) :]]
        wanted = targets(documents[: len(labelled)], task.kind, task.labels) + without_labels(words, task.kind)
        with untouched_generators():
            self.soft = ask(teaching, task, both, encoded, said)
        return encoded, wanted

    def tokens(self) -> int | None:
        """Pieces of a micro-batch that fit into the memory asked for; None where none is.

        Raises:
            UserError: not even one text does.
        """
        limit = self._asked["budget"].get("max_memory")
        if limit is None:
            self._check_longest()
            return None
        rehearsal = self._rehearsal()
        process = self._before if self.predictor.precision.device.type == "cpu" else 0
        if self.activations is not None:
            corpora = (self.encoded, self._material.encoded_validation)
            process += sum(self.activations.held_bytes(encoded) for encoded in corpora)
        tokens, memory = tokens_that_fit(rehearsal, self.encoded, limit, seed=self._asked["seed"], process=process)
        console.say(f"about {readable(memory.peak)} of {readable(limit)}: {tokens:,} pieces at a time")
        self.predictor.token_budget = min(self.predictor.token_budget, 2 * tokens)
        return tokens

    def _rehearsal(self) -> Rehearsal:
        adapted = self.predictor.adapted
        return Rehearsal(
            load_config(self.source),
            adapted.method,
            self.recipe,
            self.task.kind,
            self.predictor.precision,
            outputs=adapted.base.config.num_labels,
            family=self.source.family,
            mean=adapted.pooling == "mean",
        )

    def _check_longest(self) -> None:
        """Raises `UserError` where a document's windows, which a classifier trains together, need more than there is."""
        free = machine_memory()["available_bytes"]
        if self.task.kind != "sequence-classification" or self.predictor.precision.device.type != "cpu" or free is None:
            return
        own = max(self.encoded.windows, key=lambda own: sum(len(window.ids) for window in own))
        config, longest = self.predictor.adapted.base.config, max(len(window.ids) for window in own)
        if len(own) * longest * config.hidden_size * config.num_hidden_layers * _MOST_BYTES <= free:
            return
        rehearsal = self._rehearsal()
        four, eight = (rehearsal.estimate([longest] * count, process=0).peak for count in (4, 8))
        needed = four + (eight - four) * (len(own) - 4) // 4
        if needed > free:
            raise UserError(
                f"the longest training document has {len(own):,} windows of {longest} pieces, which are trained together: "
                f"they need about {readable(needed)}, and {readable(free)} are free",
                "Read the beginning of documents only (--set long_text=truncate), cut long documents into several, or "
                "choose a smaller backbone (NAME:K takes its first K layers)",
                self.task.folder,
            )

    def validate(self) -> dict[str, float]:
        """Every metric of the model as it is, on validation."""
        answers = self._answer_validation("validating")
        scores = self.predictor.score(answers.documents, answers.logits)
        score = scores[self.task.metric]
        if self._best is None or score > self._best.score:
            self._best = _Best(score, self._evaluations, answers)
        self._evaluations += 1
        return scores

    def _answer_validation(self, description: str) -> Answers:
        predictor, encoded = self.predictor, self._material.encoded_validation
        kept = self.activations.of(encoded, "validation") if self.activations is not None else None
        return Answers(self._material.validation, predictor.logits(encoded, description, kept), encoded.coverage)

    def _best_answers(self, result: Fit) -> Answers:
        """What the state that was kept answers on validation: known, but where training went on from a checkpoint."""
        before = len(result.evaluations) - self._evaluations
        if self._best is not None and self._best.number + before == result.best:
            return self._best.answers
        return self._answer_validation("calibrating")

    def finish(self, result: Fit) -> dict[str, Any]:
        """Writes the artifact, scores it on test, and gives what `posology train --json` prints.

        Raises:
            Interrupted: training was; the artifact holds the best state so far, without a test score.
        """
        task, material = self.task, self._material
        labelled = material.targets[: material.labelled]
        record = (
            task_record(task)
            | adapted_record(self.source, self.predictor, self.recipe)
            | self._asked
            | {
                "training": training_record(result, len(labelled))
                | {"per_label": label_counts(labelled, task.kind, task.labels)},
                "machine": machine(),
                "validation": clean(result.metrics) if result.best is not None else None,
                "coverage": {
                    "train": material.encoded.coverage,
                    "validation": material.encoded_validation.coverage,
                },
                "text_pair": material.paired,
                "scoring": scoring(task, task.unit),
                "test": None,
                "distilled_from": None if self.soft is None else self.soft.record,
            }
        )
        # Written before the test, so that nothing that happens there costs the training.
        artifacts.save(self.out, self.predictor.adapted, self.source, record, overwrite=self._overwrite)
        state = "the best state so far" if result.evaluations else "weights that were never validated"
        return test(
            self.out,
            task,
            self.predictor,
            record,
            state,
            validation=lambda: self._best_answers(result),
            interrupted=result.stopped == "interrupted",
        )


def reads_mean(recipe: Recipe, source: Source) -> bool:
    """Whether a classifier reads the mean of all positions: asked to, or because its backbone is cut off."""
    return recipe.pooling == "mean" or (recipe.pooling == "auto" and source.layers is not None)


def build(task: PreparedTask, source: Source, method: str, recipe: Recipe, seed: int) -> Predictor:
    """The model to train, and what it needs to read documents."""
    config = load_config(source)
    check(method, architecture_of(config, source.family), recipe)
    precision = decide(recipe.precision)
    console.say(precision.reason)
    mean = reads_mean(recipe, source)
    virtual_tokens = recipe.virtual_tokens if method in VIRTUAL else 0
    encoder = Encoder(load_tokenizer(source), config, recipe, task.kind, virtual_tokens)
    base, new_modules = load_model(
        source, task.kind, outputs_of(task.kind, task.labels), recipe, seed=seed, mean=mean, method=method
    )
    if new_modules:
        console.say(f"the backbone has no weights for {', '.join(new_modules)}: trained beside the head")
    adapted = adapt(
        base,
        method,
        recipe,
        task.kind,
        family=source.family,
        new_modules=new_modules,
        attention=precision.attention,
        mean=mean or getattr(base.config, "classifier_pooling", "") == "mean",
    )
    if recipe.checkpointing:
        checkpoint_layers(base, adapted.architecture)
    adapted.module.to(precision.device)
    return Predictor(adapted, encoder, task.labels, precision, units=units_of(task.unit))


def training_documents(task: PreparedTask, shots: int | None, seed: int) -> tuple[list[Document], list[Document]]:
    """Documents to train on, and those of validation."""
    training, validation = task.documents("train"), task.documents("validation")
    _check_metric(task, validation)
    return (training if shots is None else few(training, shots, seed)), validation


def test(
    out: Path,
    task: PreparedTask,
    model: Model,
    record: dict[str, Any],
    state: str,
    *,
    validation: Callable[[], Answers],
    interrupted: bool,
) -> dict[str, Any]:
    """Calibrates a saved model on its answers on validation, scores it on test, once, and notes both in its artifact;
    `state` says what an interrupted one holds."""
    try:
        if interrupted:
            raise KeyboardInterrupt
        answers = validation()
        record |= fit_calibration(model, task, answers.documents, answers.logits)
        if record["validation"] is not None:
            record["validation"] = clean(model.score(answers.documents, answers.logits))
        answers = model.answer(task.documents("test"), "testing", unit=task.unit)
        record["test"] = model.evaluate(answers.documents, answers.logits)
        record["coverage"]["test"] = answers.coverage
        predictions.write(out, model, answers.documents, answers.logits)
    except KeyboardInterrupt:
        raise Interrupted(f"{out} holds {state}, not scored on test") from None
    artifacts.update(out, record)
    return summary(out, record)


def _check_metric(task: PreparedTask, validation: Sequence[Document]) -> None:
    """Raises UserError, before any training, where the task's metric cannot choose a checkpoint."""
    if not validation:
        raise UserError("has no validation documents", "Prepare it with a validation split", task.folder)
    if task.metric in ("auroc", "average_precision") and len({document.label for document in validation}) < 2:
        raise UserError(
            f"{task.metric} is undefined on a validation split of one class",
            "Prepare the task with another --metric, or with a larger validation split",
            task.folder,
        )


def targets(documents: Sequence[Document], kind: str, labels: Sequence[str]) -> list[np.ndarray]:
    """What the loss compares with: the class of each document, or the tag of each of its words."""
    index = {name: position for position, name in enumerate(outputs_of(kind, labels))}
    if kind == "sequence-classification":
        return [np.array(index[str(document.label)]) for document in documents]
    return [np.array([index[tag] for tag in word_tags(document)], np.int64) for document in documents]


def few(documents: Sequence[Document], shots: int, seed: int) -> list[Document]:
    """`shots` documents of each class, or of each entity type; classes with fewer keep all they have.

    A document counts for every type it holds, and documents without entities make one class more.
    """
    if shots < 1:
        raise UserError(f"{shots} documents per class are none", "Give a number from 1", "--shots")
    order = np.random.default_rng(seed).permutation(len(documents))
    taken: dict[str | None, int] = {}
    chosen = []
    for position in order:
        document = documents[position]
        classes: set[str | None] = {span.label for span in document.spans} or {document.label}
        if any(taken.get(name, 0) < shots for name in classes):
            chosen.append(int(position))
            for name in classes:
                taken[name] = taken.get(name, 0) + 1
    return [documents[position] for position in sorted(chosen)]
