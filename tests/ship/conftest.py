"""The small backbone and tasks of the engine's tests."""

from __future__ import annotations

from tests.engine.conftest import backbone, classification, tagging

__all__ = ["backbone", "classification", "tagging"]
