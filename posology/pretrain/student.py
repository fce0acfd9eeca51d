"""Students: smaller copies of an encoder, made of some of its layers, and both of them watched while they read.

teacher   0  1  2  3  4  5          a student of four layers starts as the teacher's layers 0, 2, 3 and 5,
student   0     1  2     3          and each of its layers learns to give what the one above it gives
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from posology.engine import packed
from posology.engine.architectures import Architecture, matching
from posology.engine.attention import PACKED_ATTENTION, Segments
from posology.engine.batch import Batch
from posology.errors import UserError
from posology.pretrain.mlm import MaskedModel

_INNER = ("intermediate_size", "hidden_dim")
"""What architectures call the width inside of the feed-forward part."""


def chosen_layers(depth: int, wanted: int) -> list[int]:
    """Which layers of a teacher its student starts from: evenly spaced, the last one always among them.

    Raises:
        UserError: the teacher has not so many.
    """
    if not 1 <= wanted <= depth:
        raise UserError(
            f"a teacher of {depth} layers has no student of {wanted}",
            f"Give a number from 1 to {depth}",
            "--student-layers",
        )
    return [(place + 1) * depth // wanted - 1 for place in range(wanted)]


def student_config(config: Any, architecture: Architecture, layers: Sequence[int], width: int | None = None) -> Any:
    """The configuration of a student.

    Args:
        config, architecture: of the teacher.
        layers: of the teacher, that the student has.
        width: of its hidden states, the teacher's where None; heads stay as wide as they are.

    Raises:
        UserError: the architecture has no smaller students, or none of this width.
    """
    if architecture.shared_layers:
        raise UserError(
            f"the layers of {architecture.name} share their weights, so that fewer of them are no smaller",
            "Choose another teacher",
            "TEACHER",
        )
    found = copy.deepcopy(config)
    found.num_hidden_layers = len(layers)
    if kinds := getattr(config, "layer_types", None):
        found.layer_types = [kinds[layer] for layer in layers]
    if width is None or width == config.hidden_size:
        return found
    if architecture.fused_qkv or architecture.name == "mobilebert":
        raise UserError(
            f"students of {architecture.name} have the width of their teacher", "Leave it out", "--student-width"
        )
    head = config.hidden_size // config.num_attention_heads
    if not 0 < width < config.hidden_size or width % head:
        raise UserError(
            f"{width} is no width for a student of {config.hidden_size} with heads of {head}",
            f"Give a multiple of {head} below {config.hidden_size}",
            "--student-width",
        )
    inner = next(name for name in _INNER if hasattr(config, name))
    setattr(found, inner, round(getattr(config, inner) * width / config.hidden_size))
    if architecture.embedding_width == "embedding_size" and config.embedding_size == config.hidden_size:
        found.embedding_size = width
    found.num_attention_heads = width // head
    found.hidden_size = width
    return found


@torch.no_grad()
def copy_of(base: PreTrainedModel, architecture: Architecture, config: Any, layers: Sequence[int]) -> PreTrainedModel:
    """A masked language model that starts as some layers of another one; where it is narrower, as the first rows and
    columns of the other's matrices.

    Args:
        base: what is copied; stays as it is.
        architecture: of both.
        config: of the copy.
        layers: for each layer of the copy that of `base`.
    """
    # A model keeps the very configuration it is given, and notes in it how it attends.
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    path = architecture.layers.format(layer=r"(\d+)")
    layer = re.compile(rf"{base.base_model_prefix}\.{path}\.")
    theirs = base.state_dict()
    for name, weight in model.state_dict().items():
        if found := layer.match(name):
            name = f"{name[: found.start(1)]}{layers[int(found[1])]}{name[found.end(1) :]}"
        weight.copy_(theirs[name][tuple(slice(size) for size in weight.shape)])
    model.tie_weights()
    return model.eval()


class Seen(NamedTuple):
    """What a model makes of a packed row.

    Attributes:
        hidden: behind each layer that is watched, (tokens, width).
        relations: queries, keys and values of the last layer, (tokens, width) each.
        logits: of the hidden pieces, (pieces, vocabulary); None where there is no head.
        segments: the borders of the texts.
    """

    hidden: list[torch.Tensor]
    relations: list[torch.Tensor]
    logits: torch.Tensor | None
    segments: Segments


@dataclass
class Watched(MaskedModel):
    """A masked language model, run by transformers on packed rows, of which one sees what `Seen` holds.

    Attributes:
        watch: numbers of the layers that are watched.
        head_too: whether the head is of use: not where it is new.
    """

    watch: tuple[int, ...] = ()
    head_too: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hidden: dict[int, torch.Tensor] = {}
        self._projected: dict[str, torch.Tensor] = {}
        packed.keep_trigrams_within(self.base, lambda: self._row)
        self.read_hidden_pieces()
        prefix, last = self.base.base_model_prefix, self.base.config.num_hidden_layers - 1
        for number in self.watch:
            path = f"{prefix}.{self.architecture.layers.format(layer=number)}".replace("\\.", ".")
            self.base.get_submodule(path).register_forward_hook(self._layer_hook(number))
        roles = ("query_key_value",) if self.architecture.fused_qkv else ("query", "key", "value")
        for role in roles:
            (name,) = matching(self.base, self.architecture.pattern(prefix, [role], [last]))
            self.base.get_submodule(name).register_forward_hook(self._projection_hook(role))

    def see(self, batch: Batch) -> Seen:
        """Runs a packed batch."""
        assert batch.segments is not None, "only packed rows are watched"
        self._attend(PACKED_ATTENTION)
        arguments, row = packed.arguments(self.base, self.architecture, self.method, None, batch.inputs, batch.segments)
        logits = None
        if self.head_too:
            self._row = replace(row, read=batch.columns)
            logits = self.base(**arguments).logits[0].float()
        else:
            self._row = row
            getattr(self.base, self.base.base_model_prefix)(**arguments)
        projected = list(self._projected.values())
        relations = projected if len(projected) > 1 else list(projected[0].chunk(3, dim=-1))
        seen = Seen([self._hidden[number] for number in self.watch], relations, logits, batch.segments)
        self._hidden, self._projected = {}, {}
        return seen

    def _layer_hook(self, number: int) -> Any:
        def keep(_module: nn.Module, _arguments: Any, output: Any) -> None:
            self._hidden[number] = (output if isinstance(output, torch.Tensor) else output[0])[0].float()

        return keep

    def _projection_hook(self, role: str) -> Any:
        def keep(_module: nn.Module, _arguments: Any, output: torch.Tensor) -> None:
            self._projected[role] = output[0].float()

        return keep


def watched(
    base: PreTrainedModel,
    architecture: Architecture,
    watch: Sequence[int],
    *,
    head: bool,
    module: nn.Module | None = None,
) -> Watched:
    """A model that is watched; `module` holds its parameters and others that are trained with them."""
    backbone: nn.Module = getattr(base, base.base_model_prefix)
    if not head:
        own = {id(weight) for weight in backbone.parameters()}
        for weight in base.parameters():
            weight.requires_grad_(id(weight) in own)
    count = sum(weight.numel() for weight in backbone.parameters())
    names = ("token-classification", (), "first", count)
    return Watched(base, module or base, architecture, "full", *names, watch=tuple(watch), head_too=head)
