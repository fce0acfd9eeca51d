"""The small backbone and tasks of the engine's tests."""

from tests.engine.conftest import backbone, classification, tagging  # noqa: F401
