"""Baselines for sequence classification: tf-idf of words and word pairs under a linear model or a random forest."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from posology import console
from posology.corpus.document import Document
from posology.engine.forest import forest_arrays, forest_probabilities
from posology.engine.model import Answers, BaselineModel
from posology.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PAIR_MARK = "_pair_"
"""Stands, as a word of its own, between the two texts of a pair."""

_NEVER = -1e4
"""The score of a class that training has not met: its probability is 0."""


class BagSettings(BaseModel):
    """What both bags of words have.

    Attributes:
        ngrams: longest sequence of words that is a feature.
        min_documents: features found in fewer training documents are left out.
        max_features: of the others so many are kept, the most frequent ones.
        class_weights: `balanced` weighs each class by n / (classes x its count); None: validation chooses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ngrams: int = Field(default=2, ge=1, le=5)
    min_documents: int = Field(default=2, ge=1)
    max_features: int = Field(default=100_000, ge=1)
    class_weights: Literal["none", "balanced"] | None = None


class TfIdfSettings(BagSettings):
    """Of logistic regression.

    Attributes:
        C: inverse strength of the L2 penalty; None: validation chooses.
    """

    C: float | None = Field(default=None, gt=0)


class ForestSettings(BagSettings):
    """Of the random forest.

    Attributes:
        trees: how many there are.
        min_leaf: training documents that a leaf has at least; None: validation chooses.
    """

    trees: int = Field(default=300, ge=1)
    min_leaf: int | None = Field(default=None, ge=1)


class BagOfWords(BaselineModel):
    """A classifier over tf-idf features with logarithmic term frequencies.

    Args:
        labels: classes.
        settings: of the features.
        vocabulary: the feature of each column.
        arrays: `idf` (columns,); with it `coefficients` (classes, columns) and `intercepts` (classes,), or what
            `forest_arrays` gives.
        text_pair: whether texts come in pairs.

    Raises:
        ValueError: these do not fit each other.
    """

    kind = "sequence-classification"
    units = ("word",)

    def __init__(
        self,
        labels: tuple[str, ...],
        settings: BagSettings,
        vocabulary: Sequence[str],
        arrays: Mapping[str, np.ndarray],
        text_pair: bool,
    ):
        self.labels, self.text_pair = labels, text_pair
        self._settings, self._vocabulary, self._arrays = settings, vocabulary, arrays
        answers = arrays["coefficients"] if "coefficients" in arrays else arrays["probabilities"].T
        if len(vocabulary) != len(arrays["idf"]) or len(answers) != len(labels):
            raise ValueError("vocabulary, numbers and labels do not fit each other")
        self._vectoriser = _vectoriser(settings, {feature: column for column, feature in enumerate(vocabulary)})
        self._vectoriser.idf_ = arrays["idf"]

    def answer(self, documents: Sequence[Document], description: str = "predicting", *, unit: str = "word") -> Answers:
        """Reads documents, whole; see `Model.answer`. Logits are log-probabilities up to a constant."""
        features = self._vectoriser.transform(texts(documents))
        return Answers(documents, self.logits(features), 1.0)

    def logits(self, features: csr_matrix) -> list[np.ndarray]:
        """For each row of `features` (documents, columns) the logits of the classes."""
        if "coefficients" in self._arrays:
            scores = features @ self._arrays["coefficients"].T.astype(np.float64) + self._arrays["intercepts"]
        else:
            with np.errstate(divide="ignore"):  # a probability of 0 has the logit -inf
                scores = np.log(forest_probabilities(self._arrays, features))
        return list(scores)

    @property
    def entries(self) -> int:
        """Coefficients and intercepts that were fitted (of two classes only one has any), or nodes of the trees."""
        if "coefficients" in self._arrays:
            fitted = self._arrays["coefficients"].any(axis=1).sum()
            return int(fitted) * (len(self._vocabulary) + 1)
        return len(self._arrays["feature"])

    @property
    def bytes(self) -> int:
        """About how many it takes on disk."""
        return sum(array.nbytes for array in self._arrays.values()) + 24 * len(self._vocabulary)

    def save(self, folder: Path) -> None:
        """Writes `baseline.safetensors` and `vocabulary.json`."""
        write_baseline(folder, self._vocabulary, self._arrays)


class BagFitter:
    """Fits a bag of words once for each setting that validation is to choose from.

    Args:
        training, validation: documents.
        labels: classes.
        settings: those that are None are open.
        seed: of the forest.

    Raises:
        UserError: nothing can be learnt from the training documents.
    """

    def __init__(
        self,
        training: Sequence[Document],
        validation: Sequence[Document],
        labels: tuple[str, ...],
        settings: BagSettings,
        seed: int,
    ):
        self._labels, self._seed, self._validation = labels, seed, validation
        self._text_pair = any(document.text_pair is not None for document in training)
        index = {label: position for position, label in enumerate(labels)}
        self._classes = np.array([index[str(document.label)] for document in training])
        if len(set(self._classes)) < 2:
            raise UserError("the training documents are all of one class", "Give documents of another class as well")
        vectoriser = _vectoriser(settings)
        try:
            self._features = vectoriser.fit_transform(texts(training))
        except ValueError as error:  # of which the message would show no text, but says nothing of our settings
            raise UserError(
                f"no word is found in {settings.min_documents} training documents or more",
                "Give more documents, or fewer with --set min_documents=1",
            ) from error
        self._vocabulary = vectoriser.get_feature_names_out().tolist()
        self._idf = vectoriser.idf_
        self._validation_features = vectoriser.transform(texts(validation))
        self.candidates = _candidates(settings)

    def fit(self, settings: BagSettings) -> BagOfWords:
        """A model with these settings, of which none is open."""
        weights = "balanced" if settings.class_weights == "balanced" else None
        if isinstance(settings, ForestSettings):
            arrays = self._fit_forest(settings, weights)
        else:
            assert isinstance(settings, TfIdfSettings)
            arrays = self._fit_linear(settings, weights)
        arrays["idf"] = self._idf
        return BagOfWords(self._labels, settings, self._vocabulary, arrays, self._text_pair)

    def validate(self, model: BagOfWords) -> dict[str, float]:
        """Every metric on validation."""
        return model.score(self._validation, model.logits(self._validation_features))

    def _fit_linear(self, settings: TfIdfSettings, weights: str | None) -> dict[str, np.ndarray]:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        linear = LogisticRegression(C=settings.C, class_weight=weights, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            linear.fit(self._features, self._classes)
        if linear.n_iter_.max() >= linear.max_iter:
            console.say(f"C={settings.C:g} did not converge in {linear.max_iter} iterations")
        coefficients = np.zeros((len(self._labels), self._features.shape[1]), np.float32)
        intercepts = np.full(len(self._labels), _NEVER)
        if len(linear.classes_) == 2:  # scikit-learn keeps the difference between the second class and the first
            coefficients[linear.classes_[1]] = linear.coef_[0]
            intercepts[linear.classes_] = 0.0, linear.intercept_[0]
        else:
            coefficients[linear.classes_] = linear.coef_
            intercepts[linear.classes_] = linear.intercept_
        return {"coefficients": coefficients, "intercepts": intercepts}

    def _fit_forest(self, settings: ForestSettings, weights: str | None) -> dict[str, np.ndarray]:
        from sklearn.ensemble import RandomForestClassifier

        forest = RandomForestClassifier(
            settings.trees,
            min_samples_leaf=settings.min_leaf,
            class_weight=weights,
            random_state=self._seed,
            n_jobs=-1,  # the same trees whatever their number
        )
        forest.fit(self._features, self._classes)
        return forest_arrays(forest, len(self._labels))


def texts(documents: Sequence[Document]) -> list[str]:
    """What the features of each document are taken from."""
    return [
        document.text if document.text_pair is None else f"{document.text} {PAIR_MARK} {document.text_pair}"
        for document in documents
    ]


def write_baseline(folder: Path, vocabulary: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `vocabulary.json` and `baseline.safetensors`."""
    from safetensors.numpy import save_file

    content = json.dumps(vocabulary, ensure_ascii=False)
    (folder / "vocabulary.json").write_text(content, encoding="utf-8")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "baseline.safetensors")


def _candidates(settings: BagSettings) -> list[BagSettings]:
    """`settings` with every combination of what is open, the simplest first: of equal scores the first wins."""
    found: list[BagSettings] = [settings]
    opened: dict[str, tuple[Any, ...]] = {
        "C": (0.1, 1.0, 10.0, 100.0),
        "min_leaf": (3, 1),
        "class_weights": ("none", "balanced"),
    }
    for name, values in opened.items():
        if name in type(settings).model_fields and getattr(settings, name) is None:
            found = [each.model_copy(update={name: value}) for each in found for value in values]
    return found


def _vectoriser(settings: BagSettings, vocabulary: Mapping[str, int] | None = None) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    learnt = {"min_df": settings.min_documents, "max_features": settings.max_features}
    return TfidfVectorizer(
        ngram_range=(1, settings.ngrams),
        sublinear_tf=True,
        vocabulary=vocabulary,
        **(learnt if vocabulary is None else {}),
    )
