"""Pre-trainings in processes of their own, which die in the middle. A server that has imported everything forks them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import peft  # noqa: F401  (what pre-training imports when it needs it)
import scipy.stats  # noqa: F401
from transformers.models.bert import modeling_bert, tokenization_bert  # noqa: F401

from posology.pretrain import loop
from posology.pretrain.command import pretrain


def killed(step: int, **arguments: Any) -> None:
    """Pre-trains until so many steps are done, and dies without a word."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_until, args=(step, arguments))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def _until(step: int, arguments: dict[str, Any]) -> None:
    plain = loop.Pretraining.step

    def die(self: loop.Pretraining) -> None:
        if self.progress.steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self)

    loop.Pretraining.step = die  # type: ignore[method-assign]
    pretrain(**arguments)
