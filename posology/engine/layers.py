"""The layers of BERT and its kin, each as one step with a backward pass of its own.

    hidden ─┬─ query, key, value ── attention ── output ── dropout ─(+)─ norm ─┬─ up ── activation ── down ── dropout ─(+)─ norm
            └──────────────────────────────────────────────────────┘           └──────────────────────────────────┘

It computes what the modules of transformers and PEFT compute, with the parameters they hold, and is checked against
them. What it leaves out is what they cost beside the products: conversions, copies, graph nodes, gradients nobody
asked for; and in the last layer all positions that no head reads. Hidden states are kept in float32 between the
products, as autocast keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from posology.engine.architectures import Architecture
from posology.engine.attention import Call, Segments, attend, attend_backward
from posology.engine.dropout import in_bytes, kept
from posology.engine.packed import Row
from posology.engine.projection import Gradients, Projection, Shares, Tape, Unsupported
from posology.engine.virtual import PrefixFeed


class Names(NamedTuple):
    """Where the parts of a layer are inside it; an architecture may have no dropout at one of the two places."""

    query_key_value: tuple[str, ...]
    attention_output: str
    up: str
    down: str
    norms: tuple[str, str]
    dropouts: tuple[str | None, str | None]
    attention_dropout: str


class Input(NamedTuple):
    """What a layer reads beside the hidden states.

    Attributes:
        segments: borders of the texts.
        prefix: keys and values before each text's own, (heads, tokens, width) each, or None twice.
        read: the positions that anybody reads of the result; None for all.
        dtype: in which matrices are multiplied.
        training: whether dropout drops.
        shares: whose tokens they are, and whose positions those that are read; None where all are of one run.
    """

    segments: Segments
    prefix: tuple[torch.Tensor | None, torch.Tensor | None]
    read: torch.Tensor | None
    dtype: torch.dtype
    training: bool
    shares: tuple[Shares, Shares] | None = None


_ACTIVATIONS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = {
    "GELUActivation": (nn.functional.gelu, torch.ops.aten.gelu_backward),
    "ReLU": (torch.relu, lambda gradient, given: torch.ops.aten.threshold_backward(gradient, given, 0)),
}


class _Norm:
    """norm(residual + dropout(output))."""

    def __init__(self, norm: nn.Module, dropout: nn.Module | None):
        from peft.tuners.ln_tuning.layer import LNTuningLayer

        if isinstance(norm, LNTuningLayer):
            norm = norm.ln_tuning_layers["default"]
        if not isinstance(norm, nn.LayerNorm):
            raise Unsupported(type(norm).__name__)
        self._norm, self._dropout = norm, dropout

    def parameters(self) -> list[nn.Parameter]:
        return list(self._norm.parameters())

    def forward(self, output: torch.Tensor, residual: torch.Tensor, tape: Tape, training: bool) -> torch.Tensor:
        dropped = self._dropped(training)
        mine = kept(output.shape, dropped, output.device) if dropped else None
        total = _added(residual, output, mine, dropped)
        norm = self._norm
        result, mean, deviation = torch.native_layer_norm(
            total, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        tape += [mine, total, mean, deviation]
        return result

    def backward(
        self, gradient: torch.Tensor, dtype: torch.dtype, tape: Tape, found: Gradients, training: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of the output, in `dtype`, and of the residual."""
        deviation, mean, total, mine = (tape.pop() for _ in range(4))
        norm, dropped = self._norm, self._dropped(training)
        wanted = [True, norm.weight.requires_grad, norm.bias.requires_grad]
        to_total, to_weight, to_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, total, norm.normalized_shape, mean, deviation, norm.weight, norm.bias, wanted
        )
        if wanted[1]:
            found[norm.weight] = to_weight
        if wanted[2]:
            found[norm.bias] = to_bias
        if mine is None:
            # A copy even in float32: what is added to the residual later must not change it.
            return to_total.to(dtype, copy=True), to_total
        nothing = to_total.new_zeros(1)
        return torch.addcmul(nothing, to_total, mine, value=256 / (256 - dropped)).to(dtype), to_total

    def _dropped(self, training: bool) -> int:
        return in_bytes(getattr(self._dropout, "p", 0.0)) if training else 0


def _added(residual: torch.Tensor, output: torch.Tensor, mine: torch.Tensor | None, dropped: int) -> torch.Tensor:
    if mine is None:
        return residual + output
    return torch.addcmul(residual, output.to(residual.dtype), mine, value=256 / (256 - dropped))


class Layer:
    """One layer.

    Args:
        module: it in transformers, PEFT's adapters included.
        names: of its parts.
        heads: of attention.

    Attributes:
        projections: its linear maps.
        shares: of the row that comes next, where several runs share it: whose tokens are those of the row, and whose
            those that are read of the last layer.

    Raises:
        Unsupported: it has parts that are not written out here.
    """

    def __init__(self, module: nn.Module, names: Names, heads: int):
        def part(name: str | None) -> nn.Module | None:
            return None if name is None else module.get_submodule(name)

        self._heads, self._parameters = heads, list[nn.Parameter]()
        self.shares: tuple[Shares, Shares] | None = None
        self.projections = [
            Projection([module.get_submodule(name) for name in own])
            for own in (names.query_key_value, (names.attention_output,), (names.up,), (names.down,))
        ]
        self._norms = [
            _Norm(module.get_submodule(norm), part(dropout))
            for norm, dropout in zip(names.norms, names.dropouts, strict=True)
        ]
        self._attention_dropout = part(names.attention_dropout)
        activation = next(
            (type(own).__name__ for own in module.modules() if type(own).__name__ in _ACTIVATIONS), "another activation"
        )
        if activation not in _ACTIVATIONS:
            raise Unsupported(activation)
        self._activate, self._activate_backward = _ACTIVATIONS[activation]

    def trained(self) -> list[nn.Parameter]:
        """Its parameters that are trained, adapters of every run included."""
        if not self._parameters:
            parts: list[Projection | _Norm] = [*self.projections, *self._norms]
            self._parameters = [weight for part in parts for weight in part.parameters()]
        return [weight for weight in self._parameters if weight.requires_grad]

    def share(self, runs: Sequence[Layer]) -> None:
        """Serves several runs on the same frozen weights, the tokens of each after those of the one before it.

        Args:
            runs: for each its own layer, whose adapters are taken; this one may be among them.
        """
        for place, own in enumerate(self.projections):
            own.adapters = [run.projections[place].adapters[0] for run in runs]
        self._parameters = []

    def adopt(self, other: Layer) -> None:
        """Takes the frozen matrices of another layer in place of its own equal ones, which are freed."""
        for own, theirs in zip(self.projections, other.projections, strict=True):
            own.adopt(theirs)
        self._parameters = []

    def __call__(self, hidden: torch.Tensor, given: Input) -> torch.Tensor:
        """(tokens, width) -> (tokens or positions read, width)."""
        trained = self.trained()
        if torch.is_grad_enabled() and (hidden.requires_grad or trained or given.prefix[0] is not None):
            return _Step.apply(hidden, *given.prefix, self, given, trained, *trained)
        return self.forward(hidden, given, [])

    def forward(self, hidden: torch.Tensor, given: Input, tape: Tape) -> torch.Tensor:
        """The forward pass; `tape` gets what `backward` needs."""
        query_key_value, output, up, down = self.projections
        training = given.training
        whole, rest = _shares(given)
        context = self._attend(query_key_value.forward(hidden.to(given.dtype), tape, training, whole), given, tape)
        if given.read is not None:
            hidden, context = hidden[given.read], context[given.read]
        hidden = self._norms[0].forward(output.forward(context, tape, training, rest), hidden, tape, training)
        before = up.forward(hidden.to(given.dtype), tape, training, rest)
        tape.append(before)
        after = down.forward(self._activate(before), tape, training, rest)
        return self._norms[1].forward(after, hidden, tape, training)

    def backward(
        self, gradient: torch.Tensor, given: Input, tokens: int, tape: Tape, *, onwards: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor | None], Gradients]:
        """The gradients of the hidden states (where wanted: `onwards`), of the prefix, and of the parameters."""
        query_key_value, output, up, down = self.projections
        found: Gradients = {}
        training = given.training
        whole, rest = _shares(given)
        own, residual = self._norms[1].backward(gradient, given.dtype, tape, found, training)
        to_after = down.backward(own, tape, found, training, rest)
        to_before = up.backward(self._activate_backward(to_after, tape.pop()), tape, found, training, rest)
        assert to_before is not None
        residual += to_before
        own, residual = self._norms[0].backward(residual, given.dtype, tape, found, training)
        to_context = output.backward(own, tape, found, training, rest)
        assert to_context is not None
        if given.read is not None:
            to_context = to_context.new_zeros(tokens, to_context.shape[1]).index_copy_(0, given.read, to_context)
            residual = residual.new_zeros(tokens, residual.shape[1]).index_copy_(0, given.read, residual)
        keys = onwards or query_key_value.trains(1)
        to_projections, prefix = self._attend_backward(to_context, given, tape, keys=keys)
        to_hidden = query_key_value.backward(to_projections, tape, found, training, whole, onwards=onwards)
        return (None if to_hidden is None else residual.add_(to_hidden)), prefix, found

    def _attend(self, projected: torch.Tensor, given: Input, tape: Tape) -> torch.Tensor:
        """Attention on query, key and value side by side, (tokens, 3 x width) -> (tokens, width)."""
        call, plan = self._call(projected, given), given.segments.plan(self._heads)
        width = projected.shape[1] // 3 // self._heads
        gathered = projected.view(-1, width).index_select(0, plan.gather_fused)
        rows = list(gathered.chunk(3))
        out, saved = attend(rows, given.prefix, call)
        tape += [*saved, gathered]
        return out.index_select(0, plan.scatter).view(len(projected), -1)

    def _attend_backward(
        self, gradient: torch.Tensor, given: Input, tape: Tape, *, keys: bool
    ) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        plan = given.segments.plan(self._heads)
        gathered = tape.pop()
        assert gathered is not None
        count = 2 * len(plan.buckets)
        saved = tape[-count:]
        del tape[-count:]
        own = gradient.reshape(-1, gathered.shape[1]).index_select(0, plan.gather)
        found = torch.empty_like(gathered)
        prefix = attend_backward(
            own, gathered.chunk(3), given.prefix, saved, self._call(gradient, given), found.chunk(3), keys=keys
        )
        return found.index_select(0, plan.scatter_fused).view(len(gradient), -1), prefix

    def _call(self, projected: torch.Tensor, given: Input) -> Call:
        dropped = in_bytes(getattr(self._attention_dropout, "p", 0.0)) if given.training else 0
        width = self.projections[1].inputs // self._heads
        return Call(given.segments, self._heads, width**-0.5, dropped, False, None)


def _shares(given: Input) -> tuple[Shares | None, Shares | None]:
    """Whose the tokens of the row are, and whose those behind attention."""
    if given.shares is None:
        return None, None
    return given.shares[0], given.shares[0] if given.read is None else given.shares[1]


class _Step(torch.autograd.Function):
    """A layer in autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        prefix_key: torch.Tensor | None,
        prefix_value: torch.Tensor | None,
        layer: Layer,
        given: Input,
        trained: Sequence[nn.Parameter],
        *_: nn.Parameter,
    ) -> torch.Tensor:
        tape: Tape = []
        given = given._replace(prefix=(prefix_key, prefix_value))
        with torch.autocast(hidden.device.type, enabled=False):
            out = layer.forward(hidden, given, tape)
        ctx.layer, ctx.given, ctx.trained, ctx.tokens = layer, given._replace(prefix=(None, None)), trained, len(hidden)
        ctx.save_for_backward(prefix_key, prefix_value, *tape)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        prefix_key, prefix_value, *tape = ctx.saved_tensors
        given = ctx.given._replace(prefix=(prefix_key, prefix_value))
        with torch.autocast(gradient.device.type, enabled=False):
            to_hidden, prefix, found = ctx.layer.backward(
                gradient, given, ctx.tokens, tape, onwards=ctx.needs_input_grad[0]
            )
        return (to_hidden, *prefix, None, None, None, *(found.get(weight) for weight in ctx.trained))


def write_out(base: PreTrainedModel, architecture: Architecture, current: Callable[[], Row | None]) -> list[Layer]:
    """Lets packed rows go through `Layer` instead of the modules of transformers.

    Args:
        base: the task model, adapters included; changed in place.
        architecture: of it.
        current: gives the row that is being read, or None where texts are padded.

    Returns:
        The layers; none where they are not written out here, so that transformers runs them.
    """
    facts = architecture.post_norm
    if facts is None:
        return []
    role = {name: pattern.replace("\\.", ".") for name, pattern in architecture.roles.items()}
    names = Names(
        (role["query"], role["key"], role["value"]),
        role["attention_output"],
        role["up"],
        role["down"],
        facts.norms,
        facts.dropouts,
        facts.attention_dropout,
    )
    config: Any = base.config
    depth = config.num_hidden_layers
    path = f"{base.base_model_prefix}.{architecture.layers}".replace("\\.", ".")
    modules = [base.get_submodule(path.format(layer=number)) for number in range(depth)]
    try:
        layers = [Layer(module, names, config.num_attention_heads) for module in modules]
    except Unsupported:
        return []
    for number, (layer, module) in enumerate(zip(layers, modules, strict=True)):
        module.forward = _forward(layer, module, current, number, last=number == depth - 1)
    return layers


def _forward(
    layer: Layer, module: nn.Module, current: Callable[[], Row | None], number: int, *, last: bool
) -> Callable[..., Any]:
    plain = module.forward

    def forward(hidden: torch.Tensor, *others: Any, prefix: PrefixFeed | None = None, **named: Any) -> Any:
        row = current()
        if row is None:
            return plain(hidden, *others, **named, **({} if prefix is None else {"prefix": prefix}))
        if number == 0 and row.entering is not None:
            hidden = row.entering[None]
        if row.layers is not None and number not in row.layers:
            return hidden
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        key, value = (None, None) if prefix is None else (part.to(dtype) for part in prefix.take())
        given = Input(row.segments, (key, value), row.read if last else None, dtype, module.training, layer.shares)
        return layer(hidden[0], given)[None]

    return forward
