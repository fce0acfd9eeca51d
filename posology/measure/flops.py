"""Floating-point operations by formula: what a forward pass and a training step need for texts of given lengths.

With P weights of a matrix that every token is multiplied by, n tokens of a text and attention of width d:

    forward           2 P n  for each matrix,  4 n² d  for each layer's attention (scores, and their product with values)
    input gradient    2 P n  for each matrix, but none below the first trained weight
    weight gradient   2 P n  for each trained matrix
    attention         8 n² d backward: twice its forward; less in the lowest trained layer, see `_attention_gradients`

(Kaplan et al. 2020, section 2.1, and Chowdhery et al. 2022, appendix B, count so: a multiplication and an addition are
two operations, and normalisation, activations, softmax and embeddings are left out.) Only real tokens count, and only
what the answer needs: a classifier that reads one position needs, of its last layer, keys and values of all positions
but everything else of that one only. Whoever computes more, on padding or on what nobody reads, gets no credit for it.

Counted for all positions, both equal what `torch.utils.flop_counter` counts on the padded model of transformers and PEFT
(`tests/measure/test_flops.py`). Two things are left out, since they are needed once for a batch however many texts it
holds: the network that makes p-tuning's prompt, and the norms of DoRA's weights. One bound is from above: where
attention is causal or has a sliding window, all pairs are counted, as transformers computes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
_STAGES = {"query": 1, "key": 1, "value": 1, "query_key_value": 1, "attention_output": 3, "gate": 4, "up": 4, "down": 5}
_INTO_ATTENTION, _ATTENTION, _BEHIND_ATTENTION, _LAST = 0, 2, 3.5, 6


@dataclass(frozen=True)
class _Weight:
    """A parameter, and when it is used.

    Attributes:
        name: in the task model, without the names of PEFT's wrappers.
        shape: of it.
        trained: whether it is.
        matrix: whether activations are multiplied by it.
        layer: its number; None outside of the layers.
        role: in its layer, see `architectures.yaml`; None where it has none.
        stage: rises with the order in which the parts of a layer are run.
    """

    name: str
    shape: tuple[int, ...]
    trained: bool
    matrix: bool
    layer: int | None
    role: str | None
    stage: float


def cost_of(adapted: Adapted, *, all_positions: bool = False) -> Cost:
    """The cost of an adapted model, read off its parameters; they may be on the meta device.

    Args:
        adapted: the model; of one whose adapters are merged, the cost without them.
        all_positions: count the last layer at every position, as transformers computes it for classifiers, too.
    """
    depth, classifies = adapted.base.config.num_hidden_layers, adapted.kind == "sequence-classification"
    reads_one = classifies and adapted.pooling != "mean" and not all_positions
    weights = list(_weights(adapted))
    lowest = _lowest_trained(adapted, weights, depth)
    stages = [weight.stage for weight in weights if weight.trained and weight.layer == lowest]
    if adapted.method == "prefix":
        stages.append(_ATTENTION)
    first_stage = min(stages, default=float(_LAST))
    factors = {"forward": np.zeros(3), "backward": np.zeros(3)}

    def add(operations: float, of: int, gradients: float) -> None:
        factors["forward"][of] += operations
        factors["backward"][of] += gradients * operations

    embedded = adapted.method in VIRTUAL and lowest == _EMBEDDINGS  # whether something before is trained
    heads = lowest < depth
    for weight in weights:
        if weight.matrix:
            operations = 2.0 * weight.shape[0] * weight.shape[1]
            if weight.layer is not None:
                for number in _passes(adapted, weight.layer, depth):
                    below = number > lowest or (number == lowest and weight.stage > first_stage)
                    below = below or (number == lowest and ".lora_B." in weight.name)
                    once = reads_one and number == depth - 1 and not _reads_all(weight)
                    add(operations, _ONE if once else _TOKEN, weight.trained + below)
            elif "embed" in weight.name:
                add(operations, _TOKEN, weight.trained + embedded)
            else:  # poolers and heads, in the order in which they are run
                add(operations, _ONE if classifies else _TOKEN, weight.trained + heads)
        if weight.trained and weight.layer is None:
            embedded, heads = embedded or "embed" in weight.name, heads or "embed" not in weight.name
    width = next((each.shape[0] for each in weights if each.role == "query" and "lora_" not in each.name), None)
    pairs = 4.0 * (width or adapted.base.config.hidden_size)
    prefix = _virtual_tokens(adapted) if adapted.method == "prefix" else 0
    for number in range(depth):
        once = reads_one and number == depth - 1
        gradients = _attention_gradients(adapted, weights, number, lowest)
        add(pairs, _TOKEN if once else _PAIR, gradients)
        add(pairs * prefix, _ONE if once else _TOKEN, gradients)
    prompted = adapted.method in ("prompt", "p-tuning")
    return Cost(factors["forward"], factors["backward"], _virtual_tokens(adapted) if prompted else 0)


def _attention_gradients(adapted: Adapted, weights: Sequence[_Weight], number: int, lowest: int) -> float:
    """The backward pass of a layer's attention as a multiple of its forward pass.

    There are four products of the size of each of the forward pass's two: gradients of queries, of keys, of values, and
    of the scores, which those of queries and keys need. In the lowest trained layer some of them have nobody to go to.
    """
    if number != lowest:
        return 2.0 if number > lowest else 0.0
    own = [weight for weight in weights if weight.trained and weight.layer == lowest]
    trained = {weight.role for weight in own}
    everything = "query_key_value" in trained or any(weight.stage == _INTO_ATTENTION for weight in own)
    query, key, value = (everything or role in trained for role in ("query", "key", "value"))
    if adapted.method == "prefix":
        key = value = True
    return ((query or key) + query + key + value) / 2


def _reads_all(weight: _Weight) -> bool:
    """Whether a matrix of the last layer is needed at all positions where only one is read."""
    return weight.role in ("key", "value", "query_key_value") or ".bottleneck.attention." in weight.name


def _passes(adapted: Adapted, layer: int, depth: int) -> Iterator[int]:
    """The numbers of the layers that a layer's weights are used in: one, or several where layers share them."""
    if not adapted.architecture.shared_layers:
        yield layer
        return
    groups = adapted.base.config.num_hidden_groups
    yield from (number for number in range(depth) if number * groups // depth == layer)


def _weights(adapted: Adapted) -> Iterator[_Weight]:
    """Every parameter in the order of the modules, without those that are wrapped but not used."""
    architecture, prefix = adapted.architecture, adapted.base.base_model_prefix
    tables = {id(module.weight) for module in adapted.module.modules() if isinstance(module, nn.Embedding)}
    # Quantised weights are packed: their own shapes say nothing.
    shapes = {
        id(part.weight): (part.out_features, part.in_features)
        for part in adapted.module.modules()
        if isinstance(part, nn.Linear)
    }
    layer_of = re.compile(rf"{prefix}\.{architecture.layers.format(layer='([0-9]+)')}\.")
    roles = {role: re.compile(rf"({pattern})\.") for role, pattern in architecture.roles.items()}
    wrapper = next(name for name, module in adapted.module.named_modules() if module is adapted.base)
    for full_name, weight in adapted.module.named_parameters():
        if "prompt_encoder" in full_name or ".original_module." in full_name:
            continue
        name = full_name.removeprefix(f"{wrapper}.").replace(".base_layer.", ".")
        found = layer_of.match(name)
        own = name[found.end() :] if found else ""
        role = next((role for role, pattern in roles.items() if pattern.match(own)), None)
        stage = _stage(own, role)
        if "ia3_l" in name and role in architecture.ia3_feedforward:
            stage -= 0.005  # it scales the input, whose gradient it therefore needs
        matrix = weight.ndim == 2 and id(weight) not in tables and "ia3_l" not in name
        layer = int(found[1]) if found else None
        shape = shapes.get(id(weight), tuple(weight.shape))
        yield _Weight(name, shape, weight.requires_grad, matrix, layer, role, stage)


def _stage(name: str, role: str | None) -> float:
    """When a part of a layer is run; without a role it is a norm, or of what MobileBERT has before and after the rest."""
    if own := re.match(r"ffn\.(\d+)\.", name):  # MobileBERT's further networks, one after the other before the last
        return _BEHIND_ATTENTION + (2 * int(own[1]) + (role != "up") + 1) / 100
    if role is not None:
        return _STAGES[role]
    if name.startswith(("bottleneck.", "attn_norm.", "input_layernorm.")):
        return _INTO_ATTENTION
    if name.startswith(("attention.", "sa_layer_norm.", "mlp_norm.", "post_attention_layernorm.")):
        return _BEHIND_ATTENTION
    return _LAST


def _lowest_trained(adapted: Adapted, weights: Sequence[_Weight], depth: int) -> int:
    """The first layer that holds a trained weight; -1 where the embeddings do, the depth where no layer does."""
    if adapted.method in VIRTUAL:
        return 0 if adapted.method == "prefix" else _EMBEDDINGS
    trained = [weight for weight in weights if weight.trained]
    if any(weight.layer is None and "embed" in weight.name for weight in trained):
        return _EMBEDDINGS
    return min((weight.layer for weight in trained if weight.layer is not None), default=depth)


def _virtual_tokens(adapted: Adapted) -> int:
    module: object = adapted.module
    return int(module.peft_config["default"].num_virtual_tokens)  # type: ignore[attr-defined]
