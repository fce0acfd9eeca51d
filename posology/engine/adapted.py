"""An adapted model: what is trained, and how logits are computed, in one pass or cut between layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from posology.engine import packed, virtual
from posology.engine.architectures import Architecture
from posology.engine.attention import PACKED_ATTENTION, Segments
from posology.engine.batch import Batch, collate, pack
from posology.engine.encode import Window
from posology.engine.layers import Layer
from posology.engine.virtual import VIRTUAL


@dataclass
class Adapted:
    """A task model under one method: what is trained, and how logits are computed.

    Attributes:
        base: the Hugging Face task model; adapters are injected into it.
        module: what holds the parameters: `base`, or the PEFT model around it.
        architecture, method, kind: what it is made of.
        head: names, in `base`, of the modules that are trained beside the method's own parameters.
        pooling: what a sequence classifier reads: `first`, `mean` or `last`.
        backbone_parameters: how many parameters the backbone had before an adapter was added.
        layout: whether batches are packed without padding, or padded as transformers does it: the reference.
        attention: what computes it in transformers where batches are padded.
        layers: those that are written out (`posology.engine.layers`); none where transformers runs them.
    """

    base: PreTrainedModel
    module: nn.Module
    architecture: Architecture
    method: str
    kind: str
    head: tuple[str, ...]
    pooling: str = "first"
    backbone_parameters: int = 0
    layout: Literal["packed", "padded"] = "packed"
    attention: str = "sdpa"
    _row: packed.Row | None = field(default=None, init=False, repr=False)
    layers: list[Layer] = field(default_factory=list, init=False, repr=False)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their names in `module`."""
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def count_trainable(self) -> dict[str, int]:
        """Trainable parameters: of the `head`, of the `method` itself, and the `total` of the model with both."""
        marks = tuple(f".{name}." for name in self.head)
        weights = self.trainable()
        head = sum(weight.numel() for name, weight in weights.items() if any(mark in f".{name}." for mark in marks))
        trained = sum(weight.numel() for weight in weights.values())
        total = sum(
            weight.numel() for name, weight in self.module.named_parameters() if ".original_module." not in name
        )
        return {"head": head, "method": trained - head, "total": total}

    def batch(self, windows: Sequence[Window], device: torch.device | str = "cpu") -> Batch:
        """The windows of a micro-batch, in the model's layout."""
        if self.layout == "packed":
            return pack(windows, device)
        return collate(windows, self.base.config.pad_token_id, device)

    def logits(self, inputs: dict[str, torch.Tensor], segments: Segments | None = None) -> torch.Tensor:
        """Runs a batch.

        Args:
            inputs: `input_ids` and, where texts come in pairs, `token_type_ids`. Padded on the right, (windows,
                length), with `attention_mask`; or packed, (1, tokens).
            segments: the borders of the windows in a packed row.

        Returns:
            (windows, classes), or in token classification (windows, length, tags) or (1, tokens, tags), in float32.
        """
        weights = self.virtual_weights() if self.method in VIRTUAL else None
        if segments is not None:
            return self._packed_logits(inputs, segments, weights).float()
        extra, arguments = 0, dict(inputs)
        self._row, self._mask = None, inputs["attention_mask"]
        self._attend(virtual.PREFIX_ATTENTION if self.method == "prefix" else self.attention)
        if weights is not None:
            if self.method == "prefix":
                arguments = virtual.forward_with_prefix(self.base, self.architecture, weights, inputs)
            else:
                arguments = virtual.forward_with_prompt(self.base, weights, inputs)
                extra = weights.shape[0]
        if self.pooling == "last":
            last = arguments["attention_mask"].sum(dim=1) - 1
            return self._last_token_logits(arguments, torch.arange(len(last), device=last.device), last).float()
        logits = self.base(**arguments).logits
        if self.kind == "token-classification":
            logits = logits[:, extra:]
        return logits.float()

    def answers(self, batch: Batch) -> torch.Tensor:
        """Logits of what a batch asks for: (windows, classes), or in token classification (words, tags), in float32."""
        if self.kind == "sequence-classification":
            return self.logits(batch.inputs, batch.segments)
        if batch.segments is None:
            return self.logits(batch.inputs)[batch.rows, batch.columns]
        weights = self.virtual_weights() if self.method in VIRTUAL else None
        return self._packed_logits(batch.inputs, batch.segments, weights, batch.columns)[0].float()

    def _packed_logits(
        self,
        inputs: dict[str, torch.Tensor],
        segments: Segments,
        weights: torch.Tensor | None,
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(segments, classes), or (1, tokens, tags), or of some tokens only: (1, columns, tags)."""
        self._attend(PACKED_ATTENTION)
        arguments, row = packed.arguments(self.base, self.architecture, self.method, weights, inputs, segments)
        self._row = row
        if self.pooling == "last":
            return self._last_token_logits(arguments, torch.zeros_like(row.lasts()), row.lasts())
        if self.kind == "sequence-classification":
            if self.pooling == "first" and self.layers:
                self._row = replace(row, read=row.firsts())
            return self.base(**arguments).logits
        if row.virtual:
            columns = row.real() if columns is None else row.real()[columns]
        if self.layers:
            self._row = replace(row, read=columns)
            return self.base(**arguments).logits
        logits: torch.Tensor = self.base(**arguments).logits
        return logits if columns is None else logits[:, columns]

    @property
    def first_trained(self) -> int | None:
        """The number of the first layer that has something to train; as many as there are layers where none has.

        What lies below is the same in every step. None where that cannot be left out: where something before the first
        layer is trained, and where transformers runs the layers.
        """
        own = dict.fromkeys(id(weight) for layer in self.layers for weight in layer.trained())
        prefix = f"{self.base.base_model_prefix}."
        others = [
            name
            for name, weight in self.base.named_parameters()
            if weight.requires_grad and id(weight) not in own and name.startswith(prefix)
        ]
        heads = tuple(f"{name}." for name in self.head)
        if not self.layers or self.method in VIRTUAL or any(not name.startswith(heads) for name in others):
            return None
        return next((number for number, layer in enumerate(self.layers) if layer.trained()), len(self.layers))

    def adopt(self, other: Adapted) -> None:
        """Takes the frozen layers and embeddings of a model of the same backbone in place of its own, which are freed."""
        for own, theirs in zip(self.layers, other.layers, strict=True):
            own.adopt(theirs)
        prefix = f"{self.base.base_model_prefix}."
        for name, module in self.base.named_modules():
            if name.startswith(prefix) and isinstance(module, nn.Embedding) and not module.weight.requires_grad:
                module.weight = other.base.get_submodule(name).weight

    def lower(self, batch: Batch, layer: int) -> torch.Tensor:
        """Hidden states before a layer, without dropout: what `upper` goes on from.

        Args:
            batch: packed.
            layer: from 0 to the number of layers.

        Returns:
            (tokens, width); behind the last layer only what a head reads: (windows, width) or (words, width).
        """
        segments, depth = _packed(batch), len(self.layers)
        training = self.module.training
        self.module.eval()
        try:
            read = self.read(batch) if layer == depth else None
            with torch.no_grad():
                hidden = self.body(batch.inputs, segments, range(layer), read=read)
        finally:
            self.module.train(training)
        return packed.Row(segments).means(hidden) if layer == depth and self.pooling == "mean" else hidden

    def body(
        self,
        inputs: dict[str, torch.Tensor],
        segments: Segments,
        layers: range,
        *,
        entering: torch.Tensor | None = None,
        read: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states behind some of the layers, (tokens, width).

        Args:
            inputs: of a packed row, as in `logits`.
            segments: its borders.
            layers: numbers of those it goes through.
            entering: hidden states to begin with, (tokens, width); without them the embeddings.
            read: columns that are wanted in the end, of which only the last layer makes use.
        """
        self._attend(PACKED_ATTENTION)
        arguments, row = packed.arguments(self.base, self.architecture, self.method, None, inputs, segments)
        self._row = replace(row, read=read, layers=layers, entering=entering, bare=True)
        hidden: torch.Tensor = getattr(self.base, self.base.base_model_prefix)(**arguments).last_hidden_state[0]
        return hidden

    def upper(self, hidden: torch.Tensor, batch: Batch, layer: int) -> torch.Tensor:
        """What `answers` gives, from the hidden states before a layer, as `lower` gives them."""
        segments, depth = _packed(batch), len(self.layers)
        self._attend(PACKED_ATTENTION)
        # The embeddings still run, on one token, and what they give is not used.
        one = segments.tensor(np.zeros((1, 1), np.int64))
        read = None if layer == depth else self.read(batch)
        self._row = packed.Row(segments, read=read, layers=range(layer, depth), entering=hidden)
        logits: torch.Tensor = self.base(input_ids=one, segments=segments).logits
        return (logits if self.kind == "sequence-classification" else logits[0]).float()

    def read(self, batch: Batch) -> torch.Tensor | None:
        """The columns of a packed row that a head reads; None for all."""
        if self.kind == "token-classification":
            return batch.columns
        return packed.Row(_packed(batch)).firsts() if self.pooling == "first" else None

    def _attend(self, attention: str) -> None:
        """Switches the attention, where it is another than before."""
        if self.base.config._attn_implementation != attention:
            self.base.set_attn_implementation(attention)

    def read_segments(self) -> None:
        """Makes heads read their position of every segment of a packed row, as if each were a text of its own.

        The body's output becomes (segments, 1, width), so that pooler and head stay those of transformers.
        """

        def gather(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            row: packed.Row | None = self._row
            if row is None or row.bare:
                return None
            hidden = (output if isinstance(output, torch.Tensor) else output[0])[0]
            if row.layers is not None and not len(row.layers):  # read before
                read = hidden[:, None]
            elif self.pooling == "mean":
                # ModernBERT's own mean, as PEFT runs it, counts virtual tokens.
                own = getattr(self.base.config, "classifier_pooling", None) == "mean"
                read = row.means(hidden, with_virtual=own)[:, None]
            else:  # the last layer may have kept first positions only
                read = (hidden if len(hidden) == len(row.segments) else hidden[row.firsts()])[:, None]
            return _with_hidden(output, read)

        self._body().register_forward_hook(gather)

    def read_mean(self) -> None:
        """Makes heads read the mean over the real tokens where they would read the first position.

        The body's output gets the mean in its first position, so that pooler and head stay those of transformers.
        """

        def put_mean(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            if self._row is not None:
                return None
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            mask = self._mask.to(hidden.dtype)[:, :, None]
            real = hidden[:, hidden.shape[1] - mask.shape[1] :]  # virtual tokens stand before the real ones
            mean = (real * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
            return _with_hidden(output, torch.cat((mean, hidden[:, 1:]), dim=1))

        self._body().register_forward_hook(put_mean)

    def _body(self) -> nn.Module:
        backbone: nn.Module = getattr(self.base, self.base.base_model_prefix)
        return backbone.get_submodule(self.architecture.body)

    def virtual_weights(self) -> torch.Tensor:
        """The trained vectors of a method with virtual tokens, (tokens, width)."""
        module: Any = self.module
        encoder = module.prompt_encoder["default"]
        if module.peft_config["default"].inference_mode:  # p-tuning is saved as the vectors its network makes
            return encoder.embedding.weight
        device = encoder.embedding.weight.device
        return encoder(module.prompt_tokens["default"][None].to(device))[0]

    def _last_token_logits(self, arguments: dict[str, Any], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Decoders classify by the last real token; transformers cannot find it behind word embeddings."""
        hidden = getattr(self.base, self.base.base_model_prefix)(**arguments, use_cache=False).last_hidden_state
        return self.base.get_submodule("score")(hidden[rows, columns])


def _packed(batch: Batch) -> Segments:
    assert batch.segments is not None, "only packed rows can be cut between layers"
    return batch.segments


def _with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """The output of a body with another last hidden state."""
    if isinstance(output, torch.Tensor):
        return hidden
    output.last_hidden_state = hidden
    return output
