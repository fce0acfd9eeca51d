"""How many runs have room: by hand on a machine of our making, and against what training takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import posology
from posology.engine import company_size as sizes
from posology.engine.backbone import load_config, resolve
from posology.engine.company_size import Plan, Size, company_size
from posology.engine.memory import Rehearsal
from posology.engine.precision import Precision
from posology.engine.recipe import make_recipe
from posology.errors import UserError
from posology.tasks.prepared import PreparedTask

FP32 = Precision(torch.device("cpu"), False, "float32")
HELD, WEIGHTS, PIECE = 500_000_000, 10_000, 1_000_000


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Sets how many bytes are free. The process holds `HELD`, the backbone included, and a piece takes `PIECE`."""

    def estimate(self: Rehearsal, lengths: Sequence[int], *, process: int) -> Any:
        return SimpleNamespace(peak=process + WEIGHTS + self.of_a_run + PIECE * sum(lengths))

    monkeypatch.setattr(sizes, "resident_bytes", lambda: HELD)
    monkeypatch.setattr(Rehearsal, "estimate", estimate)

    def so_many(count: int | None) -> None:
        monkeypatch.setattr(sizes, "machine_memory", lambda: {"available_bytes": count})

    return so_many


def plan(rank: int = 8, method: str = "lora") -> Plan:
    recipe = make_recipe(
        method, overrides={"max_length": 40, "overlap": 8} | ({"rank": rank} if method == "lora" else {})
    )
    return Plan(method, recipe, "token-classification", 5, False)


def size(backbone: Path, plans: list[Plan], runs: int = 16, tokens: int = 400, **options: Any) -> Size:
    return company_size(resolve(str(backbone)), plans, FP32, weights=WEIGHTS, runs=runs, tokens=tokens, **options)


def own_bytes(backbone: Path, rank: int) -> int:
    """Weights, gradients, two moments and the best of adapter and head, in float32; and the head as PEFT found it."""
    config = load_config(resolve(str(backbone)))
    adapter = config.num_hidden_layers * 2 * 2 * rank * config.hidden_size  # of query and value, down and up
    head = 5 * (config.hidden_size + 1)
    return 4 * (5 * (adapter + head) + head)


def test_runs_are_counted_until_memory_ends(backbone: Path, free: Callable[[int | None], None]) -> None:
    plans = [plan(rank) for rank in (64, 8, 32, 8)]
    own = [own_bytes(backbone, rank) for rank in (64, 32, 8, 8)]
    shared = HELD + WEIGHTS + 400 * PIECE  # one more backbone, while a run enters
    for runs in (2, 3, 4):
        limit = shared + sum(own[:runs])
        assert size(backbone, plans, max_memory=limit) == Size(runs, 400)
        free(int((limit - HELD) / 0.9) + 2)
        assert size(backbone, plans) == Size(runs, 400)  # a tenth of what is free stays so
        assert size(backbone, plans, max_memory=limit - 1) == (Size(runs - 1, 400) if runs > 2 else Size(4, 200))
    assert size(backbone, plans, runs=3, max_memory=10**12) == Size(3, 400)


def test_micro_batches_are_cut_where_two_runs_do_not_fit_otherwise(backbone: Path, free: Any) -> None:
    plans, least = [plan(), plan()], HELD + WEIGHTS + 40 * PIECE
    own = own_bytes(backbone, 8)
    assert size(backbone, plans, max_memory=HELD + WEIGHTS + 100 * PIECE + 2 * own) == Size(2, 100)
    assert size(backbone, plans, max_memory=least + own) == Size(1, 40)
    with pytest.raises(UserError, match=r"with 40 pieces at a time, and the limit is 5.. MB.*max_length=32"):
        size(backbone, plans, max_memory=least + own - 1)
    free(0)
    assert size(backbone, plans) == Size(1, 40)  # nobody set a limit: it is tried


def test_nothing_is_rehearsed_where_memory_is_unknown_or_plenty(
    backbone: Path, free: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sizes, "Rehearsal")
    for count in (None, 8 * 10**9 + 8 * WEIGHTS):
        free(count)
        assert size(backbone, [plan()]) == Size(16, 400)


def test_a_company_is_as_large_as_memory_allows(
    backbone: Path, tagging: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """From the argument of `train_many` to the runs that train at the same time."""
    runs = [
        {"data": tagging.folder, "out": tmp_path / str(seed), "backbone": str(backbone), "seed": seed,
         "overrides": {"epochs": 1, "max_length": 40, "overlap": 8, "precision": "fp32"}}
        for seed in range(3)
    ]  # fmt: skip
    monkeypatch.setattr(sizes, "resident_bytes", lambda: HELD)
    with pytest.raises(UserError, match=r"one run alone needs about .* the limit is 100 MB"):
        posology.train_many(runs, max_memory="100MB")
    config = load_config(resolve(str(backbone)))
    recipe = make_recipe("lora", overrides=runs[0]["overrides"])
    rehearsal = Rehearsal(config, "lora", recipe, tagging.kind, FP32, outputs=3)
    weights = sum(each.numel() for each in rehearsal.adapted.base.parameters() if not each.requires_grad) * 4
    peak = rehearsal.estimate([40], process=HELD - weights).peak
    posology.train_many(runs, max_memory=peak + weights + rehearsal.of_a_run + 50_000)
    assert "3 runs on" in (said := capsys.readouterr().err) and "up to 2 at once" in said
