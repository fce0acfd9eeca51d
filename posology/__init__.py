"""Posology: the smallest, cheapest language model, adapted in the cheapest way, that does a clinical text task.

The Python API mirrors the command line: `synthesise`, `prepare`, `train`, `train_many`, `evaluate`, `calibrate`,
`predict`, `export`, `load`, `PreparedTask`, `Study`, `Ledger`, `prescribe`. Nothing heavy is imported until one of them
is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posology.engine.artifact import load
    from posology.engine.calibrate import calibrate
    from posology.engine.many import train_many
    from posology.engine.train import evaluate, train
    from posology.ship.export import export
    from posology.ship.predict import predict
    from posology.study.ledger import Ledger
    from posology.study.prescribe import prescribe
    from posology.study.study import Study
    from posology.synthetic.command import synthesise
    from posology.tasks.generic import prepare
    from posology.tasks.prepared import PreparedTask

__version__ = "0.1.0"

_HOMES = {
    "synthesise": "posology.synthetic.command",
    "prepare": "posology.tasks.generic",
    "PreparedTask": "posology.tasks.prepared",
    "train": "posology.engine.train",
    "train_many": "posology.engine.many",
    "evaluate": "posology.engine.train",
    "calibrate": "posology.engine.calibrate",
    "export": "posology.ship.export",
    "predict": "posology.ship.predict",
    "load": "posology.engine.artifact",
    "Study": "posology.study.study",
    "Ledger": "posology.study.ledger",
    "prescribe": "posology.study.prescribe",
}

__all__ = [
    "Ledger",
    "PreparedTask",
    "Study",
    "__version__",
    "calibrate",
    "evaluate",
    "export",
    "load",
    "predict",
    "prepare",
    "prescribe",
    "synthesise",
    "train",
    "train_many",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'posology' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
