"""The one decision in which precision matrices are multiplied, made once and printed with its reason."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

import torch

from posology.engine.architectures import Architecture
from posology.engine.recipe import Recipe
from posology.errors import UserError

TRAIN_BACKBONE = ("full", "bitfit", "layernorm")
"""Methods that train weights of the backbone itself, which therefore stays in float32."""

CACHED_PRODUCTS = 64
"""oneDNN, and PyTorch's layer over it, keep code and buffers for each shape of a bfloat16 product, the last 1,024
shapes each by default. Packed rows rarely have the same length twice, so that these grew by 11 MB in each step of
MiniLM, to several hundred; kept to 64 they stay at about a hundred (1.6 MB each), and steps took as long."""


class Precision(NamedTuple):
    """Device and the type of its matrix products. Weights that are trained stay in float32."""

    device: torch.device
    bf16: bool
    reason: str

    @property
    def attention(self) -> str:
        """The attention of transformers that is fastest here: on CPU the backward of the fused one is slow in bf16."""
        return "eager" if self.bf16 and self.device.type == "cpu" else "sdpa"

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context in which forward passes run."""
        if self.bf16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def multiplies_bf16_natively() -> bool:
    """Whether this processor has instructions for bfloat16 products; without them they are slower than float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def decide(wanted: str = "auto") -> Precision:
    """The device and precision for `wanted`: `auto`, `fp32` or `bf16`.

    Raises:
        UserError: bfloat16 on a GPU that does not have it.
    """
    if torch.cuda.is_available():
        device, native, what = (
            torch.device("cuda"),
            torch.cuda.is_bf16_supported(including_emulation=False),
            torch.cuda.get_device_name(),
        )
    else:
        device, native, what = torch.device("cpu"), multiplies_bf16_natively(), "this processor"
        for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read at the first product
            os.environ.setdefault(name, str(CACHED_PRODUCTS))
    if wanted == "fp32":
        return Precision(device, False, "float32, as the recipe says")
    if wanted == "bf16":
        if device.type == "cuda" and not native:
            raise UserError(f"{what} has no bfloat16", "Use precision=fp32", "precision")
        return Precision(device, True, "bfloat16, as the recipe says")
    if native:
        return Precision(device, True, f"bfloat16 products: {what} multiplies it natively")
    return Precision(device, False, f"float32: {what} does not multiply bfloat16 natively")


def backbone_dtype(method: str, architecture: Architecture, recipe: Recipe, precision: Precision) -> torch.dtype:
    """The type in which a backbone is held.

    Raises:
        UserError: the recipe asks for bfloat16 where weights are trained or products are not bfloat16.
    """
    wanted, frozen = recipe.backbone_dtype, method not in TRAIN_BACKBONE
    if wanted == "bfloat16" and not frozen:
        raise UserError(
            f"{method} trains weights of the backbone, and these stay in float32", "Leave it out", "backbone_dtype"
        )
    if wanted == "bfloat16" and not precision.bf16:
        raise UserError(
            f"weights in bfloat16 need products in bfloat16, and here is {precision.reason}",
            "Set precision=bf16, or leave it out",
            "backbone_dtype",
        )
    half = wanted == "bfloat16" or (wanted == "auto" and architecture.pooling == "last")
    return torch.bfloat16 if half and frozen and precision.bf16 else torch.float32
