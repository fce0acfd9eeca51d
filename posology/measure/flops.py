"""Floating-point operations by formula: what a forward pass and a training step need for texts of given lengths.

With P weights of a matrix that every token is multiplied by, n tokens of a text and attention of width d:

    forward           2 P n  for each matrix,  4 n² d  for each layer's attention (scores, and their product with values)
    input gradient    2 P n  for each matrix, but none below the first trained weight
    weight gradient   2 P n  for each trained matrix
    attention         8 n² d backward: twice its forward

(Kaplan et al. 2020, section 2.1, and Chowdhery et al. 2022, appendix B, count so: a multiplication and an addition are
two operations, and normalisation, activations, softmax and embeddings are left out.) Only real tokens count, and only
what the answer needs: a classifier that reads one position needs, of its last layer, keys and values of all positions
but everything else of that one only. Whoever computes more, on padding or on what nobody reads, gets no credit for it.

Upper bounds remain where attention is causal or has a sliding window (all pairs are counted), in the first layer under
an adapter (its attention needs no gradient of what is not adapted), and in one of ModernBERT's fused projections.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from posology.engine.adapted import Adapted
from posology.engine.virtual import VIRTUAL


@dataclass(frozen=True)
class Cost:
    """Operations per text as polynomials of its length in tokens: the factors of 1, n and n².

    Attributes:
        forward, backward: (3,) each.
        virtual_tokens: of a prompt, which each text is longer by.
    """

    forward: np.ndarray
    backward: np.ndarray
    virtual_tokens: int = 0

    def predicting(self, lengths: np.ndarray) -> float:
        """Operations of a forward pass over texts of these lengths, special tokens included."""
        return self._over(self.forward, lengths)

    def training(self, lengths: np.ndarray) -> float:
        """Operations of forward and backward passes; the optimiser's own are negligible."""
        return self._over(self.forward + self.backward, lengths)

    def _over(self, factors: np.ndarray, lengths: np.ndarray) -> float:
        n = np.asarray(lengths, np.float64) + self.virtual_tokens
        return float(factors[0] * len(n) + factors[1] * n.sum() + factors[2] * (n * n).sum())


_ONE, _TOKEN, _PAIR = 0, 1, 2
_EMBEDDINGS = -1


def cost_of(adapted: Adapted, *, all_positions: bool = False) -> Cost:
    """The cost of an adapted model, read off its parameters.

    Args:
        adapted: the model; of one whose adapters are merged, the cost without them.
        all_positions: count the last layer at every position, as transformers computes it for classifiers, too.
    """
    base, architecture = adapted.base, adapted.architecture
    depth = base.config.num_hidden_layers
    classifies = adapted.kind == "sequence-classification"
    reads_one = classifies and adapted.pooling != "mean" and not all_positions
    lowest, trained_top = _lowest_trained(adapted, depth), False
    factors = {"forward": np.zeros(3), "backward": np.zeros(3)}

    def add(operations: float, of: int, gradients: float) -> None:
        factors["forward"][of] += operations
        factors["backward"][of] += gradients * operations

    for name, shape, trained in _matrices(adapted):
        layer = _layer_of(adapted, name)
        operations = 2.0 * shape[0] * shape[1]
        if layer is None:
            per_token = "embed" in name or not classifies
            if "embed" in name:
                below = lowest == _EMBEDDINGS
            else:  # poolers and heads, in the order in which they are run
                below, trained_top = lowest < depth or trained_top, trained_top or trained
            add(operations, _TOKEN if per_token else _ONE, trained + below)
            continue
        reads_input = _has_role(adapted, name, ("query", "key", "value", "query_key_value"))
        for number in range(depth) if architecture.shared_layers else (layer,):
            # What projects the input of the lowest adapted layer sends no gradient on.
            below = number > lowest or (number == lowest and not reads_input) or ".lora_B." in name
            keys = _has_role(adapted, name, ("key", "value", "query_key_value"))
            once = reads_one and number == depth - 1 and not keys
            add(operations, _ONE if once else _TOKEN, trained + (below and number >= lowest))
    _add_attention(adapted, depth, lowest, reads_one, add)
    prompted = adapted.method in ("prompt", "p-tuning")
    return Cost(factors["forward"], factors["backward"], _virtual_tokens(adapted) if prompted else 0)


def _add_attention(
    adapted: Adapted, depth: int, lowest: int, reads_one: bool, add: Callable[[float, int, float], None]
) -> None:
    width = next(
        (
            shape[0]
            for name, shape, _ in _matrices(adapted)
            if _has_role(adapted, name, ("query",)) and "lora_" not in name
        ),
        adapted.base.config.hidden_size,
    )
    prefix = _virtual_tokens(adapted) if adapted.method == "prefix" else 0
    for number in range(depth):
        one = reads_one and number == depth - 1
        gradients = 2 if number >= lowest else 0
        add(4.0 * width, _TOKEN if one else _PAIR, gradients)
        if prefix:
            add(4.0 * width * prefix, _ONE if one else _TOKEN, gradients)


def _matrices(adapted: Adapted) -> Iterator[tuple[str, tuple[int, int], bool]]:
    """Name in the task model, shape and whether it is trained, of each matrix that activations are multiplied by."""
    tables = {id(module.weight) for module in adapted.module.modules() if isinstance(module, nn.Embedding)}
    for name, weight in adapted.module.named_parameters():
        if weight.ndim != 2 or id(weight) in tables or "prompt_encoder" in name:
            continue
        if ".original_module." in name or "ia3_l" in name:
            continue
        name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        yield name, (weight.shape[0], weight.shape[1]), weight.requires_grad


def _lowest_trained(adapted: Adapted, depth: int) -> int:
    """The first layer that holds a trained weight; -1 where the embeddings do, the depth where no layer does."""
    if adapted.method in VIRTUAL:
        return 0 if adapted.method == "prefix" else _EMBEDDINGS
    lowest = depth
    for name, weight in adapted.module.named_parameters():
        if weight.requires_grad:
            layer = _layer_of(adapted, name.removeprefix("base_model.model."))
            if layer is None and "embed" in name:
                return _EMBEDDINGS
            lowest = min(lowest, depth if layer is None else layer)
    return lowest


def _layer_of(adapted: Adapted, name: str) -> int | None:
    prefix = adapted.base.base_model_prefix
    found = re.match(rf"{prefix}\.{adapted.architecture.layers.format(layer='([0-9]+)')}\.", name)
    return int(found[1]) if found else None


def _has_role(adapted: Adapted, name: str, roles: tuple[str, ...]) -> bool:
    known = [role for role in roles if role in adapted.architecture.roles]
    if not known:
        return False
    pattern = adapted.architecture.pattern(adapted.base.base_model_prefix, known)
    return re.match(pattern + r"\.", name) is not None


def _virtual_tokens(adapted: Adapted) -> int:
    module: object = adapted.module
    return int(module.peft_config["default"].num_virtual_tokens)  # type: ignore[attr-defined]
