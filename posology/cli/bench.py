"""`posology bench`: speed and memory, beside the peer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

bench = App(name="bench", help="Measure speed and memory on this machine, beside transformers and PEFT where asked.")


@bench.command(name="train")
def bench_train(
    *,
    data: Path,
    backbone: str = "minilm",
    method: str = "lora",
    recipe: str = "standard",
    set: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    max_length: int | None = None,
    peer: bool = False,
    steps: int = 8,
    repeats: int = 5,
    quality: bool = False,
    seed: int = 42,
) -> dict[str, Any]:
    """Measure training: optimiser steps on batches of 32, all sides on the same documents, round by round.

    Args:
        data: a prepared task; texts are cut at the recipe's max_length on all sides.
        backbone: catalogue name, folder, or NAME:K.
        method: how the backbone is adapted.
        recipe: standard or paper, on all sides.
        set: fields of the recipe to replace.
        max_length: cut texts at so many pieces.
        peer: measure transformers.Trainer with PEFT too, as the paper configures it and with the flags fastest here.
        steps: optimiser steps in a round.
        repeats: rounds.
        quality: also train every side on the whole training set and score it, which takes long.
        seed: of initialisation, order and dropout.
    """
    from posology.doctor import matrix_peak
    from posology.engine.recipe import parse_overrides
    from posology.measure.training import bench_train as run

    return run(
        data,
        matrix_peak=matrix_peak,
        backbone=backbone,
        method=method,
        recipe=recipe,
        overrides=parse_overrides(set or []),
        max_length=max_length,
        peer=peer,
        steps=steps,
        repeats=repeats,
        quality=quality,
        seed=seed,
    )


@bench.command(name="predict")
def bench_predict(
    *,
    data: Path,
    backbone: str = "minilm",
    method: str = "lora",
    recipe: str = "standard",
    set: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    max_length: int | None = None,
    peer: bool = False,
    documents: int = 512,
    repeats: int = 5,
    seed: int = 42,
) -> dict[str, Any]:
    """Measure prediction from text to labels, with a model that is briefly trained for it.

    Args:
        data: a prepared task; its test documents are read, cut at the recipe's max_length on all sides.
        backbone: catalogue name, folder, or NAME:K.
        method: how the backbone is adapted.
        recipe: standard or paper.
        set: fields of the recipe to replace.
        max_length: cut texts at so many pieces.
        peer: measure transformers.pipeline with batches of 32 too, and a loop over sorted texts in bfloat16.
        documents: how many test documents, at most.
        repeats: rounds.
        seed: of the draw and the training.
    """
    from posology.doctor import matrix_peak
    from posology.engine.recipe import parse_overrides
    from posology.measure.prediction import bench_predict as run

    return run(
        data,
        matrix_peak=matrix_peak,
        backbone=backbone,
        method=method,
        recipe=recipe,
        overrides=parse_overrides(set or []),
        max_length=max_length,
        peer=peer,
        documents=documents,
        repeats=repeats,
        seed=seed,
    )


@bench.command(name="company")
def bench_company(
    *,
    data: Annotated[list[Path], Parameter(consume_multiple=True)],
    backbone: str = "minilm",
    method: str = "lora",
    ranks: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (8, 8, 16, 16, 32, 32, 64, 128),
    recipe: str = "standard",
    set: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    steps: int = 8,
    repeats: int = 5,
    seed: int = 42,
) -> dict[str, Any]:
    """Measure several runs on one frozen backbone in company, beside the same runs one after the other.

    Args:
        data: prepared tasks; runs take them in turn.
        backbone: catalogue name, folder, or NAME:K.
        method: lora, rslora, ia3 or head.
        ranks: one run of each rank; their learning rates differ too.
        recipe: standard or paper.
        set: fields of the recipe to replace.
        steps: optimiser steps of each run in a round.
        repeats: rounds.
        seed: of the first run; each other one has the next number.
    """
    from posology.engine.recipe import parse_overrides
    from posology.measure.company import bench_company as run

    return run(
        data,
        backbone=backbone,
        method=method,
        ranks=ranks,
        recipe=recipe,
        overrides=parse_overrides(set or []),
        steps=steps,
        repeats=repeats,
        seed=seed,
    )
