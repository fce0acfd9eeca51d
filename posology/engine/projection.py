"""Linear maps of one input with what adapts them, forward and backward written out.

What autograd and modules around modules cost is avoided: maps of one input (query, key, value) are one product; frozen
weights are kept in the type they are multiplied in, instead of being converted for every micro-batch; only gradients
that somebody asked for are computed.

A row may hold the texts of several *runs*, each with adapters of its own on the same frozen weights: tokens of the
first run, then as many of the second, and so on. Adapters are stacked, so that all runs take part in each product.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from posology.engine.dropout import in_bytes, kept

Tape = list[torch.Tensor | None]
"""What a forward pass keeps for the backward pass, which takes it off the end."""
Gradients = dict[torch.Tensor, torch.Tensor]
"""By parameter."""


class Unsupported(Exception):
    """A module that is not written out here; transformers and PEFT run it."""


class Lora(NamedTuple):
    """output += scaling x dropout(input) down^T up^T; `down` is (rank, inputs), `up` is (outputs, rank)."""

    down: nn.Parameter
    up: nn.Parameter
    scaling: float
    dropout: nn.Module


class Adapter(NamedTuple):
    """What one run adds to one linear map; `factors` are IA3's, of inputs or of outputs."""

    lora: Lora | None = None
    factors: nn.Parameter | None = None
    of_inputs: bool = False


def taken_apart(module: nn.Module) -> tuple[nn.Linear, Adapter]:
    """The linear map inside a module that PEFT may have wrapped, and its adapter.

    Raises:
        Unsupported: an adapter of another kind.
    """
    from peft.tuners import ia3, lora

    adapter = Adapter()
    wrapped: Any = module
    if isinstance(module, lora.Linear | ia3.Linear):
        if not wrapped.merged and not wrapped.disable_adapters:
            adapter = _adapter(wrapped)
        wrapped = wrapped.base_layer
    if type(wrapped) is not nn.Linear:
        raise Unsupported(type(wrapped).__name__)
    return wrapped, adapter


def _adapter(wrapped: Any) -> Adapter:
    if len(wrapped.active_adapters) != 1:
        raise Unsupported("several adapters in one model")
    (name,) = wrapped.active_adapters
    if hasattr(wrapped, "ia3_l"):
        return Adapter(factors=wrapped.ia3_l[name], of_inputs=wrapped.is_feedforward)
    if name in wrapped.lora_variant or wrapped.lora_bias[name]:  # DoRA
        raise Unsupported("a variant of LoRA")
    down, up = wrapped.lora_A[name].weight, wrapped.lora_B[name].weight
    return Adapter(Lora(down, up, wrapped.scaling[name], wrapped.lora_dropout[name]))


class _Stack(NamedTuple):
    """The LoRA of neighbouring runs of about one rank on one linear map, in one type.

    Attributes:
        place: which map of the projection it is.
        outputs: which outputs of the projection the map makes.
        runs: which runs.
        down: (runs, rank, inputs), times what kept inputs are multiplied by; lower ranks are filled up with zeros.
        up: (runs, outputs, rank), times the scaling.
        drops: 256ths by run, (runs, 1, 1), or one number for all.
        scales: what kept inputs are multiplied by, by run.
    """

    place: int
    outputs: slice
    runs: slice
    down: torch.Tensor
    up: torch.Tensor
    drops: int | torch.Tensor
    scales: list[float]


class Projection:
    """Linear maps of one input, their outputs side by side.

    Args:
        modules: the maps, as transformers and PEFT hold them.

    Attributes:
        inputs: how many there are.
        adapters: for each run those of its maps.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        pairs = [taken_apart(module) for module in modules]
        self._linears = [linear for linear, _ in pairs]
        self.inputs = self._linears[0].in_features
        self.adapters = [[adapter for _, adapter in pairs]]
        ends = list(itertools.accumulate(linear.out_features for linear in self._linears))
        self._outputs = [slice(end - linear.out_features, end) for end, linear in zip(ends, self._linears, strict=True)]
        self._weights: dict[torch.dtype, tuple[Any, torch.Tensor, torch.Tensor | None]] = {}
        self._stacks: list[_Stack] = []

    def adopt(self, other: Projection) -> None:
        """Takes the weights of another, and what was made of them, in place of its own; they must be equal."""
        for own, theirs in zip(self._linears, other._linears, strict=True):
            own.weight, own.bias = theirs.weight, theirs.bias
        self._weights = other._weights

    def parameters(self) -> list[nn.Parameter]:
        """All that belong to it, adapters of every run included."""
        found: list[nn.Parameter] = [weight for linear in self._linears for weight in linear.parameters()]
        for adapter in (adapter for own in self.adapters for adapter in own):
            found += [adapter.lora.down, adapter.lora.up] if adapter.lora is not None else []
            found += [adapter.factors] if adapter.factors is not None else []
        return found

    def forward(self, given: torch.Tensor, tape: Tape, training: bool) -> torch.Tensor:
        """(tokens, inputs) -> (tokens, outputs), in the type of `given`."""
        weight, bias = self._weight(given.dtype, anew=True)
        runs, stacks = len(self.adapters), self._stack(given.dtype, training)
        of_inputs, of_outputs = (self._factors(given.dtype, given.device, side) for side in (True, False))
        needs_input = bool(stacks) or of_inputs is not None or any(w.weight.requires_grad for w in self._linears)
        tape.append(given if needs_input else None)
        if of_inputs is not None:
            given = (given.view(runs, -1, given.shape[1]) * of_inputs).view(given.shape)
        out = given @ weight.t() if bias is None else torch.addmm(bias, given, weight.t())
        by_run = out.view(runs, -1, out.shape[1])
        for stack in stacks:
            read, mine = given.view(runs, -1, given.shape[1])[stack.runs], None
            if not isinstance(stack.drops, int) or stack.drops:
                mine = kept(read.shape, stack.drops, read.device)
                read = mine.to(read.dtype).mul_(read)
            low = torch.bmm(read, stack.down.transpose(1, 2))
            by_run[stack.runs, :, stack.outputs].baddbmm_(low, stack.up.transpose(1, 2))
            tape += [mine, low]
        if of_outputs is not None:
            tape.append(out)
            out = (by_run * of_outputs).view(out.shape)
        return out

    def backward(
        self, gradient: torch.Tensor, tape: Tape, found: Gradients, *, onwards: bool = True
    ) -> torch.Tensor | None:
        """The gradient of the input, where it is wanted (`onwards`); those of parameters go into `found`."""
        weight, _ = self._weight(gradient.dtype, anew=False)
        runs, stacks = len(self.adapters), self._stacks
        of_inputs, of_outputs = (self._factors(gradient.dtype, gradient.device, side) for side in (True, False))
        if of_outputs is not None:
            out = tape.pop()
            assert out is not None
            self._factor_gradients((gradient * out).view(runs, -1, out.shape[1]), False, found)
            gradient = (gradient.view(runs, -1, out.shape[1]) * of_outputs).view(gradient.shape)
        by_run = gradient.view(runs, -1, gradient.shape[1])
        kept_of, low_of = [], []
        for _ in stacks:
            low_of.append(tape.pop())
            kept_of.append(tape.pop())
        given = tape.pop()
        scaled = given
        if of_inputs is not None:
            assert given is not None
            scaled = (given.view(runs, -1, given.shape[1]) * of_inputs).view(given.shape)
        to_input = gradient @ weight if onwards or of_inputs is not None else None
        for stack, mine, low in zip(reversed(stacks), kept_of, low_of, strict=True):
            assert scaled is not None and low is not None
            own = by_run[stack.runs, :, stack.outputs]
            to_low = torch.bmm(own, stack.up)
            read = scaled.view(runs, -1, scaled.shape[1])[stack.runs]
            read = read if mine is None else mine.to(read.dtype).mul_(read)
            to_up = torch.bmm(low.transpose(1, 2), own)  # four times faster than its transpose
            self._lora_gradients(stack, torch.bmm(to_low.transpose(1, 2), read), to_up, found)
            if to_input is not None and onwards:
                to_read = torch.bmm(to_low, stack.down)
                to_read = to_read if mine is None else to_read.mul_(mine)
                to_input.view(runs, -1, to_input.shape[1])[stack.runs].add_(to_read)
        self._own_gradients(gradient, scaled, found)
        if of_inputs is not None:
            assert given is not None and to_input is not None
            self._factor_gradients((to_input * given).view(runs, -1, given.shape[1]), True, found)
            to_input = (to_input.view(runs, -1, given.shape[1]) * of_inputs).view(given.shape)
        return to_input if onwards else None

    def _weight(self, dtype: torch.dtype, *, anew: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """All weights, (outputs, inputs), and biases in a type.

        Frozen ones are made once. Trained ones are made by each forward pass and kept for the backward pass: fused
        optimisers do not count their changes, so that there is no telling whether a copy is out of date.
        """
        own = [weight for linear in self._linears for weight in linear.parameters()]
        trained = any(weight.requires_grad for weight in own)
        state = None if trained else [(weight.data_ptr(), weight._version) for weight in own]
        if dtype not in self._weights or (anew and trained) or self._weights[dtype][0] != state:
            weight = _joined([linear.weight for linear in self._linears], dtype)
            biases = [linear.bias for linear in self._linears if linear.bias is not None]
            bias = _joined(biases, dtype) if biases else None
            self._weights[dtype] = (state, weight, bias)
        return self._weights[dtype][1:]

    def _stack(self, dtype: torch.dtype, training: bool) -> list[_Stack]:
        """LoRA of all runs, map by map, for this forward pass and the backward pass after it."""
        self._stacks = []
        for place, outputs in enumerate(self._outputs):
            loras = [adapters[place].lora for adapters in self.adapters]
            for runs in _alike(loras):
                self._stacks.append(_stack(place, outputs, runs, loras[runs], dtype, training))
        return self._stacks

    def _lora_gradients(self, stack: _Stack, down: torch.Tensor, up: torch.Tensor, found: Gradients) -> None:
        for run, own in enumerate(self.adapters[stack.runs]):
            if (lora := own[stack.place].lora) is not None and lora.down.requires_grad:
                rank = lora.down.shape[0]
                found[lora.down] = down[run, :rank].to(lora.down.dtype, copy=True).mul_(stack.scales[run])
                found[lora.up] = up[run, :rank].t().to(lora.up.dtype, copy=True).mul_(lora.scaling)

    def _factors(self, dtype: torch.dtype, device: torch.device, of_inputs: bool) -> torch.Tensor | None:
        """IA3's factors of all runs, (runs, 1, inputs or outputs); None where no run has some."""
        if not any(
            adapter.factors is not None and adapter.of_inputs is of_inputs for own in self.adapters for adapter in own
        ):
            return None
        width = self.inputs if of_inputs else self._outputs[-1].stop
        factors = torch.ones(len(self.adapters), 1, width, dtype=dtype, device=device)
        for run, own in enumerate(self.adapters):
            for adapter, outputs in zip(own, self._outputs, strict=True):
                if adapter.factors is not None and adapter.of_inputs is of_inputs:
                    if of_inputs and len(own) > 1:
                        raise Unsupported("factors of an input that several maps share")
                    factors[run, 0, slice(None) if of_inputs else outputs] = adapter.factors.detach().flatten()
        return factors

    def _factor_gradients(self, products: torch.Tensor, of_inputs: bool, found: Gradients) -> None:
        sums = products.sum(1, dtype=torch.float32)
        for own, total in zip(self.adapters, sums, strict=True):
            for adapter, outputs in zip(own, self._outputs, strict=True):
                factors = adapter.factors
                if factors is not None and adapter.of_inputs is of_inputs and factors.requires_grad:
                    found[factors] = total[slice(None) if of_inputs else outputs].view(factors.shape)

    def _own_gradients(self, gradient: torch.Tensor, given: torch.Tensor | None, found: Gradients) -> None:
        weights = [linear.weight.requires_grad for linear in self._linears]
        whole = gradient.t() @ given if all(weights) and given is not None else None
        for linear, outputs in zip(self._linears, self._outputs, strict=True):
            if linear.weight.requires_grad:
                assert given is not None
                own = gradient[:, outputs].t() @ given if whole is None else whole[outputs]
                found[linear.weight] = own.to(linear.weight.dtype)
            if linear.bias is not None and linear.bias.requires_grad:
                found[linear.bias] = gradient[:, outputs].sum(0, dtype=torch.float32).to(linear.bias.dtype)


@torch.no_grad()
def _joined(weights: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Side by side in a type; one alone in its own type is not copied."""
    parts = [weight.detach().to(dtype) for weight in weights]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _alike(loras: Sequence[Lora | None]) -> list[slice]:
    """Neighbouring runs that are stacked: of ranks up to twice the lowest, so that little is multiplied by zeros."""
    found: list[slice] = []
    lowest = 0
    for run, lora in enumerate(loras):
        if lora is None:
            continue
        rank = lora.down.shape[0]
        if found and found[-1].stop == run and lowest <= rank <= 2 * lowest:
            found[-1] = slice(found[-1].start, run + 1)
        else:
            found.append(slice(run, run + 1))
            lowest = rank
    return found


@torch.no_grad()
def _stack(
    place: int, outputs: slice, runs: slice, loras: Sequence[Lora | None], dtype: torch.dtype, training: bool
) -> _Stack:
    own = [lora for lora in loras if lora is not None]
    rank, device = max(lora.down.shape[0] for lora in own), own[0].down.device
    down = torch.zeros(len(own), rank, own[0].down.shape[1], dtype=dtype, device=device)
    up = torch.zeros(len(own), own[0].up.shape[0], rank, dtype=dtype, device=device)
    drops = [in_bytes(getattr(lora.dropout, "p", 0.0)) if training else 0 for lora in own]
    scales = [256 / (256 - dropped) for dropped in drops]
    for run, lora in enumerate(own):
        down[run, : lora.down.shape[0]] = lora.down * scales[run]
        up[run, :, : lora.up.shape[1]] = lora.up * lora.scaling
    if len(set(drops)) == 1:
        return _Stack(place, outputs, runs, down, up, drops[0], scales)
    by_run = torch.tensor(drops, dtype=torch.uint8, device=device)[:, None, None]
    return _Stack(place, outputs, runs, down, up, by_run, scales)
