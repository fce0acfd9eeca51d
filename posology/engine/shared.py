"""Several models over one pass of the text: cut once per tokenizer, read once per backbone.

texts ── pieces ── windows ─┬─ backbone ─┬─ head A        models whose backbones have equal weights (method `head`)
                            │            └─ head B
                            └─ backbone merged with adapter C ── head C
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.engine.adapted import Adapted
from posology.engine.encode import Encoded
from posology.engine.methods import poolers
from posology.engine.model import Answers, Model
from posology.engine.predictor import Predictor, run


class Readers:
    """Models that answer the same documents.

    Args:
        models: as they were loaded. Those with a backbone are merged (`Predictor.merge`).
    """

    def __init__(self, models: Sequence[Model]):
        self.models = list(models)
        self.pieces = 0
        """How many pieces of text were read so far, by models with a backbone, counted once for each tokenizer."""
        self.groups: list[list[int]] = []
        """Positions of models that are run together, each in one group; the first runs the backbone for all of them."""
        for position, model in enumerate(self.models):
            if isinstance(model, Predictor):
                model.merge()
            group = next((group for group in self.groups if _alike(self.models[group[0]], model)), None)
            if group is None:
                self.groups.append([position])
            else:
                group.append(position)
        for group in self.groups:
            # What a head reads by the first position only has left out the others in its last layer.
            group.sort(key=lambda position: getattr(self._adapted(position), "pooling", "") == "first")
            for position in group[1:]:
                _borrow(self._adapted(group[0]), self._adapted(position))

    def answer(self, documents: Sequence[Document], advance: Callable[[float], None]) -> list[Answers]:
        """What each model makes of the documents.

        Args:
            documents: get words where a tagger needs them and they have none.
            advance: is told how many documents were read, counted once for each model.
        """
        if any(model.kind == "token-classification" for model in self.models):
            for document in documents:
                document.words = document.words or words_of(document.text)
        encoded: dict[object, Encoded] = {}
        answers: dict[int, Answers] = {}
        for group in self.groups:
            members = [self.models[position] for position in group]
            predictors = [model for model in members if isinstance(model, Predictor)]
            if not predictors:
                answers[group[0]] = members[0].answer(documents)
                advance(len(documents))
                continue
            key = predictors[0].encoder.key
            if key not in encoded:
                encoded[key] = predictors[0].encoder.encode(documents)
                self.pieces += int(encoded[key].covered.sum())
            found = _run(predictors, encoded[key], advance)
            coverage = encoded[key].coverage
            for position, logits in zip(group, found, strict=True):
                answers[position] = Answers(documents, logits, coverage)
        return [answers[position] for position in range(len(self.models))]

    def _adapted(self, position: int) -> Any:
        return getattr(self.models[position], "adapted", None)


def _run(predictors: Sequence[Predictor], encoded: Encoded, advance: Callable[[float], None]) -> list[list[np.ndarray]]:
    """`run`, counted in documents instead of windows."""
    share = len(predictors) * len(encoded.windows) / sum(map(len, encoded.windows))
    return run(predictors, encoded, lambda windows: advance(windows * share))


def _alike(first: Model, second: Model) -> bool:
    """Whether what two models compute is the same up to their heads."""
    if not isinstance(first, Predictor) or not isinstance(second, Predictor):
        return False
    if first.encoder.virtual_tokens or second.encoder.virtual_tokens or first.encoder.key != second.encoder.key:
        return False
    if (first.precision[:2], first.adapted.layout) != (second.precision[:2], second.adapted.layout):
        return False
    if first.adapted.architecture.name != second.adapted.architecture.name:
        return False
    one, other = _below_the_head(first.adapted), _below_the_head(second.adapted)
    return one.keys() == other.keys() and all(_equal(weight, other[name]) for name, weight in one.items())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two weights are; quantised ones are never taken to be."""
    plain = type(one.data) is torch.Tensor and type(other.data) is torch.Tensor and one.is_floating_point()
    return plain and (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(one, other)


def _below_the_head(adapted: Adapted) -> dict[str, nn.Parameter]:
    """The weights of embeddings and layers."""
    prefix = f"{adapted.base.base_model_prefix}."
    above = tuple(f"{name}." for name in (*adapted.head, *poolers(adapted.base)))
    return {
        name: weight
        for name, weight in adapted.base.named_parameters()
        if name.startswith(prefix) and not name.startswith(above)
    }


def _borrow(owner: Adapted, borrower: Adapted) -> None:
    """Makes `borrower` take the hidden states that `owner`, which is run before it, has computed, and its weights."""
    weights = _below_the_head(owner)
    for name, weight in _below_the_head(borrower).items():
        weight.data = weights[name].data
    last: list[Any] = []

    def keep(_module: nn.Module, _given: Any, output: Any) -> None:
        # Apart from its wrapper, in which later hooks put what a head reads.
        last[:] = [type(output), output if isinstance(output, torch.Tensor) else output[0]]

    def give(*_given: Any, **_named: Any) -> Any:
        wrapper, hidden = last
        return hidden if issubclass(wrapper, torch.Tensor) else wrapper(last_hidden_state=hidden)

    _body(owner).register_forward_hook(keep, prepend=True)
    _body(borrower).forward = give
    layers = borrower.architecture.layers.replace("\\.", ".").partition(".{layer}")[0]
    if not layers.startswith(f"{borrower.architecture.body}."):  # the body is a last norm, and they run before it
        _backbone(borrower).set_submodule(layers, nn.ModuleList())


def _backbone(adapted: Adapted) -> nn.Module:
    backbone: nn.Module = getattr(adapted.base, adapted.base.base_model_prefix)
    return backbone


def _body(adapted: Adapted) -> nn.Module:
    return _backbone(adapted).get_submodule(adapted.architecture.body)
