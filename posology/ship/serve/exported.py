"""A folder that `posology export` wrote, as a model of Posology."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from posology.corpus.document import Document
from posology.engine.model import Answers, Model, Threshold
from posology.errors import UserError
from posology.ship.runtime import InputError, Runtime


class Exported(Model):
    """An ONNX export.

    Args:
        folder: what `posology export --format onnx` has written.

    Attributes:
        record: its `posology.json`.
        coverage: the share of texts that it reads: all, or None where it cuts long ones off.

    Raises:
        UserError: it cannot be loaded.
    """

    units = ("word",)

    def __init__(self, folder: Path):
        try:
            self._runtime = Runtime(folder, threads=torch.get_num_threads())
        except InputError as error:
            raise UserError("is no folder that `posology export` wrote", "Name one", folder) from error
        except Exception as error:  # onnxruntime and tokenizers raise kinds of their own
            raise UserError(f"cannot be loaded ({type(error).__name__})", "Export it again", folder) from error
        self.record = self._runtime.record
        self.labels, self.text_pair = tuple(self._runtime.labels), self._runtime.text_pair
        self.temperature = float(self.record["temperature"])
        self.coverage = 1.0 if self.record["reading"]["long_text"] == "window" else None
        if (threshold := self.record["threshold"]) is not None:
            self.threshold = Threshold(self.labels.index(threshold["positive"]), threshold["probability"])

    @property
    def kind(self) -> str:
        """Of the task."""
        return self._runtime.kind

    def answer(self, documents: Sequence[Document], description: str = "", *, unit: str = "word") -> Answers:
        """See `Model.answer`."""
        texts = [document.text for document in documents]
        pairs = [document.text_pair or "" for document in documents] if self.text_pair else None
        words = [document.words for document in documents] if self.kind == "token-classification" else None
        return Answers(documents, self._runtime.logits(texts, pairs, words), self.coverage or 1.0)
