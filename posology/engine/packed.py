"""The padding-free forward pass: the texts of a micro-batch one after the other in a single row.

Everything in an encoder but attention looks at one token at a time, so a row of texts needs no padding as long as
attention keeps within each text (`posology.engine.attention`), positions start anew with each text, and heads read
each text's own position. Only the embeddings of MobileBERT look at neighbours as well; they are mended here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from posology.engine import virtual
from posology.engine.architectures import Architecture
from posology.engine.attention import Segments


@dataclass(frozen=True)
class Row:
    """A packed row on its way through a model.

    Attributes:
        segments: its borders, virtual tokens included.
        virtual: tokens of a prompt at the beginning of each segment.
        read: the columns that somebody reads in the end, so that the last layer may leave out the others; None for all.
        layers: numbers of the layers it goes through; the others hand it on.
        entering: hidden states that take the place of the embeddings, (tokens or positions read, width).
        bare: nothing is read: the body's output is wanted as it is.
    """

    segments: Segments
    virtual: int = 0
    read: torch.Tensor | None = None
    layers: range | None = None
    entering: torch.Tensor | None = None
    bare: bool = False

    def real(self) -> torch.Tensor:
        """The columns of the row that are no virtual tokens."""
        return self.segments.tensor(np.flatnonzero(self.segments.offsets() >= self.virtual))

    def firsts(self) -> torch.Tensor:
        """The column of each segment's first position."""
        return self.segments.tensor(self.segments.starts)

    def lasts(self) -> torch.Tensor:
        """The column of each segment's last position."""
        return self.segments.tensor(self.segments.starts + self.segments.lengths - 1)

    def means(self, hidden: torch.Tensor, *, with_virtual: bool = False) -> torch.Tensor:
        """The mean over each segment of (total, width), with or without its virtual tokens: (segments, width)."""
        numbers = np.repeat(np.arange(len(self.segments)), self.segments.lengths)
        lengths = self.segments.lengths
        if self.virtual and not with_virtual:
            real = self.real()
            hidden, numbers, lengths = hidden[real], numbers[real.cpu().numpy()], lengths - self.virtual
        sums = hidden.new_zeros((len(lengths), hidden.shape[1]))
        return sums.index_add(0, self.segments.tensor(numbers), hidden) / self.segments.tensor(lengths)[:, None]


def arguments(
    base: PreTrainedModel,
    architecture: Architecture,
    method: str,
    weights: torch.Tensor | None,
    inputs: dict[str, torch.Tensor],
    segments: Segments,
) -> tuple[dict[str, Any], Row]:
    """What `base` is called with, and the row it then holds; `PACKED_ATTENTION` must be its attention.

    Args:
        base: the task model.
        architecture, method: of it.
        weights: of the virtual tokens, where the method has some.
        inputs: `input_ids` and, for pairs, `token_type_ids`, each (1, tokens).
        segments: borders of the texts in them.
    """
    row, offset = Row(segments), 0
    given: dict[str, Any] = dict(inputs)
    if weights is not None and method == "prefix":
        layers, heads, _ = virtual.key_value_shape(base, architecture)
        given["prefix"] = virtual.PrefixFeed(weights, layers, heads)
        if architecture.prefix_shifts_positions:
            offset = weights.shape[0]
    elif weights is not None:
        row, given = _with_prompt(base, weights, inputs, segments)
    if architecture.name == "roberta":  # counts from the padding index on
        offset += base.config.pad_token_id + 1
    positions = row.segments.tensor(row.segments.offsets() + offset)[None]
    if "token_type_ids" in given and "token_type_ids" not in inspect.signature(_backbone(base).forward).parameters:
        del given["token_type_ids"]
    return {**given, "position_ids": positions, "segments": row.segments}, row


def _backbone(base: PreTrainedModel) -> Any:
    return getattr(base, base.base_model_prefix)


def _with_prompt(
    base: PreTrainedModel, prompt: torch.Tensor, inputs: dict[str, torch.Tensor], segments: Segments
) -> tuple[Row, dict[str, Any]]:
    """The row with the prompt, (tokens, width), at the beginning of every segment, as word embeddings."""
    tokens = prompt.shape[0]
    row = Row(Segments(segments.lengths + tokens, segments.device), tokens)
    places = row.segments.offsets()
    owner = np.repeat(np.arange(len(segments)), row.segments.lengths)
    # Rows of (prompt, words): the prompt's own for the first positions, then the words of the segment.
    source = np.where(places < tokens, places, places + segments.starts[owner])
    words = base.get_input_embeddings()(inputs["input_ids"])[0]
    embedded = torch.cat((prompt.to(words.dtype), words))[row.segments.tensor(source)]
    given: dict[str, Any] = {"inputs_embeds": embedded[None]}
    if "token_type_ids" in inputs:
        types = nn.functional.pad(inputs["token_type_ids"][0], (tokens, 0))
        given["token_type_ids"] = types[row.segments.tensor(source)][None]
    return row, given


def keep_trigrams_within(base: PreTrainedModel, current: Callable[[], Row | None]) -> None:
    """Makes MobileBERT's embeddings see zeros beyond either end of a segment, as they do at the ends of a text.

    Args:
        base: a task model of MobileBERT; others look at no neighbours, and stay as they are.
        current: gives the row that is being read, or None where texts are padded.
    """
    embeddings: Any = getattr(_backbone(base), "embeddings", None)
    if not getattr(embeddings, "trigram_input", False):
        return

    def cut(_module: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        row = current()
        if row is None:
            return None
        (embedded,) = given  # (1, tokens, 3 x width): the next, the own and the previous token's embedding
        inside = torch.ones((embedded.shape[1], 3, 1), dtype=embedded.dtype, device=embedded.device)
        inside[row.lasts(), 0] = 0
        inside[row.firsts(), 2] = 0
        return ((embedded.view(*embedded.shape[:2], 3, -1) * inside).flatten(2),)

    embeddings.embedding_transformation.register_forward_pre_hook(cut)
