"""Trainings in processes of their own, which tests kill. A server that has imported everything forks them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import peft  # noqa: F401  (what a training imports when it needs it, once for all of them)
import sklearn.metrics  # noqa: F401
from transformers.models.bert import modeling_bert, tokenization_bert  # noqa: F401

import posology.cli
import posology.engine.train

STATE = "state.safetensors"


def start(task: Path, backbone: Path, out: Path, **options: Any) -> ForkServerProcess:
    """`posology.train` in another process, which exits with the code of the command line; its stderr goes to OUT.err."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_train, args=(task, backbone, out, options))
    process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = 120) -> int | None:
    """Its exit code."""
    process.join(seconds)
    assert not process.is_alive(), "still training"
    return process.exitcode


def wait_until(reached: Callable[[], bool], process: ForkServerProcess, seconds: float = 30) -> bool:
    """Whether something came to be before the process ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if reached():
            return True
        if not process.is_alive():
            return False
        time.sleep(0.001)
    raise AssertionError("nothing came")


def _train(task: Path, backbone: Path, out: Path, options: dict[str, Any]) -> None:
    errors = open(out.with_name(f"{out.name}.err"), "a")  # noqa: SIM115  (open until the process ends)
    os.dup2(errors.fileno(), 2)
    sys.stderr = errors
    posology.cli.app.command(lambda: posology.train(task, str(backbone), "lora", out, **options), name="now")
    sys.exit(posology.cli._run(["now"], as_json=True, debug=True))
