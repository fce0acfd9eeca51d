"""From windows to the tensors of one step: exact batches, cut into micro-batches, padded or packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from posology.engine.attention import Segments
from posology.engine.encode import Window


@dataclass
class Batch:
    """Windows of some documents, padded to (windows, length) or packed into one row, (1, tokens).

    Attributes:
        inputs: `input_ids` and, for pairs, `token_type_ids`; `attention_mask` where there is padding.
        documents: positions of the documents in their corpus, (documents,).
        owner: for each window the row of its document in `documents`, (windows,).
        rows, columns: where the first piece of each word is in the batch, (words,).
        words: for each of these (row in `documents`, word of that document), (words, 2).
        segments: the borders of the windows in a packed row; None where they are padded.
    """

    inputs: dict[str, torch.Tensor]
    documents: np.ndarray
    owner: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    words: np.ndarray
    segments: Segments | None = None

    @property
    def tokens(self) -> int:
        """Real pieces, special tokens included."""
        return int(self.inputs["attention_mask"].sum()) if self.segments is None else self.segments.total


def collate(windows: Sequence[Window], padding: int, device: torch.device | str = "cpu") -> Batch:
    """Pads windows on the right.

    Args:
        windows: of one document or of several.
        padding: the id that fills; always masked.
        device: where the tensors go.
    """
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
    return _batch(windows, inputs, np.repeat(np.arange(len(windows)), counts), np.zeros(len(windows), np.int64), device)


def pack(windows: Sequence[Window], device: torch.device | str = "cpu") -> Batch:
    """Puts windows one after the other into a single row.

    Args:
        windows: of one document or of several.
        device: where the tensors go.
    """
    segments = Segments(np.array([len(window.ids) for window in windows]), device)
    inputs = {"input_ids": np.concatenate([window.ids for window in windows]).astype(np.int64)[None]}
    if any(window.second_from for window in windows):
        seconds = np.array([window.second_from or len(window.ids) for window in windows])
        inputs["token_type_ids"] = (segments.offsets() >= np.repeat(seconds, segments.lengths)).astype(np.int64)[None]
    rows = np.zeros(sum(len(window.words) for window in windows), np.int64)
    batch = _batch(windows, inputs, rows, segments.starts, device)
    batch.segments = segments
    return batch


def _batch(
    windows: Sequence[Window],
    inputs: dict[str, np.ndarray],
    rows: np.ndarray,
    starts: np.ndarray,
    device: torch.device | str,
) -> Batch:
    """A batch in which the words have these rows, and each window begins at this column."""
    documents = list(dict.fromkeys(window.document for window in windows))
    row_of = {document: row for row, document in enumerate(documents)}
    owner = [row_of[window.document] for window in windows]
    counts = [len(window.words) for window in windows]
    columns = np.concatenate([window.columns for window in windows]) + np.repeat(starts, counts)
    return Batch(
        {name: torch.from_numpy(value).to(device) for name, value in inputs.items()},
        np.array(documents),
        torch.tensor(owner, device=device),
        torch.from_numpy(rows).to(device),
        torch.from_numpy(columns).to(device),
        np.stack([np.repeat(owner, counts), np.concatenate([window.words for window in windows])], axis=1),
    )


def cut(units: Sequence[Sequence[Window]], token_budget: int, *, padded: bool = True) -> Iterator[list[Window]]:
    """Cuts windows into groups of like lengths whose size stays within a budget of tokens.

    Args:
        units: windows that must stay together, such as all of a document whose logits are their mean. A unit that is
            over the budget alone makes a group of its own.
        token_budget: tokens of a group, at most: windows x length where it is padded, else the sum of lengths.
        padded: whether groups are padded.
    """
    lengths = [max(len(window.ids) for window in unit) for unit in units]
    group: list[Window] = []
    longest = held = 0
    for index in sorted(range(len(units)), key=lambda index: -lengths[index]):
        own = sum(len(window.ids) for window in units[index])
        size = (len(group) + len(units[index])) * longest if padded else held + own
        if group and size > token_budget:
            yield group
            group = []
        longest, held = (longest, held + own) if group else (lengths[index], own)
        group += units[index]
    if group:
        yield group


def batches(count: int, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """The optimiser's batches of one epoch: all documents in an order that follows from seed and epoch alone."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size]
