"""Baselines: methods without a backbone, which show what one buys. They leave artifacts like every other method."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from posology import console
from posology.corpus.document import Document
from posology.engine.bag_of_words import BagFitter, BagOfWords, BagSettings, ForestSettings, TfIdfSettings
from posology.engine.dictionary import DictionaryFitter, DictionarySettings, DictionaryTagger
from posology.engine.integrity import RESTORE, check_digests
from posology.engine.model import BaselineModel
from posology.engine.recipe import validated
from posology.errors import UserError


class Baseline(NamedTuple):
    """What `posology methods` prints of a baseline, and what it is made of.

    Attributes:
        description: one line.
        reference: where it comes from.
        kind: of the tasks it does.
        settings: what --set can change.
        fitter: tries settings; see `BagFitter`.
        entries: what `trainable_parameters` counts.
    """

    description: str
    reference: str
    kind: str
    settings: type[BaseModel]
    fitter: Callable[..., Any]
    entries: str


BASELINES: dict[str, Baseline] = {
    "tf-idf": Baseline(
        "no backbone: logistic regression on tf-idf of words and word pairs",
        "Spärck Jones 1972; Cox 1958",
        "sequence-classification",
        TfIdfSettings,
        BagFitter,
        "coefficients",
    ),
    "random-forest": Baseline(
        "no backbone: random forest on tf-idf of words and word pairs",
        "Breiman 2001",
        "sequence-classification",
        ForestSettings,
        BagFitter,
        "nodes",
    ),
    "dictionary": Baseline(
        "no backbone: longest known mention, else the commonest tag of a word",
        "Tjong Kim Sang and De Meulder 2003",
        "token-classification",
        DictionarySettings,
        DictionaryFitter,
        "mentions and words",
    ),
}


def make_settings(
    method: str, kind: str, recipe: str = "standard", overrides: Mapping[str, Any] | None = None
) -> BaseModel:
    """The settings of a baseline, with some replaced.

    Args:
        method: a key of `BASELINES`.
        kind: of the task.
        recipe: must be `standard`.
        overrides: fields to replace.

    Raises:
        UserError: a task of another kind, a recipe, an unknown field or a value out of its range.
    """
    entry = BASELINES[method]
    if kind != entry.kind:
        fitting = [name for name, other in BASELINES.items() if other.kind == kind]
        raise UserError(
            f"is for {entry.kind}, and the task is {kind}", f"Take {' or '.join(fitting)}", f"--method {method}"
        )
    if recipe != "standard":
        raise UserError(f"{method} has no recipe {recipe!r}: the study has no baselines", "Leave it out", "--recipe")
    return validated(entry.settings, overrides or {}, method)


@dataclass
class Fitted:
    """What came of fitting a baseline.

    Attributes:
        model: the best on validation.
        settings: its settings, none of them open.
        scores: on validation.
        seconds, evaluation_seconds: of fitting all settings tried, and of scoring them.
        evaluations: one for each of them, with `score`.
        best: which of these was taken.
        stopped: `finished`, `seconds` or `interrupted`.
    """

    model: BaselineModel
    settings: BaseModel
    scores: dict[str, float]
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    stopped: str = "finished"

    def record(self, documents: int) -> dict[str, Any]:
        """What `posology.json` says of the training, on so many documents."""
        return {
            "documents": documents,
            "seconds": self.seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "examples_per_second": documents * len(self.evaluations) / self.seconds,
            "tokens_per_second": None,
            "stopped": self.stopped,
            "best": self.best,
            "evaluations": self.evaluations,
        }


def fit(
    method: str,
    training: Sequence[Document],
    validation: Sequence[Document],
    labels: tuple[str, ...],
    settings: BaseModel,
    metric: str,
    *,
    seed: int,
    max_seconds: float | None = None,
) -> Fitted:
    """Fits a baseline once for every open setting, and takes the one that is best on validation.

    Args:
        method: a key of `BASELINES`.
        training, validation: documents.
        labels: classes, or entity types.
        settings: as `make_settings` gives them.
        metric: chooses; of equal scores the first wins.
        seed: of the forest.
        max_seconds: no further setting is tried after so many seconds of fitting; one always is.

    Raises:
        UserError: nothing can be learnt.
        KeyboardInterrupt: before any setting was tried to the end.
    """
    begin = time.perf_counter()
    fitter = BASELINES[method].fitter(training, validation, labels, settings, seed)
    seconds = time.perf_counter() - begin
    result: Fitted | None = None
    evaluations: list[dict[str, Any]] = []
    evaluation_seconds, stopped = 0.0, "finished"
    open_fields = [name for name, value in settings.model_dump().items() if value is None]
    try:
        with console.progress("fitting", len(fitter.candidates)) as advance:
            for candidate in fitter.candidates:
                begin = time.perf_counter()
                model = fitter.fit(candidate)
                middle = time.perf_counter()
                scores = fitter.validate(model)
                seconds += middle - begin
                evaluation_seconds += time.perf_counter() - middle
                chosen = {name: getattr(candidate, name) for name in open_fields}
                evaluations.append({**chosen, "seconds": seconds, "score": scores[metric]})
                said = "".join(f"{name}={value}, " for name, value in chosen.items())
                console.say(f"{method}: {said}validation {scores[metric]:.4f}")
                if result is None or scores[metric] > result.scores[metric]:
                    result = Fitted(model, candidate, scores, best=len(evaluations) - 1)
                advance(1)
                if max_seconds is not None and seconds >= max_seconds and candidate is not fitter.candidates[-1]:
                    stopped = "seconds"
                    break
    except KeyboardInterrupt:
        if result is None:
            raise
        stopped = "interrupted"
    assert result is not None
    if math.isnan(result.scores[metric]):
        raise UserError(
            f"{metric} is undefined on the validation split",
            "Prepare the task with another --metric, or with a validation split that has every class",
        )
    result.seconds, result.evaluation_seconds = seconds, evaluation_seconds
    result.evaluations, result.stopped = evaluations, stopped
    return result


def load_baseline(folder: Path, record: Mapping[str, Any]) -> BaselineModel:
    """The model that `BaselineModel.save` wrote.

    Args:
        folder: the artifact.
        record: its `posology.json`.

    Raises:
        UserError: its files are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    labels = tuple(record["labels"])
    settings = BASELINES[record["method"]].settings(**record["recipe"])
    try:
        check_digests(folder, record.get("sha256", {}))
        arrays = load_file(folder / "baseline.safetensors")
        vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        if isinstance(settings, BagSettings):
            return BagOfWords(labels, settings, vocabulary, arrays, bool(record.get("text_pair")))
        return DictionaryTagger(labels, vocabulary, arrays)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"its numbers or its vocabulary cannot be loaded ({type(error).__name__})",
            RESTORE,
            folder,
        ) from error
