"""A task model ready to answer: what training validates with, and what an artifact becomes when it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from posology import console
from posology.corpus.document import Document
from posology.engine.activations import Kept, widened
from posology.engine.adapted import Adapted
from posology.engine.batch import Batch, cut
from posology.engine.decode import tags_of
from posology.engine.encode import Encoded, Encoder
from posology.engine.layers import write_out
from posology.engine.model import Answers, Model
from posology.engine.precision import Precision
from posology.engine.quantise import QuantisedLinear
from posology.engine.virtual import VIRTUAL
from posology.errors import UserError

TOKEN_BUDGET = 2048
"""Pieces that one forward pass may hold, padding included where there is some: enough to fill the cores, little
enough to stay in memory."""


@dataclass
class Predictor(Model):
    """An adapted backbone with all it needs to read documents.

    Attributes:
        adapted: the model.
        encoder: cuts documents into windows.
        labels: classes, or entity types.
        precision: device and type of its products.
        text_pair: whether it was trained on pairs of texts.
        token_budget: pieces that one forward pass may hold.
        units: `("word",)`, or `("word", "piece")` for a tagger that was trained on every piece.
    """

    adapted: Adapted
    encoder: Encoder
    labels: tuple[str, ...]
    precision: Precision
    text_pair: bool = False
    units: tuple[str, ...] = ("word",)
    token_budget: int = TOKEN_BUDGET

    @property
    def kind(self) -> str:
        """Of the task."""
        return self.adapted.kind

    def answer(self, documents: Sequence[Document], description: str = "predicting", *, unit: str = "word") -> Answers:
        """Reads documents; see `Model.answer`. Asked by `word`, taggers answer for the first piece of each word."""
        documents, encoded = self.encoder.read(documents, unit)
        return Answers(documents, self.logits(encoded, description), encoded.coverage)

    def logits(self, encoded: Encoded, description: str = "predicting", kept: Kept | None = None) -> list[np.ndarray]:
        """Logits of each document: (classes,), the mean over its windows; or (words, tags).

        In token classification words that the tokenizer dropped have rows of NaN; those after the last one read have
        none. Where documents were read by piece, pieces stand for words. `kept` is what frozen layers make of them.
        """
        with console.progress(description, sum(map(len, encoded.windows))) as advance:
            return run([self], encoded, advance, kept)[0]

    def merge(self) -> None:
        """Makes it as fast as it gets, for prediction only: afterwards it can be neither trained nor saved.

        Adapters become part of the backbone's weights where these are in float32, so that nothing but rounding
        changes; virtual tokens stay. Where products are in bfloat16, frozen weights are then kept so, instead of being
        converted for every batch.
        """
        adapted = self.adapted
        if adapted.module is not adapted.base and adapted.method not in VIRTUAL and _in_float32(adapted.module):
            put_in(adapted.base)
            adapted.module = adapted.base
            adapted.layers = write_out(adapted.base, adapted.architecture, lambda: adapted._row)
        adapted.module.requires_grad_(False)
        if self.precision.bf16:
            exact = {part for name in adapted.head for part in adapted.base.get_submodule(name).modules()}
            for part in adapted.base.modules():
                if type(part) is nn.Linear and part not in exact:
                    part.to(torch.bfloat16)


def put_in(base: nn.Module) -> None:
    """Merges PEFT's adapters into what they adapt, and takes its wrappers off.

    Its own function fails on ModernBERT's head under IA3.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for name, part in list(base.named_modules()):
        wrapper: Any = part
        if isinstance(part, BaseTunerLayer):
            wrapper.merge()
            base.set_submodule(name, wrapper.get_base_layer())
        elif isinstance(part, ModulesToSaveWrapper):
            base.set_submodule(name, wrapper.modules_to_save[wrapper.active_adapters[0]])


def _in_float32(module: nn.Module) -> bool:
    """Whether all that PEFT has wrapped are plain maps in float32: neither halved nor quantised."""
    wrapped: list[Any] = [part.base_layer for part in module.modules() if hasattr(part, "base_layer")]
    return all(
        not isinstance(part, QuantisedLinear) and all(weight.dtype == torch.float32 for weight in part.parameters())
        for part in wrapped
    )


@torch.inference_mode()
def run(
    predictors: Sequence[Predictor], encoded: Encoded, advance: Callable[[int], None], kept: Kept | None = None
) -> list[list[np.ndarray]]:
    """Logits of documents by several models of one kind that read the same windows; see `Predictor.logits`.

    Args:
        predictors: each micro-batch goes through them in this order.
        encoded: the documents.
        advance: is told how many windows were read.
        kept: hidden states of these documents in the first of the models, where it is the only one.

    Raises:
        UserError: answers that are no numbers.
    """
    first = predictors[0]
    results = [_Results(encoded, predictor) for predictor in predictors]
    for predictor in predictors:
        predictor.adapted.module.eval()
    units = [[window] for own in encoded.windows for window in own]
    padded = first.adapted.layout == "padded"
    budget = min(predictor.token_budget for predictor in predictors)
    if kept is not None:
        budget = widened(first.adapted, kept.layer, budget)
    with first.precision.autocast():
        for group in cut(units, budget, padded=padded):
            batch = first.adapted.batch(group, first.precision.device)
            for predictor, result in zip(predictors, results, strict=True):
                adapted = predictor.adapted
                result.add(batch, adapted.answers(batch) if kept is None else kept.answers(adapted, batch, group))
            advance(len(group))
    return [result.logits() for result in results]


class NotFinite(UserError):
    """A model answers with NaN or infinities: its training has diverged."""


class _Results:
    """Logits as they come in, micro-batch by micro-batch.

    Args:
        encoded: the documents that are read.
        predictor: the model that reads them.
    """

    def __init__(self, encoded: Encoded, predictor: Predictor):
        outputs = predictor.adapted.base.config.num_labels
        self._tagging = predictor.kind == "token-classification"
        if self._tagging:
            read = [max((int(window.words.max(initial=-1)) for window in own), default=-1) for own in encoded.windows]
            self._starts = np.cumsum([0, *(word + 1 for word in read)])
            self._values = np.full((self._starts[-1], outputs), np.nan, np.float32)
        else:
            self._windows = np.array([len(own) for own in encoded.windows])
            self._values = np.zeros((len(encoded.windows), outputs), np.float32)

    def add(self, batch: Batch, output: torch.Tensor) -> None:
        """Takes what `Adapted.answers` gives for a micro-batch."""
        values = output.cpu().numpy()
        if not np.isfinite(values).all():
            raise NotFinite("the model's answers are not finite numbers", "Train it anew at a lower learning rate")
        if self._tagging:
            self._values[self._starts[batch.documents[batch.words[:, 0]]] + batch.words[:, 1]] = values
        else:
            documents = batch.documents[batch.owner.cpu().numpy()]
            np.add.at(self._values, documents, values / self._windows[documents, None])

    def logits(self) -> list[np.ndarray]:
        """What has come in, by document."""
        return np.split(self._values, self._starts[1:-1]) if self._tagging else list(self._values)


def outputs_of(kind: str, labels: Sequence[str]) -> list[str]:
    """The names of a model's outputs: the classes, or the tags of the entity types."""
    return tags_of(labels) if kind == "token-classification" else list(labels)


def units_of(trained: str) -> tuple[str, ...]:
    """The units that a tagger trained on one can be scored by: a word's later pieces are learnt only by piece."""
    return ("word", "piece") if trained == "piece" else ("word",)


def pool(logits: torch.Tensor, owner: torch.Tensor, documents: int) -> torch.Tensor:
    """Logits of documents from logits of their windows: the mean. (windows, classes) -> (documents, classes)."""
    sums = torch.zeros(documents, logits.shape[1], dtype=logits.dtype, device=logits.device)
    counts = torch.bincount(owner, minlength=documents).to(logits.dtype)
    return sums.index_add(0, owner, logits) / counts[:, None]
