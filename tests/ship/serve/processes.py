"""Servers in processes of their own, forked from one that has imported everything: to import takes longer than a test."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import peft  # noqa: F401  (what a server imports when it loads a model)
from transformers.models.bert import modeling_bert  # noqa: F401

import posology.cli
import posology.ship.serve.app
import posology.ship.serve.fleet
import posology.ship.serve.limits


def launch(arguments: Sequence[str], output: Path) -> ForkServerProcess:
    """`posology` with these arguments, whose stdout and stderr go to a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_run, args=(list(arguments), output), daemon=True)
    process.start()
    return process


def _run(arguments: list[str], output: Path) -> None:
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    posology.cli.main(arguments)
