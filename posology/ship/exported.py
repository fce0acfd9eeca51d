"""Exported ONNX folders as models that Posology predicts with, beside artifacts."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from posology import console
from posology.corpus.document import Document
from posology.engine.artifact import RECORD, load
from posology.engine.model import Answers, Model, Threshold
from posology.errors import UserError

if TYPE_CHECKING:
    from posology.ship.runtime import Runtime

_BLOCK = 2**12
"""Texts that are read between two messages about progress."""


class Exported(Model):
    """A model that `posology export` has written, run by onnxruntime.

    Args:
        folder: what was exported.
        runtime: the same, opened.
    """

    def __init__(self, folder: Path, runtime: Runtime):
        record = runtime.record
        self.folder, self.runtime = folder, runtime
        self.labels, self.text_pair, self.units = tuple(runtime.labels), runtime.text_pair, ("word",)
        self.temperature = float(record["temperature"])
        if (threshold := record["threshold"]) is not None:
            self.threshold = Threshold(self.labels.index(threshold["positive"]), threshold["probability"])
        self._cuts = record["reading"]["long_text"] != "window"

    @property
    def kind(self) -> str:
        """Of the task."""
        return self.runtime.kind

    def answer(self, documents: Sequence[Document], description: str = "predicting", *, unit: str = "word") -> Answers:
        """Reads documents; see `Model.answer`. Only words are known, not pieces."""
        if unit != "word":
            raise ValueError("an export answers for words")
        logits = []
        with console.progress(description, len(documents)) as advance:
            for start in range(0, len(documents), _BLOCK):
                some = documents[start : start + _BLOCK]
                logits += self.runtime.logits(
                    [document.text for document in some],
                    [document.text_pair or "" for document in some] if self.text_pair else None,
                    [document.words for document in some] if self.kind == "token-classification" else None,
                )
                advance(len(some))
        return Answers(documents, logits, self._coverage(documents, logits))

    def _coverage(self, documents: Sequence[Document], logits: Sequence[np.ndarray]) -> float:
        """The share of the text that was read: of words, or of the pieces of first texts."""
        if not self._cuts or not documents:
            return 1.0
        if self.kind == "token-classification":
            words = sum(len(document.words) for document in documents)
            return min(1.0, sum(map(len, logits)) / words) if words else 1.0
        cut = self.runtime._tokenizer.encode_batch([document.text for document in documents], add_special_tokens=False)
        lengths = np.array([len(entry.ids) for entry in cut])
        return float(np.minimum(lengths, self.runtime._capacity()).sum() / max(1, lengths.sum()))


def load_any(folder: Path | str, *, backbone: str | None = None) -> Model:
    """Loads an artifact, or an exported ONNX folder.

    Raises:
        UserError: it is neither, it is damaged, or onnxruntime is missing.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        format = record.get("format") if isinstance(record, dict) else None
    except (OSError, ValueError):
        format = None
    if format is None:
        return load(folder, backbone=backbone)
    if format != "onnx":
        raise UserError("is an export for transformers", "Name the artifact, or export it with --format onnx", folder)
    if backbone is not None:
        raise UserError("is of no use to an export, which holds its own", "Leave it out", "--backbone")
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            "onnxruntime is not installed",
            "Run `pip install 'posology[export]'` with the project's constraints",
            folder,
        )
    from posology.ship.runtime import InputError, Runtime

    try:
        return Exported(folder, Runtime(folder))
    except InputError as error:
        raise UserError(str(error), "Export it again", folder) from error
    except Exception as error:  # onnxruntime has its own for a network that is damaged
        raise UserError(f"cannot be opened ({type(error).__name__})", "Export it again", folder) from error
