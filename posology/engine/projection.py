"""Linear maps of one input with what adapts them, forward and backward written out.

What autograd and modules around modules cost is avoided: maps of one input (query, key, value) are one product; frozen
weights are kept in the type they are multiplied in, instead of being converted for every micro-batch; only gradients
that somebody asked for are computed.

A row may hold the texts of several *runs*, each with adapters of its own on the same frozen weights: the tokens of the
first run, then those of the second, and so on. All take part in the product with the frozen weights; the small products
of adapters are made run by run. (Low ranks of several runs side by side, with what is not a token's own set to zero,
saved a hundredth of a step on rows of 4,400 tokens, and a run that diverges would have taken its neighbours with it;
torch's grouped products saved nothing.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
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


Shares = Sequence[slice]
"""For each run its tokens in a row."""


def shares_of(counts: Iterable[int]) -> Shares:
    """Shares of so many tokens for each run, in the order of the row; a run may have none."""
    ends = itertools.accumulate(counts, initial=0)
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


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

    def trains(self, place: int) -> bool:
        """Whether one of the maps, or what adapts it in any run, is trained."""
        adapters = [own[place] for own in self.adapters]
        weights = any(weight.requires_grad for weight in self._linears[place].parameters())
        return weights or any(one.lora is not None or one.factors is not None for one in adapters)

    def forward(self, given: torch.Tensor, tape: Tape, training: bool, shares: Shares | None = None) -> torch.Tensor:
        """(tokens, inputs) -> (tokens, outputs), in the type of `given`; `shares` where there are several runs."""
        weight, bias = self._weight(given.dtype, anew=True)
        loras = self._loras(shares)
        of_inputs, of_outputs = self._has_factors(True), self._has_factors(False)
        needs_input = bool(loras) or of_inputs or any(linear.weight.requires_grad for linear in self._linears)
        tape.append(given if needs_input else None)
        if of_inputs:
            given = self._scaled(given, True, shares)
        out = given @ weight.t() if bias is None else torch.addmm(bias, given, weight.t())
        for lora, rows, outputs in loras:
            read, mine, dropped = given[rows], None, _dropped(lora, training)
            if dropped:
                mine = kept(read.shape, dropped, read.device)
                read = mine.to(read.dtype).mul_(read)
            down = (lora.down.detach() * _scale(dropped)).to(given.dtype)
            up = (lora.up.detach() * lora.scaling).to(given.dtype)
            low = read @ down.t()
            out[rows, outputs].addmm_(low, up.t())
            tape += [mine, down, up, low]
        if of_outputs:
            tape.append(out)
            out = self._scaled(out, False, shares)
        return out

    def backward(
        self,
        gradient: torch.Tensor,
        tape: Tape,
        found: Gradients,
        training: bool,
        shares: Shares | None = None,
        *,
        onwards: bool = True,
    ) -> torch.Tensor | None:
        """The gradient of the input, where it is wanted (`onwards`); those of parameters go into `found`."""
        weight, _ = self._weight(gradient.dtype, anew=False)
        loras = self._loras(shares)
        of_inputs, of_outputs = self._has_factors(True), self._has_factors(False)
        if of_outputs:
            out = tape.pop()
            assert out is not None
            self._factor_gradients(gradient * out, False, shares, found)
            gradient = self._scaled(gradient, False, shares)
        saved = [tape.pop() for _ in range(4 * len(loras))]
        given = tape.pop()
        scaled = given
        if of_inputs:
            assert given is not None
            scaled = self._scaled(given, True, shares)
        to_input = gradient @ weight if onwards or of_inputs else None
        for (lora, rows, outputs), (low, up, down, mine) in zip(reversed(loras), _fours(saved), strict=True):
            assert scaled is not None and low is not None and up is not None and down is not None
            own, read = gradient[rows, outputs], scaled[rows]
            to_low = own @ up
            read = read if mine is None else mine.to(read.dtype).mul_(read)
            if lora.down.requires_grad:
                to_up = low.t() @ own  # four times faster than its transpose
                scale = _scale(_dropped(lora, training))
                found[lora.down] = (to_low.t() @ read).to(lora.down.dtype, copy=True).mul_(scale)
                found[lora.up] = to_up.t().to(lora.up.dtype, copy=True).mul_(lora.scaling)
            if to_input is not None and onwards:
                to_read = to_low @ down
                to_input[rows].add_(to_read if mine is None else to_read.mul_(mine))
        self._own_gradients(gradient, scaled, found)
        if of_inputs:
            assert given is not None and to_input is not None
            self._factor_gradients(to_input * given, True, shares, found)
            to_input = self._scaled(to_input, True, shares)
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

    def _runs(self, shares: Shares | None) -> Iterator[tuple[list[Adapter], slice]]:
        """The adapters of each run with tokens, and these; one run has the whole row where there are no `shares`."""
        for own, rows in zip(self.adapters, [slice(None)] if shares is None else shares, strict=True):
            if shares is None or rows.stop > rows.start:
                yield own, rows

    def _loras(self, shares: Shares | None) -> list[tuple[Lora, slice, slice]]:
        """The LoRA of each run on each map, its tokens, and the outputs of the map."""
        return [
            (adapter.lora, rows, outputs)
            for own, rows in self._runs(shares)
            for adapter, outputs in zip(own, self._outputs, strict=True)
            if adapter.lora is not None
        ]

    def _has_factors(self, of_inputs: bool) -> bool:
        return any(
            adapter.factors is not None and adapter.of_inputs is of_inputs for own in self.adapters for adapter in own
        )

    def _scaled(self, values: torch.Tensor, of_inputs: bool, shares: Shares | None) -> torch.Tensor:
        """(tokens, inputs or outputs) times IA3's factors of each run."""
        result = torch.empty_like(values)
        for own, rows in self._runs(shares):
            if of_inputs and len(own) > 1:
                raise Unsupported("factors of an input that several maps share")
            factors = torch.ones(values.shape[1], dtype=values.dtype, device=values.device)
            for adapter, outputs in zip(own, self._outputs, strict=True):
                if adapter.factors is not None and adapter.of_inputs is of_inputs:
                    factors[slice(None) if of_inputs else outputs] = adapter.factors.detach().flatten()
            torch.mul(values[rows], factors, out=result[rows])
        return result

    def _factor_gradients(
        self, products: torch.Tensor, of_inputs: bool, shares: Shares | None, found: Gradients
    ) -> None:
        for own, rows in self._runs(shares):
            for adapter, outputs in zip(own, self._outputs, strict=True):
                factors = adapter.factors
                if factors is not None and adapter.of_inputs is of_inputs and factors.requires_grad:
                    columns = slice(None) if of_inputs else outputs
                    found[factors] = products[rows, columns].sum(0, dtype=factors.dtype).view(factors.shape)

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


def _dropped(lora: Lora, training: bool) -> int:
    """256ths of its inputs."""
    return in_bytes(getattr(lora.dropout, "p", 0.0)) if training else 0


def _scale(dropped: int) -> float:
    """What kept inputs are multiplied by."""
    return 256 / (256 - dropped)


def _fours(flat: Tape) -> Iterator[Tape]:
    return (flat[start : start + 4] for start in range(0, len(flat), 4))
