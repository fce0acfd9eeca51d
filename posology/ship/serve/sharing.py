"""One backbone in memory with any number of adapters and heads over it.

    windows of adapter 1  ┐                                                        ┌─ head 1
    windows of adapter 2  ├─ one packed row ── layers, each token with its adapter ┼─ head 2
    windows of none       ┘                                                        ├─ head 3   (heads over the bare
                                                                                   └─ head 4    backbone share a pass)

It is how runs train in company (`posology.engine.company`), without what only training needs. An adapter is loaded onto a
task model whose frozen weights are those of the backbone already in memory; what stays of it is what it adds to the linear
maps, in the type of the products, and its head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from posology.engine.adapted import Adapted
from posology.engine.architectures import architecture_of
from posology.engine.artifact import load_onto
from posology.engine.attention import Segments
from posology.engine.backbone import Source, load_config, load_model, load_tokenizer, on_meta, prepare_config
from posology.engine.batch import pack
from posology.engine.encode import Window
from posology.engine.methods import adapt
from posology.engine.packed import Row
from posology.engine.precision import decide
from posology.engine.predictor import Predictor, outputs_of
from posology.engine.projection import Adapter, Projection, Shares, Tape, Unsupported
from posology.engine.recipe import Recipe
from posology.errors import UserError
from posology.ship.serve.batching import Unit

METHODS = ("lora", "rslora", "ia3", "head")
"""Methods whose models share a backbone: what they add looks at one token at a time and leaves its weights alone."""


class Added(NamedTuple):
    """What an adapter adds to the linear maps of one input, side by side.

    Attributes:
        down, up: (inputs, ranks) and (ranks, outputs) of LoRA, its scaling included.
        inputs, outputs: IA3's factors, (inputs,) and (outputs,).
    """

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    inputs: torch.Tensor | None = None
    outputs: torch.Tensor | None = None


class Track:
    """An adapter: by layer and place in it what it adds, None for nothing. The bare backbone is one too."""

    def __init__(self, added: Sequence[Sequence[Added | None]]):
        self.added = added


class SharedProjection(Projection):
    """Linear maps of one input for rows of several adapters, for prediction only.

    Args:
        own: the maps of the bare backbone, whose weights are from then on held once, in `dtype`.
        dtype: of the products.

    Attributes:
        present: what the adapters of the row that comes next add, in its order.
    """

    def __init__(self, own: Projection, dtype: torch.dtype):
        super().__init__(own._linears)
        self.present: list[Added | None] = []
        with torch.no_grad():
            for linear in self._linears:
                linear.weight.data = linear.weight.data.to(dtype)
            weight, self._bias = self._weight(dtype, anew=True)
            for linear, outputs in zip(self._linears, self._outputs, strict=True):
                linear.weight.data = weight[outputs]
        self._joined = weight
        self._weights.clear()

    def added(self, adapters: Sequence[Adapter]) -> Added | None:
        """What an adapter of these maps adds, ready to be multiplied.

        Raises:
            Unsupported: it cannot be told apart by token.
        """
        loras = [(own.lora, place) for own, place in zip(adapters, self._outputs, strict=True) if own.lora is not None]
        factors = [own.factors for own in adapters if own.factors is not None and own.of_inputs]
        outputs = [
            (own.factors, place)
            for own, place in zip(adapters, self._outputs, strict=True)
            if own.factors is not None and not own.of_inputs
        ]
        if not (loras or factors or outputs):
            return None
        if factors and len(adapters) > 1:
            raise Unsupported("factors of an input that several maps share")
        like = self._joined
        down = up = of_outputs = None
        with torch.no_grad():
            if loras:
                down = torch.cat([lora.down for lora, _ in loras]).to(like).t()
                up = like.new_zeros(down.shape[1], len(like))
                ends = itertools.accumulate(len(lora.down) for lora, _ in loras)
                for (lora, place), end in zip(loras, ends, strict=True):
                    up[end - len(lora.down) : end, place] = (lora.up * lora.scaling).to(like).t()
            if outputs:
                of_outputs = like.new_ones(len(like))
                for factor, place in outputs:
                    of_outputs[place] = factor.flatten().to(like)
            return Added(down, up, factors[0].detach().flatten().to(like) if factors else None, of_outputs)

    def parameters(self) -> list[nn.Parameter]:
        """None that anybody trains."""
        return []

    def forward(self, given: torch.Tensor, tape: Tape, training: bool, shares: Shares | None = None) -> torch.Tensor:
        """(tokens, inputs) -> (tokens, outputs); `shares` are the tokens of each that is `present`."""
        assert shares is not None
        there = [(own, rows) for own, rows in zip(self.present, shares, strict=True) if own is not None]
        if any(own.inputs is not None for own, _ in there):
            given = given.clone()  # others may read it as it was
        for own, rows in there:
            if own.inputs is not None:
                given[rows].mul_(own.inputs)
        out = given @ self._joined.t() if self._bias is None else torch.addmm(self._bias, given, self._joined.t())
        for own, rows in there:
            mine = out[rows]
            if own.down is not None and own.up is not None:
                mine.addmm_(given[rows] @ own.down, own.up)
            if own.outputs is not None:
                mine.mul_(own.outputs)
        return out


class _Handed(nn.Module):
    """Stands in a task model for its backbone, and hands on hidden states that were computed elsewhere."""

    hidden: torch.Tensor

    def __init__(self, pooler: nn.Module | None):
        super().__init__()
        self.pooler = pooler

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPooling:
        pooled = None if self.pooler is None else self.pooler(self.hidden)
        return BaseModelOutputWithPooling(last_hidden_state=cast(Any, self.hidden), pooler_output=pooled)


class Head:
    """What is left of a task model above its backbone.

    Args:
        adapted: loaded; all below its head is taken out of it.
    """

    def __init__(self, adapted: Adapted):
        base = adapted.base
        backbone = getattr(base, base.base_model_prefix)
        self._handed = _Handed(getattr(backbone, "pooler", None))
        setattr(base, base.base_model_prefix, self._handed)
        _unwrap(base)
        self._base = base.eval()
        self._tagging = adapted.kind == "token-classification"

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(reads, width) -> (reads, classes or tags), in float32."""
        self._handed.hidden = hidden[None] if self._tagging else hidden[:, None]
        logits: torch.Tensor = self._base(input_ids=None).logits
        return (logits[0] if self._tagging else logits).float()


@dataclass(eq=False)
class Reading:
    """A text as it is read for one adapter, or for several heads over the bare backbone.

    Attributes:
        track: the adapter.
        heads: that read what comes out.
        reads: what of each window: `first`, `mean` or `words`.
        values: logits for each head: (classes,), or (words, tags) with NaN where a word was not read.
        windows: how many there are.
    """

    track: Track
    heads: tuple[Head, ...]
    reads: str
    values: list[np.ndarray]
    windows: int

    def take(self, head: int, window: Window, logits: np.ndarray) -> None:
        """Notes what a head made of a window: (1, classes), whose mean over the windows is the answer, or (words, tags)."""
        if self.reads == "words":
            self.values[head][window.words] = logits
        else:
            self.values[head] += logits[0] / self.windows


class Loaded(NamedTuple):
    """An artifact on a shared backbone."""

    track: Track
    head: Head
    reads: str
    predictor: Predictor


class Backbone:
    """A backbone in memory; an engine of `posology.ship.serve.batching`.

    Args:
        source: where it is.
        recipe: of an artifact: says how it is held and multiplied.

    Attributes:
        source, tokenizer, precision: of it.
        parameters: how many it has.
        bare: the track of heads that read it as it is.

    Raises:
        UserError: it cannot be loaded.
        Unsupported: its layers are not written out, so that nothing can share it.
    """

    def __init__(self, source: Source, recipe: Recipe):
        if architecture_of(load_config(source), source.family).post_norm is None:
            raise Unsupported("layers that are not written out")
        self.source, self.tokenizer = source, load_tokenizer(source)
        self.precision = decide(recipe.precision)
        kind = "sequence-classification"
        base, _ = load_model(source, kind, ["0", "1"], recipe, method="head")
        self.parameters = sum(
            weight.numel() for weight in getattr(base, base.base_model_prefix).parameters(recurse=True)
        )
        self._carrier = adapt(base, "head", recipe, kind, family=source.family, attention=self.precision.attention)
        self._carrier.module.requires_grad_(False).eval().to(self.precision.device)
        if not self._carrier.layers:
            raise Unsupported("an activation that is not written out")
        dtype = torch.bfloat16 if self.precision.bf16 else torch.float32
        for layer in self._carrier.layers:
            layer.projections = [SharedProjection(own, dtype) for own in layer.projections]
        self.bare = Track([[None] * len(layer.projections) for layer in self._carrier.layers])

    def load(self, folder: Path, record: dict[str, Any]) -> Loaded:
        """Loads an artifact without another copy of the weights.

        Raises:
            UserError: it is damaged.
            Unsupported: it adapts what is shared here.
        """
        recipe = Recipe(**record["recipe"])
        config = prepare_config(
            load_config(self.source),
            outputs_of(record["kind"], record["labels"]),
            recipe,
            mean=record.get("pooling") == "mean",
        )
        base = on_meta(config, record["kind"])
        self._fill(base, tuple(f"{name}." for name in record["head"]))
        predictor = load_onto(base, self.tokenizer, folder, record)
        adapted = predictor.adapted
        track = self._track(adapted)
        reads = "words" if adapted.kind == "token-classification" else adapted.pooling
        return Loaded(track, Head(adapted), reads, predictor)

    def _fill(self, base: PreTrainedModel, heads: tuple[str, ...]) -> None:
        """Gives a model without data the backbone's own tensors, and zeros where its head will be loaded."""
        shared: dict[str, Any] = {
            **dict(self._carrier.base.named_parameters()),
            **dict(self._carrier.base.named_buffers()),
        }
        below = f"{base.base_model_prefix}."
        for name, empty in [*base.named_parameters(), *base.named_buffers()]:
            path, _, leaf = name.rpartition(".")
            module: nn.Module = base.get_submodule(path)
            if name.startswith(below) and not name.startswith(heads) and name in shared:
                own = shared[name]
            else:
                own = torch.zeros(empty.shape, dtype=empty.dtype)
            if leaf in module._parameters:
                own = own if isinstance(own, nn.Parameter) else nn.Parameter(own, requires_grad=False)
                module._parameters[leaf] = own
            else:
                module._buffers[leaf] = own

    def _track(self, adapted: Adapted) -> Track:
        """The adapters of a loaded model, apart from it.

        Raises:
            Unsupported: there are some that layers do not know, or other weights of its own.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        if len(adapted.layers) != len(self._carrier.layers):
            raise Unsupported("its layers")
        wrapped = sum(isinstance(part, BaseTunerLayer) for part in adapted.base.modules())
        found = [[place.adapters[0] for place in layer.projections] for layer in adapted.layers]
        known = sum(own != Adapter() for layer in found for place in layer for own in place)
        saved = [name for name, part in adapted.base.named_modules() if isinstance(part, ModulesToSaveWrapper)]
        if wrapped != known or not all(name.startswith(adapted.head) for name in saved):
            raise Unsupported("weights of its own outside of the layers' linear maps and the head")
        added = [
            [_shared(own).added(place) for own, place in zip(layer.projections, own_layer, strict=True)]
            for layer, own_layer in zip(self._carrier.layers, found, strict=True)
        ]
        return self.bare if adapted.method == "head" else Track(added)

    @torch.inference_mode()
    def run(self, units: Sequence[Unit]) -> None:
        """Answers windows of any adapters in one row."""
        units = sorted(
            units, key=lambda unit: (id(unit.reading.track), *map(id, unit.reading.heads), unit.reading.reads)
        )
        parts = [
            list(own)
            for _, own in itertools.groupby(
                units, key=lambda unit: (unit.reading.track, unit.reading.heads, unit.reading.reads)
            )
        ]
        with self.precision.autocast():
            for part, hidden in zip(parts, self._hidden(parts), strict=True):
                reading: Reading = part[0].reading
                sizes = [len(unit.window.words) if reading.reads == "words" else 1 for unit in part]
                for place, head in enumerate(reading.heads):
                    logits = head(hidden).cpu().numpy()
                    if not np.isfinite(logits).all():
                        raise UserError(
                            "the model's answers are not finite numbers", "Train it anew at a lower learning rate"
                        )
                    for unit, own in zip(part, np.split(logits, np.cumsum(sizes)[:-1]), strict=True):
                        unit.reading.take(place, unit.window, own)

    def _hidden(self, parts: Sequence[Sequence[Unit]]) -> list[torch.Tensor]:
        """What the heads of each part read, (reads, width)."""
        windows = [unit.window for part in parts for unit in part]
        batch = pack(windows, self.precision.device)
        segments = cast(Segments, batch.segments)
        whole, reads, first = [], [], 0
        for part in parts:
            places = slice(first, first + len(part))
            first += len(part)
            starts, lengths = segments.starts[places], segments.lengths[places]
            whole.append(slice(int(starts[0]), int(starts[-1] + lengths[-1])))
            how = part[0].reading.reads
            if how == "words":
                reads.append(
                    np.concatenate([unit.window.columns + start for unit, start in zip(part, starts, strict=True)])
                )
            else:
                reads.append(starts if how == "first" else np.arange(whole[-1].start, whole[-1].stop))
        ends = np.cumsum([0, *map(len, reads)]).tolist()
        rest = [slice(*pair) for pair in itertools.pairwise(ends)]
        tracks = [part[0].reading.track for part in parts]
        for number, layer in enumerate(self._carrier.layers):
            layer.shares = (whole, rest)
            for place, own in enumerate(layer.projections):
                _shared(own).present = [track.added[number][place] for track in tracks]
        depth = range(len(self._carrier.layers))
        read = segments.tensor(np.concatenate(reads))
        hidden = self._carrier.body(batch.inputs, segments, depth, read=read).split([len(own) for own in reads])
        return [
            Row(Segments(np.array([len(unit.window.ids) for unit in part]), segments.device)).means(own)
            if part[0].reading.reads == "mean"
            else own
            for part, own in zip(parts, hidden, strict=True)
        ]


class Alone:
    """A model with weights of its own; an engine of `posology.ship.serve.batching`."""

    def __init__(self, predictor: Predictor):
        predictor.merge()
        predictor.adapted.module.eval()
        self._adapted, self._precision = predictor.adapted, predictor.precision

    @torch.inference_mode()
    def run(self, units: Sequence[Unit]) -> None:
        """Answers windows."""
        with self._precision.autocast():
            batch = self._adapted.batch([unit.window for unit in units], self._precision.device)
            logits = self._adapted.answers(batch).cpu().numpy()
        if not np.isfinite(logits).all():
            raise UserError("the model's answers are not finite numbers", "Train it anew at a lower learning rate")
        sizes = [len(unit.window.words) if unit.reading.reads == "words" else 1 for unit in units]
        for unit, own in zip(units, np.split(logits, np.cumsum(sizes)[:-1]), strict=True):
            unit.reading.take(0, unit.window, own)


def shareable(record: dict[str, Any]) -> bool:
    """Whether an artifact may go onto a shared backbone, by what it says of itself."""
    return record["method"] in METHODS and not record["virtual_tokens"] and not record["recipe"].get("quantise")


def _shared(projection: Projection) -> SharedProjection:
    assert isinstance(projection, SharedProjection)
    return projection


def _unwrap(base: nn.Module) -> None:
    """Takes PEFT's wrappers off a head, with the copy of its first weights that they keep."""
    from peft.utils import ModulesToSaveWrapper

    for name, part in list(base.named_modules()):
        wrapper: Any = part
        if isinstance(part, ModulesToSaveWrapper):
            base.set_submodule(name, wrapper.modules_to_save[wrapper.active_adapters[0]])
