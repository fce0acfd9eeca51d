"""From windows to the tensors of one step: exact batches, cut into micro-batches of like lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posology.engine.encode import Window


@dataclass
class Batch:
    """Padded windows of some documents.

    Attributes:
        inputs: `input_ids`, `attention_mask` and, for pairs, `token_type_ids`, each (windows, length).
        documents: positions of the documents in their corpus, (documents,).
        owner: for each window the row of its document in `documents`, (windows,).
        rows, columns: where the first piece of each word is in the batch, (words,).
        words: for each of these (row in `documents`, word of that document), (words, 2).
    """

    inputs: dict[str, torch.Tensor]
    documents: np.ndarray
    owner: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    words: np.ndarray

    @property
    def tokens(self) -> int:
        """Real pieces, special tokens included."""
        return int(self.inputs["attention_mask"].sum())


def collate(windows: Sequence[Window], padding: int, device: torch.device | str = "cpu") -> Batch:
    """Pads windows on the right.

    Args:
        windows: of one document or of several.
        padding: the id that fills; always masked.
        device: where the tensors go.
    """
    documents = list(dict.fromkeys(window.document for window in windows))
    row_of = {document: row for row, document in enumerate(documents)}
    owner = [row_of[window.document] for window in windows]
    length = max(len(window.ids) for window in windows)
    ids = np.full((len(windows), length), padding, np.int64)
    mask = np.zeros((len(windows), length), np.int64)
    types = np.zeros((len(windows), length), np.int64)
    for row, window in enumerate(windows):
        ids[row, : len(window.ids)] = window.ids
        mask[row, : len(window.ids)] = 1
        if window.second_from:
            types[row, window.second_from : len(window.ids)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if types.any():
        inputs["token_type_ids"] = types
    counts = [len(window.words) for window in windows]
    return Batch(
        {name: torch.from_numpy(value).to(device) for name, value in inputs.items()},
        np.array(documents),
        torch.tensor(owner, device=device),
        torch.from_numpy(np.repeat(np.arange(len(windows)), counts)).to(device),
        torch.from_numpy(np.concatenate([window.columns for window in windows])).to(device),
        np.stack([np.repeat(owner, counts), np.concatenate([window.words for window in windows])], axis=1),
    )


def cut(units: Sequence[Sequence[Window]], token_budget: int) -> Iterator[list[Window]]:
    """Cuts windows into groups of like lengths whose padded size stays within a budget of tokens.

    Args:
        units: windows that must stay together, such as all of a document whose logits are their mean. A unit that is
            over the budget alone makes a group of its own.
        token_budget: windows x length of a group, at most.
    """
    lengths = [max(len(window.ids) for window in unit) for unit in units]
    group: list[Window] = []
    longest = 0
    for index in sorted(range(len(units)), key=lambda index: -lengths[index]):
        if group and (len(group) + len(units[index])) * longest > token_budget:
            yield group
            group = []
        longest = longest if group else lengths[index]
        group += units[index]
    if group:
        yield group


def batches(count: int, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The optimiser's batches of one epoch: all documents in an order that follows from seed and epoch alone."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]
