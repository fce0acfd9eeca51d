"""A frozen backbone in 8 or 4 bits (QLoRA, Dettmers et al. 2023); what is trained stays in float32.

- `8bit`: torchao's weight-only int8, one scale per row. Inputs are not rounded, unlike in LLM.int8(), so that what
  a text gives does not depend on the texts beside it.
- `4bit`: NF4 of bitsandbytes in blocks of 64, their scales quantised once more.

Only the matrices inside the layers are quantised: embeddings, normalisation and heads are small or trained. Both run
on CPU and CUDA; the latter is untested here. Whether a library works on this machine is found out by trying it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from posology.engine.architectures import Architecture
from posology.engine.precision import TRAIN_BACKBONE, Precision
from posology.errors import UserError

_LIBRARIES = {"8bit": "torchao", "4bit": "bitsandbytes"}
_BLOCK = 64  # weights that share a scale in NF4
_FURTHEST = {"8bit": 0.03, "4bit": 0.2}
"""How far products may be off, relative to their size, in the trial; right ones are off by 0.5 % and by 9 %."""


class QuantisedLinear(nn.Linear):
    """A linear map whose weight is a quantised tensor: for code that knows plain `nn.Linear` only."""


def bytes_per_weight(quantise: str, inputs: int) -> float:
    """Bytes that one weight of a matrix with so many inputs takes, its share of the scales included."""
    if quantise == "8bit":
        return 1 + 4 / inputs
    # Half a byte, a byte of scale per block, and of every 256 such scales one in float32.
    return 0.5 + 1 / _BLOCK + 4 / (_BLOCK * 256)


def matrices(base: nn.Module, prefix: str, architecture: Architecture) -> list[str]:
    """The names of what is quantised: the linear maps inside the layers."""
    path = architecture.layers.format(layer=r"\d+")
    layer = re.compile(rf"{prefix}\.{path}\.")
    return [name for name, part in base.named_modules() if isinstance(part, nn.Linear) and layer.match(name)]


def check(quantise: str, method: str, precision: Precision) -> None:
    """Raises UserError where the backbone cannot be quantised: by method, by what is installed, by the machine."""
    if method in TRAIN_BACKBONE:
        raise UserError(
            f"{method} trains weights of the backbone, and quantised ones cannot be trained",
            "Choose lora, ia3, prefix, prompt, p-tuning or head, or leave it out",
            f"quantise={quantise}",
        )
    library = _LIBRARIES[quantise]
    for name in (library, "accelerate"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"needs {name}, which is not installed",
                "Run `pip install 'posology[quantise]'` with the project's constraints",
                f"quantise={quantise}",
            ) from error
    why = _trial(quantise, precision)
    if why is not None:
        raise UserError(
            f"{library} does not work on {precision.device.type} here: {why}",
            "Leave it out, or train on another machine",
            f"quantise={quantise}",
        )


def _trial(quantise: str, precision: Precision) -> str | None:
    """Why a small quantised product, forward and backward, fails on this machine; None where it works."""
    torch_state = torch.get_rng_state()
    try:
        dtype = torch.bfloat16 if precision.bf16 else torch.float32
        plain = nn.Sequential(nn.Linear(256, 128, bias=False))
        weight: torch.Tensor = next(plain.parameters()).detach().clone()
        quantised = _quantised_layer(plain, quantise, dtype, precision.device)
        given = torch.randn(64, 256, device=precision.device, dtype=dtype, requires_grad=True)
        out = quantised(given)
        out.float().sum().backward()
        exact = functional.linear(given.detach().float(), weight.to(precision.device))
        off = float((out.detach().float() - exact).norm() / exact.norm())
        if given.grad is None or not given.grad.any():
            return "it gives no gradients"
        return f"its products are {off:.0%} off" if not off < _FURTHEST[quantise] else None
    except Exception as error:  # compiled extensions raise many kinds
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    finally:
        torch.set_rng_state(torch_state)


def _quantised_layer(plain: nn.Sequential, quantise: str, dtype: torch.dtype, device: torch.device) -> Any:
    if quantise == "8bit":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        plain.requires_grad_(False).to(device, dtype)
        quantize_(plain, Int8WeightOnlyConfig())
        return plain
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(256, 128, bias=False, quant_type="nf4", compute_dtype=dtype)
    layer.load_state_dict(plain[0].state_dict())
    return layer.to(device)


def configuration(quantise: str, dtype: torch.dtype, skip: Iterable[str]) -> Any:
    """What `from_pretrained` quantises by, matrix by matrix as they are read.

    Args:
        quantise: `8bit` or `4bit`.
        dtype: of products.
        skip: names of linear maps that stay as they are.
    """
    if quantise == "8bit":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(quant_type=Int8WeightOnlyConfig(), modules_to_not_convert=list(skip))
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip),
    )


def settle(base: nn.Module, names: Iterable[str]) -> None:
    """What quantised maps need after loading so that training is right.

    On CPU bitsandbytes packs a weight anew the first time it predicts, and never undoes it; the packed product has no
    gradient, so that training after the first evaluation would go on without an error and without the layers below.

    Args:
        base: the loaded model; changed in place.
        names: of its quantised maps (`matrices`).
    """
    for name in names:
        part: Any = base.get_submodule(name)
        if type(part) is nn.Linear:
            part.__class__ = QuantisedLinear
        else:
            part.support_avx512bf16_for_cpu = False


def held_bytes(base: nn.Module) -> int:
    """Bytes that all parameters take, quantised ones with their scales."""
    return sum(map(_bytes_of, base.parameters()))


def _bytes_of(tensor: Any) -> int:
    if hasattr(tensor, "__tensor_flatten__"):  # torchao: a tensor made of tensors
        return sum(_bytes_of(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    state = getattr(tensor, "quant_state", None)
    total = tensor.numel() * tensor.element_size()
    while state is not None:  # bitsandbytes: scales, and the scales of these
        total += state.absmax.numel() * state.absmax.element_size()
        state = getattr(state, "state2", None)
    return total
