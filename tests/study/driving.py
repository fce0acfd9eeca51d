"""A study in a process of its own, which tests kill: python -m tests.study.driving LEDGER TASK BACKBONE RUNS EPOCHS."""

from __future__ import annotations

import sys
from pathlib import Path

from posology.study.cell import Cell
from posology.study.driver import carry_out
from posology.study.ledger import Ledger
from posology.study.local import LocalExecutor


def make_cells(task: Path, backbone: Path, runs: int, epochs: int) -> list[Cell]:
    """Runs that write a checkpoint in the middle of the training are long; these are many."""
    methods = ("lora", "full", "ia3", "head")
    return [
        Cell(
            task="complaint",
            data=task,
            backbone=str(backbone),
            method=methods[seed % len(methods)],
            seed=seed,
            overrides={"epochs": epochs, "precision": "fp32"},
        )
        for seed in range(runs)
    ]


def main(ledger: str, task: str, backbone: str, runs: str, epochs: str) -> None:
    with Ledger(ledger, write=True) as opened:
        executor = LocalExecutor(2, company=False)  # alone, results are the same bit for bit
        carry_out(opened, "s", make_cells(Path(task), Path(backbone), int(runs), int(epochs)), executor)


if __name__ == "__main__":
    main(*sys.argv[1:])
