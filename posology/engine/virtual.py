"""Virtual tokens for every architecture and both task kinds.

PEFT's own forward passes serve prefix tuning only where a model takes a key/value cache, prompt and p-tuning only
where a word embedding is as wide as the hidden state, and none of them in token classification. Here PEFT holds and
saves the parameters, in its own format, and the forward pass is ours:

- a *prefix* (Li and Liang 2021) is some more keys and values inside attention. One registered attention function
  adds them, so every model that asks transformers for its attention can have a prefix;
- *prompt* (Lester et al. 2021) and *p-tuning* (Liu et al. 2021) put trained vectors before the word embeddings.
  They are dropped
  before a tagger's logits are read.

Where PEFT itself works, both give the same logits, so that adapters can be exchanged. That is why a sequence classifier
that reads the first position reads the first virtual token, as it does under PEFT.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from posology.engine.architectures import Architecture, matching

PREFIX_ATTENTION = "posology_prefix"
VIRTUAL = ("prefix", "prompt", "p-tuning")
"""Methods that train virtual tokens."""


class PrefixFeed:
    """Hands each attention layer, in the order they run, its own trained keys and values.

    Counting calls rather than asking for a layer's number makes ALBERT work, whose layers are one module.

    Args:
        weights: (virtual tokens, layers x 2 x heads x head width), PEFT's layout.
        layers: how many layers will ask.
        heads: key/value heads.
    """

    def __init__(self, weights: torch.Tensor, layers: int, heads: int):
        tokens = weights.shape[0]
        self._stacked = weights.view(tokens, layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
        self._next = 0

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the next layer, each (heads, virtual tokens, head width)."""
        key, value = self._stacked[self._next]
        self._next += 1
        return key, value


def attention_with_prefix(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix: PrefixFeed | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention in which every position also sees the prefix.

    Shapes: query (batch, heads, length, width), key and value (batch, key/value heads, length, width),
    attention_mask (batch, 1, length, length) added to the scores. Returns (batch, length, heads, width).
    """
    if prefix is not None:
        prefix_key, prefix_value = prefix.take()
        batch, tokens = query.shape[0], prefix_key.shape[1]
        key = torch.cat((prefix_key.to(key.dtype).expand(batch, -1, -1, -1), key), dim=2)
        value = torch.cat((prefix_value.to(value.dtype).expand(batch, -1, -1, -1), value), dim=2)
        if attention_mask is not None:
            attention_mask = functional.pad(attention_mask, (tokens, 0))
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if attention_mask is not None:
        attention_mask = attention_mask.to(query.dtype)
    output = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout if module.training else 0.0, scale=scaling
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(PREFIX_ATTENTION, attention_with_prefix)
AttentionMaskInterface.register(PREFIX_ATTENTION, eager_mask)


def key_value_shape(base: PreTrainedModel, architecture: Architecture) -> tuple[int, int, int]:
    """Layers, key/value heads, and width of all key heads together, of a task model."""
    config: Any = base.config
    layers = config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    role = "query_key_value" if architecture.fused_qkv else "key"
    projection: Any = base.get_submodule(matching(base, architecture.pattern(base.base_model_prefix, [role]))[0])
    width = projection.out_features // 3 if architecture.fused_qkv else projection.out_features
    return layers, heads, width


def forward_with_prefix(
    base: PreTrainedModel, architecture: Architecture, weights: torch.Tensor, inputs: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """The inputs of `base` with the prefix added: `PREFIX_ATTENTION` must be its attention."""
    layers, heads, _ = key_value_shape(base, architecture)
    extended: dict[str, Any] = {**inputs, "prefix": PrefixFeed(weights, layers, heads)}
    if architecture.prefix_shifts_positions:
        mask = inputs["attention_mask"]
        tokens = weights.shape[0]
        if architecture.name == "roberta":  # counts real tokens from the padding index; padding keeps that index
            padding = base.config.pad_token_id
            extended["position_ids"] = (mask.cumsum(1) + tokens) * mask + padding
        else:
            extended["position_ids"] = torch.arange(tokens, tokens + mask.shape[1], device=mask.device).expand_as(mask)
    return extended


def forward_with_prompt(
    base: PreTrainedModel, prompt: torch.Tensor, inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The inputs of `base` with word embeddings in place of ids and the prompt, (tokens, width), before them."""
    mask = inputs["attention_mask"]
    words = base.get_input_embeddings()(inputs["input_ids"])
    tokens = prompt.shape[0]
    extended = {
        "inputs_embeds": torch.cat((prompt.to(words.dtype).expand(mask.shape[0], -1, -1), words), dim=1),
        "attention_mask": functional.pad(mask, (tokens, 0), value=1),
    }
    if "token_type_ids" in inputs:
        extended["token_type_ids"] = functional.pad(inputs["token_type_ids"], (tokens, 0))
    return extended
