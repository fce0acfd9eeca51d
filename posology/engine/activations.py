"""Frozen layers computed once: what the layers below the first trained one make of each window, for every epoch.

    windows ── embeddings, frozen layers, once ──┬── trained layers, head ──    epoch 1
               without dropout: hidden states    ├── trained layers, head ──    epoch 2
               by window, in memory or a file    └── ...                        and validation after each

Small ones are held in memory; larger ones in a file beside the output that has no name, so that it is gone when the
process is, however that ends. Where a folder is given they are kept in it, for runs that differ in what is above only:
learning rates, ranks, seeds. They can be turned back into text, so they lie where the user chose to write, readable by
their owner only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posology import console
from posology.engine.adapted import Adapted
from posology.engine.batch import Batch, cut
from posology.engine.encode import Encoded, Window
from posology.engine.precision import Precision
from posology.errors import UserError
from posology.files import check_space, check_writable, staged_file

IN_MEMORY_BYTES = 2**28
"""Activations of one corpus up to this size are held in memory, where they need not be kept."""
_SPARE_BYTES = 2**28
"""What they leave free on a disk, for checkpoints and the artifact."""
_TOKEN_BUDGET = 2048
"""Pieces that are run at once, as in prediction."""
_HEAD_ONLY = 16
"""Where all layers are frozen a micro-batch may have so many times the pieces: only what a head reads is left of them,
and a step costs little beside the calls it needs."""
_SUFFIX = ".activations"
_FORMAT = 1


def frozen_layers(adapted: Adapted) -> int:
    """How many layers from the first on give the same in every step, and can be left out; 0 in the padded layout."""
    return (adapted.first_trained or 0) if adapted.layout == "packed" else 0


def widened(adapted: Adapted, layer: int, token_budget: int) -> int:
    """The pieces of a micro-batch that leaves out the first `layer` layers, where one that runs all has so many."""
    return token_budget * _HEAD_ONLY if _head_only(adapted, layer) else token_budget


def answers(
    adapted: Adapted,
    batch: Batch,
    windows: Sequence[Window],
    layer: int,
    token_budget: int,
    kept: Kept | None = None,
) -> torch.Tensor:
    """What `Adapted.answers` gives, but the first `layer` layers run without dropout, or not at all where kept.

    Dropout above them is drawn in the same order either way, so that both differ by rounding only.

    Args:
        adapted: the model.
        batch: packed where `layer` is not 0.
        windows: that the batch was made of.
        layer: as `frozen_layers` gives it.
        token_budget: pieces that all layers are given at once.
        kept: hidden states before that layer.
    """
    if not layer:
        return adapted.answers(batch)
    if kept is not None:
        return kept.answers(adapted, batch, windows)
    if not _head_only(adapted, layer):
        return adapted.upper(adapted.lower(batch, layer), batch, layer)
    device = batch.owner.device
    parts = np.cumsum([len(window.ids) for window in windows]) // token_budget
    borders = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(windows)]
    hidden = [
        adapted.lower(adapted.batch(windows[start:stop], device), layer) for start, stop in itertools.pairwise(borders)
    ]
    return adapted.upper(torch.cat(hidden), batch, layer)


def _head_only(adapted: Adapted, layer: int) -> bool:
    return layer == adapted.base.config.num_hidden_layers


class Kept:
    """Hidden states of the windows of one corpus before one layer.

    Args:
        rows: (rows, width), float32; in memory, or mapped into it.
        windows: in the order of their rows.
        counts: rows of each.
        layer: its number.

    Attributes:
        layer: as given.
    """

    def __init__(self, rows: np.ndarray, windows: Sequence[Window], counts: np.ndarray, layer: int):
        ends = np.cumsum(counts).tolist()
        self._rows, self.layer = rows, layer
        self._windows = windows  # so that their ids stay theirs
        self._places = {
            id(window): slice(end - count, end)
            for window, end, count in zip(windows, ends, counts.tolist(), strict=True)
        }

    def answers(self, adapted: Adapted, batch: Batch, windows: Sequence[Window]) -> torch.Tensor:
        """What `Adapted.answers` gives for a packed batch of these windows."""
        hidden = np.concatenate([self._rows[self._places[id(window)]] for window in windows])
        return adapted.upper(torch.from_numpy(hidden).to(batch.owner.device), batch, self.layer)


class Activations:
    """The activations of one run: made when they are first asked for, gone when it is.

    Args:
        adapted: the model; what it trains must not change any more.
        precision: in which it runs.
        out: the output that is to be made; files go beside it.
        depends: what hidden states depend on beside model and windows, by name, for those that are kept: the weights'
            fingerprint, versions.
        keep: the folder to keep them in, and to take them from.

    Raises:
        UserError: nothing can be written to that folder.
    """

    def __init__(
        self, adapted: Adapted, precision: Precision, out: Path, depends: Mapping[str, Any], keep: Path | None = None
    ):
        self._adapted, self._precision, self._out, self._keep = adapted, precision, out.absolute(), keep
        self.layer = frozen_layers(adapted)
        self._head_only = _head_only(adapted, self.layer)
        self._depends = {name: value for name, value in depends.items() if name != "threads"}  # these only round
        if keep is not None:
            check_writable(keep / _SUFFIX, 0)
        self._found: dict[str, Kept | None] = {}

    def of(self, encoded: Encoded, name: str, seconds: float | None = None) -> Kept | None:
        """Those of a corpus. None where they have no room, or take too long; the person at the terminal is told.

        Args:
            encoded: the corpus; the same whenever its name is given.
            name: what it is called in messages.
            seconds: what is left for training; more than half of it is not spent.
        """
        if name not in self._found:
            self._found[name] = self._make(encoded, name, seconds)
        return self._found[name]

    def held_bytes(self, encoded: Encoded) -> int:
        """What those of a corpus take of the memory: none where they are in a file."""
        rows = sum(self._count(window) for own in encoded.windows for window in own)
        size = 4 * self._adapted.base.config.hidden_size * rows
        return size if self._keep is None and size <= IN_MEMORY_BYTES else 0

    def _make(self, encoded: Encoded, name: str, seconds: float | None) -> Kept | None:
        # By length, whatever the seed and however often training was cut off: the same bits each time.
        units = [[window] for own in encoded.windows for window in own]
        groups = list(cut(units, _TOKEN_BUDGET, padded=False))
        windows = [window for group in groups for window in group]
        counts = np.array([self._count(window) for window in windows])
        width = self._adapted.base.config.hidden_size
        size = 4 * width * int(counts.sum())
        if not size:
            return None
        what = f"{size / 1e6:,.1f} MB of activations for {name}"
        try:
            if self._keep is not None:
                memory = self._kept(self._keep, windows, groups, size, what, seconds)
            elif size <= IN_MEMORY_BYTES:
                memory = self._in_memory(groups, size, what, seconds)
            else:
                memory = self._in_nameless_file(groups, size, what, seconds)
        except (OSError, UserError, _TooSlow) as error:
            why = error.problem if isinstance(error, UserError) else error
            console.say(f"{what} are not made ({why}): layers that are not trained run in every epoch")
            return None
        rows = np.frombuffer(memory, np.float32, size // 4).reshape(-1, width)
        return Kept(rows, windows, counts, self.layer)

    def _count(self, window: Window) -> int:
        if not self._head_only:
            return len(window.ids)
        return len(window.words) if self._adapted.kind == "token-classification" else 1

    # --- where they are held ------------------------------------------------------------------------------------------

    def _announce(self, what: str, place: str) -> None:
        depth = self._adapted.base.config.num_hidden_layers
        layers = f"layer 1 of {depth} is" if self.layer == 1 else f"layers 1 to {self.layer} of {depth} are"
        console.say(f"{layers} not trained and give the same in every epoch: {what}, {place}")

    def _in_memory(self, groups: Sequence[list[Window]], size: int, what: str, seconds: float | None) -> mmap.mmap:
        self._announce(what, "in memory")
        memory = mmap.mmap(-1, size)
        self._fill(groups, memory.write, seconds)
        return memory

    def _in_nameless_file(
        self, groups: Sequence[list[Window]], size: int, what: str, seconds: float | None
    ) -> mmap.mmap:
        folder = self._out.parent
        folder.mkdir(parents=True, exist_ok=True)
        check_space(folder, size + _SPARE_BYTES)
        self._announce(what, f"on the disk of {folder}, gone when training ends")
        with tempfile.TemporaryFile(dir=folder) as stream:
            self._fill(groups, stream.write, seconds)
            stream.flush()
            return mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)

    def _kept(
        self,
        folder: Path,
        windows: Sequence[Window],
        groups: Sequence[list[Window]],
        size: int,
        what: str,
        seconds: float | None,
    ) -> mmap.mmap:
        key = self._key(windows)
        path = folder / f"{key.hex()}{_SUFFIX}"
        if (memory := _opened(path, key, size)) is not None:
            self._announce(what, f"found in {folder}")
            return memory
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_abandoned(folder)
        check_space(folder, size + _SPARE_BYTES)
        self._announce(what, f"in {folder}, kept")
        with staged_file(path) as staging, open(staging, "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # it belongs to somebody alive
            digest = hashlib.sha256(key)

            def write(rows: memoryview) -> None:
                digest.update(rows)
                stream.write(rows)

            self._fill(groups, write, seconds)
            stream.write(digest.digest())
            stream.flush()
            os.fsync(stream.fileno())
            memory = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
        return memory

    def _fill(
        self, groups: Sequence[list[Window]], write: Callable[[memoryview], object], seconds: float | None
    ) -> None:
        """Runs the layers on one micro-batch after the other.

        Raises:
            _TooSlow: it would take more than half of `seconds`.
        """
        adapted, device = self._adapted, self._precision.device
        total = sum(len(window.ids) for group in groups for window in group)
        done, began = 0, time.perf_counter()
        with console.progress("running frozen layers", total) as advance, self._precision.autocast():
            for number, group in enumerate(groups, start=1):
                batch = adapted.batch(group, device)
                write(adapted.lower(batch, self.layer).float().cpu().contiguous().numpy().data)
                done += batch.tokens
                advance(batch.tokens)
                # Not after the first few: they prepare what all others use.
                needed = (time.perf_counter() - began) * total / done
                if seconds is not None and number > 3 and 2 * needed > seconds:
                    raise _TooSlow(f"it would take about {needed:,.0f} s of the {seconds:,.0f} s that are left")

    def _key(self, windows: Sequence[Window]) -> bytes:
        """SHA-256 of everything that the hidden states of these windows depend on."""
        adapted, precision = self._adapted, self._precision
        facts = {
            "format": _FORMAT,
            "layer": self.layer,
            "layers": adapted.base.config.num_hidden_layers,
            "read": (adapted.kind, adapted.pooling) if self._head_only else "tokens",
            "bf16": precision.bf16,
            "dtype": str(adapted.base.dtype),
            "device": precision.device.type,
            **self._depends,
        }
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for window in windows:
            digest.update(f"{len(window.ids)} {window.second_from} {len(window.words)}:".encode())
            digest.update(window.ids.astype("<i4").tobytes())
            if self._head_only:
                digest.update(window.columns.astype("<i8").tobytes())
        return digest.digest()


class _TooSlow(Exception):
    """Says how long it would take."""


def _opened(path: Path, key: bytes, size: int) -> mmap.mmap | None:
    """The rows in a file that was kept; None where there is none, or it is not what was once written."""
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == size + len(key):
                memory = mmap.mmap(stream.fileno(), size + len(key), access=mmap.ACCESS_READ)
                digest = hashlib.sha256(key)
                with memoryview(memory) as view, view[:size] as rows:
                    digest.update(rows)
                if digest.digest() == memory[size:]:
                    return memory
    except FileNotFoundError:
        return None
    console.say(f"{path}: is damaged, and made anew")
    return None


def _remove_abandoned(folder: Path) -> None:
    """Removes what processes that were killed had begun to write."""
    for path in folder.glob(f".*{_SUFFIX}.*.partial"):
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
