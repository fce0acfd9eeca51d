"""The one decision in which precision matrices are multiplied, made once and printed with its reason."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch

from posology.errors import UserError


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
    if wanted == "fp32":
        return Precision(device, False, "float32, as the recipe says")
    if wanted == "bf16":
        if device.type == "cuda" and not native:
            raise UserError(f"{what} has no bfloat16", "Use precision=fp32", "precision")
        return Precision(device, True, "bfloat16, as the recipe says")
    if native:
        return Precision(device, True, f"bfloat16 products: {what} multiplies it natively")
    return Precision(device, False, f"float32: {what} does not multiply bfloat16 natively")
