"""The small backbone and tasks that the engine is tested with."""

from tests.engine.conftest import backbone, classification, tagging  # noqa: F401
