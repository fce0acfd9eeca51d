"""A random order of any number of texts without a list of them: each place is computed, so any is reached at once."""

from __future__ import annotations

import numpy as np

_ROUNDS = 6
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Order:
    """A permutation of 0 ... count - 1: a Feistel network over the next even power of two, walked until it lands inside
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        count: of texts.
        seed, epoch: what the order follows from.
    """

    def __init__(self, count: int, seed: int, epoch: int):
        self._count = count
        self._half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
        self._low = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.random.default_rng((seed, epoch)).integers(0, 2**63, _ROUNDS, dtype=np.uint64)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The texts at these places, (n,)."""
        found = self._walk(places.astype(np.uint64))
        while (outside := found >= self._count).any():
            found[outside] = self._walk(found[outside])
        return found.astype(np.int64)

    def _walk(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._low
        with np.errstate(over="ignore"):
            for key in self._keys:
                mixed = (right + key) * _MIX[0]
                mixed = (mixed ^ (mixed >> np.uint64(31))) * _MIX[1]
                left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(29))) & self._low)
        return (left << self._half) | right
