"""Where tests find real corpora: none of them is part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("POSOLOGY_DATA") or Path(__file__).parents[2] / "shared" / "data")


def corpus(name: str) -> Path:
    """The folder of one corpus, such as `ncbi-disease`; skips the test, naming the folder, where it is missing."""
    folder = ROOT / name
    if not folder.is_dir():
        pytest.skip(f"no corpus in {folder}: set POSOLOGY_DATA to the folder that holds {name}")
    return folder
