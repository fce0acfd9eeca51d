"""The simulation of benchmarks/coverage.py in small: intervals hold the truth, tests find what is not there, as stated."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TRIALS = 400
# Four standard errors of a share of 5 % in so many trials.
CHANCE = 4 * np.sqrt(0.05 * 0.95 / TRIALS)


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # for what the benchmarks share
    # By its path: `coverage` is also the name of a well-known package.
    specification = importlib.util.spec_from_file_location("simulated_coverage", BENCHMARKS / "coverage.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["binary", "entities"])
def test_intervals_cover_and_tests_are_of_their_size(scenario: str, coverage: ModuleType) -> None:
    for row in coverage.simulate(scenario, TRIALS):
        assert 0.95 - CHANCE < row["coverage_jackknife"] < 0.95 + CHANCE, row
        assert 0.05 - CHANCE < row["size_jackknife"] < 0.05 + CHANCE, row


@pytest.mark.slow
def test_seeds_are_told_by_several_and_not_by_one(coverage: ModuleType) -> None:
    rows = {(row["seeds"], row["spread"]): row for row in coverage.simulate_seeds(150)}
    assert rows[3, 0.1]["coverage"] > 0.95 - 4 * np.sqrt(0.05 * 0.95 / 150)
    assert rows[1, 0.1]["size"] > 0.1 > rows[3, 0.1]["size"]
