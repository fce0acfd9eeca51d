"""Which numbers can be seeds."""

from __future__ import annotations

from posology.errors import UserError

LARGEST_SEED = 2**32 - 1
"""What every generator in use takes: scikit-learn's bound; PyTorch's is 2^64 - 1, and NumPy and Python have none."""


def check_seed(seed: int) -> None:
    """Raises UserError where a number cannot be a seed."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"{seed} is no seed", f"Give a number from 0 to {LARGEST_SEED}", "--seed")
