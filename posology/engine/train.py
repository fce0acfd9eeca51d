"""One run from a prepared task to an artifact, and its evaluation on other data."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from posology import console
from posology.engine import artifact as artifacts
from posology.engine import baselines
from posology.engine.backbone import load_config, resolve
from posology.engine.baselines import BASELINES
from posology.engine.calibrate import calibration_report, threshold_report
from posology.engine.checkpoint import EVERY_SECONDS, Checkpoint, Fresh, left_behind
from posology.engine.loop import fit
from posology.engine.memory import parse_bytes
from posology.engine.methods import check_method
from posology.engine.recipe import make_recipe
from posology.engine.record import label_counts, machine, scoring, summary, task_record, versions
from posology.engine.run import Run, targets, test, training_documents
from posology.engine.stopping import interruptible
from posology.engine.teaching import Teaching
from posology.engine.training import Watch
from posology.errors import Interrupted, UserError
from posology.evaluation.statistics import clean
from posology.evaluation.subgroups import by_column, read_column
from posology.files import check_free, check_writable
from posology.seed import check_seed
from posology.tasks.prepared import PreparedTask

__all__ = ["evaluate", "summary", "train", "versions"]


def train(
    data: Path | str,
    backbone: str | None,
    method: str,
    out: Path | str,
    *,
    recipe: str = "standard",
    overrides: Mapping[str, Any] | None = None,
    seed: int = 42,
    max_seconds: float | None = None,
    evaluate_seconds: float | None = None,
    max_memory: int | str | None = None,
    shots: int | None = None,
    overwrite: bool = False,
    fresh: Fresh = False,
    checkpoint_seconds: float = EVERY_SECONDS,
    keep_activations: Path | str | None = None,
    watch: Watch | None = None,
    distilled_from: Teaching | Path | str | None = None,
) -> dict[str, Any]:
    """Adapts a backbone to a prepared task and writes the artifact.

    The state that is best on validation by the task's metric is kept, and scored once on test.

    While it trains, `.NAME.checkpoint` beside `out` holds all that is needed to go on; it goes when the run is done. A
    run that was stopped or killed continues when it is called again with the same arguments, and ends with the very
    weights it would have had, on the same machine with the same number of threads. With a budget of seconds it
    continues too, but what it ends with depends on the machine's speed, as it does in every such run.

    Args:
        data: a prepared task.
        backbone: catalogue name, folder, or `NAME:K`. Baselines have none and do not look at it.
        method: a key of `METHODS`, or of `BASELINES`.
        out: the artifact's folder.
        recipe: `standard` or `paper`.
        overrides: fields of the recipe, or settings of a baseline, to replace.
        seed: of initialisation, order and dropout.
        max_seconds: wall clock of training: steps and checkpoints. Loading, evaluations, and the test at the end come
            on top and are reported apart. Training stops before the step that would probably pass it, and the learning
            rate falls to zero by then; a baseline tries no further setting after it.
        evaluate_seconds: evaluate after so many seconds of training too, not only after each epoch. Patience counts in
            epochs all the same. Baselines have none.
        max_memory: bytes, or such as "4GB": micro-batches are made so small that the process probably stays below it. No
            result changes by that but for rounding. Baselines have none.
        shots: train on so many documents per class (or per entity type), drawn by `seed`.
        overwrite: replace an existing folder. One that an interrupted run left needs it not.
        fresh: start over where there is a checkpoint; with `"if-other"` only where it was made with other settings.
        checkpoint_seconds: write a checkpoint after so many seconds, and after evaluations that come ten seconds or more
            after the last one; where writing takes long, less often; 0: after every step.
        keep_activations: a folder in which to keep what layers below the first trained one make of the documents (see
            `posology.engine.activations`), and to take it from, in this run and in others with the same backbone and
            documents. Without it they are gone when the run is done.
        watch: is called after each evaluation with its `epoch`, `step`, training `seconds`, `loss`, and `score` on
            validation. Where it returns True, training ends, `stopped` says "pruned", and the best state so far is kept
            and scored. Evaluations from before an interruption are not told again. Baselines have none.
        distilled_from: an artifact for the same labels, whose answers are targets too. Baselines learn from labels
            alone.

    Returns:
        What `posology train --json` prints: `artifact`, `metrics`, `seconds`, `trainable_parameters` and the rest of
        `posology.json`.

    Raises:
        UserError: input that does not fit; nothing is written.
        Interrupted: stopped by the user or by SIGTERM; the artifact holds the best state so far, without a test score.
    """
    out = Path(out)
    _check_budgets(seed, max_seconds, evaluate_seconds, checkpoint_seconds)
    overwrite = overwrite or unfinished(out, fresh is True)
    check_free(out, marker=artifacts.RECORD, overwrite=overwrite)
    task = PreparedTask.open(data)
    check_method(method)
    limit = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    budget = {
        "max_seconds": max_seconds,
        "evaluate_seconds": evaluate_seconds,
        "max_memory": limit,
        "shots": shots,
    }
    asked = {"recipe_name": recipe, "seed": seed, "budget": budget}
    with interruptible():
        if method in BASELINES and distilled_from is not None:
            raise UserError(f"{method} learns from labels alone", "Choose a method that adapts a backbone", "--method")
        if method in BASELINES:
            settings = baselines.make_settings(method, task.kind, recipe, overrides)
            return _train_baseline(task, method, settings, out, asked, overwrite)
        if backbone is None:
            raise UserError(
                f"{method} adapts a backbone, and none is named", "Name one of `posology backbones`", "--backbone"
            )
        source = resolve(backbone)
        chosen = make_recipe(method, recipe, overrides, width=load_config(source).hidden_size)
        run = Run(
            task,
            source,
            method,
            chosen,
            out,
            asked,
            overwrite=overwrite,
            keep_activations=keep_activations,
            teaching=_teaching(distilled_from),
        )
        checkpoint = Checkpoint(out, run.settings(), every=checkpoint_seconds, fresh=fresh)
        with _continuable(checkpoint, out):
            run.read()
            result = fit(
                run.predictor.adapted,
                run.encoded,
                run.targets,
                chosen,
                seed=seed,
                precision=run.predictor.precision,
                validate=run.validate,
                metric=task.metric,
                budget=run.budget,
                checkpoint=checkpoint,
                token_budget=run.tokens(),
                activations=run.activations,
                watch=watch,
                soft=run.soft,
            )
            return run.finish(result)


def _teaching(teacher: Teaching | Path | str | None) -> Teaching | None:
    return Teaching(Path(teacher)) if isinstance(teacher, str | Path) else teacher


@contextlib.contextmanager
def _continuable(checkpoint: Checkpoint, out: Path) -> Iterator[None]:
    """A block that ends with the run done, or leaves a checkpoint and says so."""
    try:
        with checkpoint:
            yield
            checkpoint.remove()
    except KeyboardInterrupt as error:
        if not checkpoint.exists:
            raise
        saved = error.saved if isinstance(error, Interrupted) else f"{out} was not written, but a checkpoint is kept"
        raise Interrupted(f"{saved}; the same command continues") from None


def _train_baseline(
    task: PreparedTask, method: str, settings: BaseModel, out: Path, asked: dict[str, Any], overwrite: bool
) -> dict[str, Any]:
    """`train` for a method without a backbone; `asked` as above."""
    seed, budget = asked["seed"], asked["budget"]
    check_writable(out, 0)
    training, validation = training_documents(task, budget["shots"], seed)
    console.say(f"{len(training):,} training documents; {method} reads all of their text and uses no backbone")
    result = baselines.fit(
        method,
        training,
        validation,
        task.labels,
        settings,
        task.metric,
        seed=seed,
        max_seconds=budget["max_seconds"],
    )
    record = (
        task_record(task)
        | asked
        | {
            "backbone": {
                "name": "none",
                "folder": None,
                "hub_id": None,
                "layers": None,
                "sha256": None,
                "parameters": 0,
            },
            "method": method,
            "recipe": result.settings.model_dump(mode="json"),
            "head": [],
            "virtual_tokens": 0,
            "parameters": {"head": 0, "method": result.model.entries, "total": result.model.entries},
            "versions": versions("scikit-learn", "numpy"),
            "training": result.record(len(training))
            | {"per_label": label_counts(targets(training, task.kind, task.labels), task.kind, task.labels)},
            "machine": machine(),
            "validation": clean(result.scores),
            "coverage": {"train": 1.0, "validation": 1.0},
            "text_pair": result.model.text_pair,
            "scoring": scoring(task, "word"),
            "test": None,
        }
    )
    artifacts.save_baseline(out, result.model, record, overwrite=overwrite)
    console.say(f"{out} holds words of the training documents as they are: keep it as you keep these documents")
    return test(
        out,
        task,
        result.model,
        record,
        "the best so far",
        validation=lambda: result.model.answer(validation),
        interrupted=result.stopped == "interrupted",
    )


def unfinished(out: Path, fresh: bool = False) -> bool:
    """Whether `out` is what an interrupted run left, and this run goes on from there or starts over."""
    if not (fresh or left_behind(out)) or not os.path.isfile(out / artifacts.RECORD):
        return False
    try:
        return artifacts.read_record(out)["test"] is None
    except UserError:
        return False


def _check_budgets(
    seed: int, max_seconds: float | None, evaluate_seconds: float | None, checkpoint_seconds: float
) -> None:
    check_seed(seed)
    if max_seconds is not None and not max_seconds > 0:
        raise UserError(f"{max_seconds} seconds are none", "Give more than 0", "--max-seconds")
    if evaluate_seconds is not None and not evaluate_seconds > 0:
        raise UserError(f"{evaluate_seconds} seconds are none", "Give more than 0", "--evaluate-seconds")
    if not checkpoint_seconds >= 0:
        raise UserError(f"{checkpoint_seconds} is no number of seconds", "Give 0 or more", "checkpoint_seconds")


def evaluate(
    artifact: Path | str,
    data: Path | str,
    *,
    split: Literal["train", "validation", "test"] = "test",
    backbone: str | None = None,
    by: str | None = None,
    table: Path | str | None = None,
) -> dict[str, Any]:
    """Scores an artifact on a split of a prepared task.

    Args:
        artifact: a folder that `train` wrote, or an adapter made by PEFT.
        data: a prepared task with the same labels.
        split: which split.
        backbone: where the backbone is, if not where it was in training.
        by: also score apart the documents of each value of this column, such as sex or ward.
        table: CSV, TSV, JSON Lines or Parquet that has the column, beside `id` (of documents) or `group` (of patients);
            the split itself by default.

    Returns:
        `metrics` ({name: {value, low, high}}; `brier` and `expected_calibration_error` of calibrated probabilities, all
        others of the logits as they are), `per_label`, `documents`, `groups`, `coverage`, `split`, `temperature`;
        `calibration` as in `calibration_report`, `threshold` as in `threshold_report`;
        with a column, `by` ({value: {name: {value, low, high}, documents, groups, small}}).

    Raises:
        UserError: the artifact does not fit the task, or the column cannot be read.
    """
    task = PreparedTask.open(data)
    model = artifacts.load_for(artifact, task, backbone=backbone)
    documents = task.documents(split)
    ids, groups = [document.id for document in documents], [document.group for document in documents]
    if table is not None and by is None:
        raise UserError("a table was named, and no column of it", "Add --by COLUMN", "--table")
    values = None if by is None else read_column(table or task.file(split), by, ids, groups)
    answers = model.answer(documents, "evaluating", unit=task.unit)
    result = model.evaluate(answers.documents, answers.logits)
    apart = {} if values is None else {"by": clean(by_column(model.scores(*answers[:2]), values, groups))}
    return {
        "artifact": str(artifact),
        "task": task.name,
        "split": split,
        **result,
        **apart,
        "calibration": calibration_report(model, answers.documents, answers.logits),
        "threshold": threshold_report(model, answers.documents, answers.logits),
        "coverage": answers.coverage,
    }
