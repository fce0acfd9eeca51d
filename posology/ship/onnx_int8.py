"""Products in 8 bits: weights rounded once for each output channel, activations as they come.

Dynamic: onnxruntime finds the range of each activation tensor while it runs. That range is one for the whole batch, so that
answers depend, a little, on which texts are read together.

A few channels of BERT's activations reach many times as far as all others, mostly at the first token (Kovaleva et al. 2021,
Dettmers et al. 2022), and leave them few of the 256 steps. `tame` divides these channels by what they have too much and
multiplies their weights by the same: SmoothQuant (Xiao et al. 2023), for outliers alone, so that weights stay as they are
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from posology.engine.batch import Batch
from posology.ship.onnx_graph import Graph, quietly

_USUAL = 0.97
"""The quantile of channels that `tame` brings the others down to."""

_MOST = 64.0
"""How far down at most: where nearly all channels are 0 on some texts, others may need them."""

_WORTH_IT = 2.0
"""A multiplication costs 2 % of the product that follows: it is left out where no channel reaches so many times as far."""


def has_vnni() -> bool:
    """Whether this processor sums products of 8 bits without overflow. x86 without VNNI adds two of them in 16 bits,
    which is safe only if weights are rounded to 7 bits."""
    found = torch.cpu.get_capabilities()
    return "x86" not in str(found.get("architecture", "")) or bool(found.get("avx512_vnni") or found.get("avx_vnni"))


def quantise(source: Path, target: Path, keep: Sequence[str]) -> None:
    """Writes an ONNX file whose matrix products with constant weights are in 8 bits.

    Args:
        source: the network in float32.
        target: the file to write.
        keep: names of nodes that stay in float32.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quietly():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=not has_vnni(),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(keep),
        )


@torch.inference_mode()
def tame(graph: Graph, batch: Batch, heads: Sequence[str]) -> None:
    """Brings channels that reach farther than nearly all others down to these, and raises their weights by as much.

    The network's answers stay the same in float32.

    Args:
        graph: the network; its linear maps are changed.
        batch: padded texts on which the reach is measured.
        heads: names of what is left as it is.
    """
    modules = {name: module for name, module in graph.base.named_modules() if isinstance(module, nn.Linear)}
    maps = [module for name, module in modules.items() if not belongs(name, heads)]
    reach: dict[nn.Module, torch.Tensor] = {}

    def measure(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        own = given[0].abs().flatten(0, -2).amax(dim=0)
        reach[module] = torch.maximum(reach.get(module, own), own)  # ALBERT runs one map several times

    hooks = [module.register_forward_pre_hook(measure) for module in maps]
    _logits(graph, batch)
    for hook in hooks:
        hook.remove()
    for module, own in reach.items():
        usual = own.quantile(_USUAL, interpolation="lower").clamp(min=1e-6)
        excess = (own / usual).clamp(1, _MOST)
        if excess.max() >= _WORTH_IT:
            module.get_parameter("weight").mul_(excess)
            module.register_buffer("factors", 1 / excess)
            module.register_forward_pre_hook(_multiply)


def _multiply(module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    return (given[0] * module.get_buffer("factors"),)


def belongs(name: str, heads: Sequence[str]) -> bool:
    """Whether a linear map is part of a head."""
    return any(f".{head}." in f".{name}." for head in heads)


def multiplications(graph: Graph, maps: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many products each linear map takes for one piece, by its name."""
    weights = {name: graph.base.get_submodule(name).get_parameter("weight") for name in maps}
    return {name: weights[name].numel() * len(nodes) for name, nodes in maps.items()}


@torch.inference_mode()
def sensitivity(graph: Graph, batch: Batch, names: Sequence[str], advance: Callable[[float], None]) -> dict[str, float]:
    """How far the logits move when one linear map alone is in 8 bits: root mean square, in their own standard deviations.

    Args:
        graph: the network.
        batch: padded texts to try it on.
        names: of linear maps.
        advance: is told of each one that is done.
    """
    exact = _logits(graph, batch)
    spread = float(exact.std()) or 1.0
    moved = {}
    for name in names:
        hook = graph.base.get_submodule(name).register_forward_hook(_in_int8)
        try:
            moved[name] = float((_logits(graph, batch) - exact).square().mean().sqrt()) / spread
        finally:
            hook.remove()
        advance(1)
    return moved


def _logits(graph: Graph, batch: Batch) -> torch.Tensor:
    """Of every text, or of every word."""
    inputs = {"token_type_ids": torch.zeros_like(batch.inputs["input_ids"]), **batch.inputs}
    found: torch.Tensor = graph(*(inputs[name] for name in graph.inputs))
    return found[batch.rows, batch.columns] if found.ndim == 3 else found


def _in_int8(module: nn.Module, given: tuple[torch.Tensor, ...], _output: Any) -> torch.Tensor:
    """What a linear map gives in 8 bits: unsigned activations over the whole tensor's range, signed weights by row."""
    (hidden,), weight = given, module.get_parameter("weight")
    low, high = hidden.min().clamp(max=0), hidden.max().clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / step).round()
    rounded = ((hidden / step).round() + zero).clamp(0, 255).sub(zero).mul(step)
    steps = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / (127 if has_vnni() else 63)
    bias = module.get_parameter("bias") if getattr(module, "bias", None) is not None else None
    return nn.functional.linear(rounded, (weight / steps).round() * steps, bias)


def worst_first(moved: Mapping[str, float], work: Mapping[str, int], most: float) -> list[list[str]]:
    """What to leave in float32, try by try: 1, 2, 4 ... of the maps that hurt most for the work they do, as long as these do
    no more than a share `most` of all products, and in the end as many as that allows. Errors of many roundings add up by
    their squares.

    Args:
        moved: as `sensitivity` gives it.
        work: as `multiplications` gives it.
        most: from 0 to 1.
    """
    ranked = sorted(moved, key=lambda name: -(moved[name] ** 2) / work[name])
    allowed = held = 0
    while allowed < len(ranked) and held + work[ranked[allowed]] <= most * sum(work.values()):
        held += work[ranked[allowed]]
        allowed += 1
    counts = {min(2**power, allowed) for power in range(allowed.bit_length() + 1)} if allowed else set()
    return [ranked[:count] for count in sorted(counts)]
