"""One run of a study, before it runs: what is asked for, and the key by which it is found again."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from posology.seed import LARGEST_SEED

_Stamp = tuple[tuple[str, int, int], ...]
KEY_LENGTH = 32
"""Hexadecimal digits of a key: 128 bits."""


class Cell(BaseModel):
    """One run: what `posology.train` is asked for, but for the folder that it writes.

    Attributes:
        task: the task's name in its study.
        data: the prepared task.
        backbone: catalogue name, folder, or `NAME:K`; None for baselines.
        method: a key of `METHODS`, or of `BASELINES`.
        recipe: `standard` or `paper`.
        overrides: fields of the recipe to replace.
        seed: of initialisation, order, dropout and the drawing of shots.
        shots: training documents of each class; all where None.
        max_seconds, evaluate_seconds: budget of training, and how often within it is evaluated.
        max_memory: in bytes.
        distilled_from: an artifact that it learns from beside the labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    data: Path
    backbone: str | None = "minilm"
    method: str = "lora"
    recipe: str = "standard"
    overrides: dict[str, Any] = Field(default_factory=dict)
    seed: int = Field(default=42, ge=0, le=LARGEST_SEED)
    shots: int | None = Field(default=None, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)
    evaluate_seconds: float | None = Field(default=None, gt=0)
    max_memory: int | None = Field(default=None, ge=1)
    distilled_from: Path | None = None

    @property
    def title(self) -> str:
        """A short name for people."""
        limits = [f"{self.shots} shots" if self.shots else "", f"{self.max_seconds:g} s" if self.max_seconds else ""]
        changed = [f"{name}={value}" for name, value in self.overrides.items()]
        taught = f"from {self.distilled_from.name}" if self.distilled_from else ""
        parts = [self.task, self.backbone or "", self.method, taught, f"seed {self.seed}", *limits, *changed]
        return " ".join(part for part in parts if part)

    def arguments(self) -> dict[str, Any]:
        """What `posology.train` and `train_many` call these things."""
        return self.model_dump(exclude={"task"})

    def identity(self) -> dict[str, Any]:
        """What makes the run what it is, whatever its inputs are called and wherever they lie.

        Raises:
            UserError: the task, the backbone or the recipe is not there or does not fit.
        """
        from posology.engine.backbone import load_config
        from posology.engine.baselines import BASELINES, make_settings
        from posology.engine.methods import check_method
        from posology.engine.recipe import make_recipe
        from posology.errors import UserError

        check_method(self.method)
        fingerprint, kind, metric, unit = _task(self.data)
        if self.method in BASELINES:
            settings = make_settings(self.method, kind, self.recipe, self.overrides)
            backbone = None
        elif self.backbone is None:
            raise UserError(f"{self.method} adapts a backbone, and none is named", "Name one", self.title)
        else:
            source = _source(self.backbone)
            settings = make_recipe(self.method, self.recipe, self.overrides, width=load_config(source).hidden_size)
            backbone = {"sha256": source.fingerprint, "reading": source.reading, "layers": source.layers}
        # Only where there is a teacher, so that all other runs have the keys that they always had.
        taught = {"distilled_from": _teacher(self.distilled_from)} if self.distilled_from else {}
        return {
            **taught,
            "task": {"fingerprint": fingerprint, "metric": metric, "unit": unit},
            "backbone": backbone,
            "method": self.method,
            "recipe": settings.model_dump(mode="json"),
            "seed": self.seed,
            "shots": self.shots,
            "max_seconds": self.max_seconds,
            "evaluate_seconds": self.evaluate_seconds,
        }

    def key(self) -> str:
        """A hash of `identity`: the same run has the same key in every study. `KEY_LENGTH` hexadecimal digits."""
        canonical = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]


def _task(data: Path) -> tuple[str, str, str, str]:
    return _task_as_stamped(data, _stamp(data))


@functools.lru_cache(maxsize=256)
def _task_as_stamped(data: Path, _stamp: _Stamp) -> tuple[str, str, str, str]:
    from posology.tasks.prepared import PreparedTask

    task = PreparedTask.open(data)
    return task.fingerprint, task.kind, task.metric, task.unit


def _teacher(artifact: Path) -> dict[str, Any]:
    return _teacher_as_stamped(artifact, _stamp(artifact))


@functools.lru_cache(maxsize=256)
def _teacher_as_stamped(artifact: Path, _stamp: _Stamp) -> dict[str, Any]:
    from posology.engine.teaching import Teaching

    return Teaching(artifact).settings()


def _source(backbone: str) -> Any:
    from posology.engine.backbone import resolve

    return resolve(backbone)  # which keeps the hashes of its files for as long as nobody writes them


def _stamp(folder: Path) -> _Stamp:
    """Changes when somebody writes a file of a folder: a process may live through that, such as a notebook's."""
    if not folder.is_dir():
        return ()
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in found)
