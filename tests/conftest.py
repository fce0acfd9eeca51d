"""What every test needs."""

from __future__ import annotations

import pytest

from posology import console


@pytest.fixture(autouse=True)
def _speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are on, whatever a command that an earlier test gave in this process has asked for."""
    monkeypatch.setattr(console, "QUIET", False)
