"""Dropout whose random numbers cost little: eight decisions from one 64-bit number.

Drawing is what dropout costs on a CPU: one number for each value took a sixth of a training step. The probability to
drop is therefore a multiple of 1/256, 255/256 at most: 0.1 becomes 26/256 (0.1016). What is kept is scaled by exactly
that, so expectations are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


def in_bytes(probability: float) -> int:
    """A probability to drop as a number of 256ths; some are kept, since the scale would be infinite."""
    return min(255, round(256 * probability))


def kept(shape: torch.Size, dropped: int, device: torch.device) -> torch.Tensor:
    """Random bytes 0 or 1, each 0 with probability `dropped` / 256.

    Compared in place and kept as bytes: making booleans, and multiplying by them, takes longer than the drawing.
    """
    numbers = torch.empty((shape.numel() + 7) // 8, dtype=torch.int64, device=device).random_(-(2**63), None)
    return numbers.view(torch.uint8)[: shape.numel()].view(shape).ge_(dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, dropped: int) -> torch.Tensor:
        mine = kept(hidden.shape, dropped, hidden.device)
        ctx.save_for_backward(mine)
        ctx.scale = 256 / (256 - dropped)
        return mine.to(hidden.dtype).mul_(hidden).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mine,) = ctx.saved_tensors
        return mine.to(gradient.dtype).mul_(gradient).mul_(ctx.scale), None


def draw_bytes(model: nn.Module, active: Callable[[], bool]) -> None:
    """Makes every dropout of a model draw bytes while `active()`; else it stays as transformers has it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            own: Any = module
            own.forward = _forward(module, active)


def _forward(module: nn.Dropout, active: Callable[[], bool]) -> Callable[[torch.Tensor], torch.Tensor]:
    plain = module.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        dropped = in_bytes(module.p)
        if not active() or not module.training or not dropped:
            return plain(hidden)
        return _Dropout.apply(hidden, dropped)

    return forward
