"""Forecasts: arithmetic on a profile with fixed paces, and profiles that are really measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posology.engine.run import few
from posology.errors import UserError
from posology.measure import money
from posology.study import profile as profiles
from posology.study.cell import Cell
from posology.study.executor import Job
from posology.study.forecast import COMPANY_GAIN, forecast, forecast_study, total
from posology.study.grouping import in_company
from posology.study.ledger import Ledger
from posology.study.profile import Wanted, is_complete, length_class, measure, pace_key
from posology.study.study import Study
from posology.tasks.prepared import PreparedTask

PACE = {"loading": 2.0, "saving": 0.5, "prediction": 1e-9, "step": 0.1, "operation": 1e-9, "low": 0.95, "high": 1.1}
BASELINE = {"start": 1.0, "character": 1e-3, "evaluations": 8, "prediction": 1e-6}
SECONDS = {"reading": 0.25, "score": 0.125, "intervals": 0.5}


@pytest.fixture(scope="module")
def make(classification: PreparedTask, tagging: PreparedTask, backbone: Path) -> Any:
    """Makes cells; `tag=True` of the task of entities."""

    def cell(method: str = "lora", *, tag: bool = False, **fields: Any) -> Cell:
        task = tagging if tag else classification
        overrides = {"epochs": 2, **fields.pop("overrides", {})} if method != "tf-idf" else {}
        given = {"task": task.name, "data": task.folder, "backbone": str(backbone), "method": method}
        return Cell(**given, overrides=overrides, **fields)

    return cell


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What was measured so far, so that no pace is measured twice."""
    return {}


@pytest.fixture
def fixed(measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The profile of some cells as it is on a machine of fixed speed."""
    monkeypatch.setattr(profiles, "_start_seconds", lambda: 3.0)

    def profile(*cells: Cell) -> dict[str, Any]:
        measured.update(measure(cells, measured or None, seconds=0.01))
        copy = json.loads(json.dumps(measured))
        for part, value in (("paces", PACE), ("baselines", BASELINE)):
            copy[part] = {key: dict(value) for key in copy[part]}
        for task in copy["tasks"].values():
            task.update(SECONDS)
        for corpus in copy["corpora"].values():
            corpus["tokenising"] = 0.75
        return copy

    return profile


@pytest.mark.parametrize("tag", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "ia3", "prompt"])
def test_training_is_in_proportion_to_epochs(make: Any, fixed: Any, method: str, tag: bool) -> None:
    short, long = make(method, tag=tag), make(method, tag=tag, overrides={"epochs": 4})
    one, two = forecast([short, long], fixed(short, long))
    assert two.training == pytest.approx(2 * one.training)
    assert two.evaluation == pytest.approx(2 * one.evaluation)
    assert two.fixed == one.fixed
    assert one.steps == 8 and two.steps == 16 and one.documents == 64
    assert one.low < one.seconds < one.high


def test_seconds_are_those_of_the_formula(make: Any, fixed: Any) -> None:
    cell = make("lora")
    profile = fixed(cell)
    wanted = Wanted(cell)
    model, corpus = profile["models"][wanted.model], profile["corpora"][wanted.corpus]

    def work(name: str, split: str) -> float:
        size = corpus[split]
        return float(np.dot(model[name], [size["windows"], size["pieces"], size["squares"]]))

    (found,) = forecast([cell], profile)
    operations = work("forward", "train") + work("backward", "train")
    assert found.training == pytest.approx(2 * (4 * PACE["step"] + operations * PACE["operation"]))
    assert found.evaluation == pytest.approx(
        2 * (work("forward", "validation") * PACE["prediction"] + SECONDS["score"])
    )
    test = work("forward", "test") * PACE["prediction"] + SECONDS["intervals"]
    assert found.fixed == pytest.approx(SECONDS["reading"] + 0.75 + PACE["loading"] + PACE["saving"] + test)


def test_a_budget_of_seconds_is_the_most_that_training_takes(make: Any, fixed: Any) -> None:
    free, short, ample = make(), make(max_seconds=0.3), make(max_seconds=1e6)
    whole, cut, same = forecast([free, short, ample], fixed(free, short, ample))
    assert cut.training == 0.3 and cut.bounded and cut.steps < whole.steps
    assert cut.high <= 0.3 + 1.15 * (cut.evaluation + cut.fixed) + 1e-9
    assert cut.evaluation < whole.evaluation
    assert same.training == whole.training and not same.bounded


def test_evaluations_by_time_come_on_top(make: Any, fixed: Any) -> None:
    cell = make()
    (whole,) = forecast([cell], fixed(cell))
    epoch = whole.training / 2
    often = make(evaluate_seconds=epoch / 3.5)
    (found,) = forecast([often], fixed(often))
    assert found.evaluation == pytest.approx(4 * whole.evaluation)
    assert found.training == whole.training


@pytest.mark.parametrize("tag", [False, True])
def test_shots_are_those_that_the_run_will_draw(
    make: Any, fixed: Any, classification: PreparedTask, tagging: PreparedTask, tag: bool
) -> None:
    whole, some = make(tag=tag), make(tag=tag, shots=5, seed=3)
    all_of_them, drawn = forecast([whole, some], fixed(whole, some))
    task = tagging if tag else classification
    assert drawn.documents == len(few(task.documents("train"), 5, 3)) < all_of_them.documents
    assert drawn.training < all_of_them.training / 2
    assert drawn.memory == all_of_them.memory


def test_frozen_layers_run_once(make: Any, fixed: Any) -> None:
    full, top, head = make(), make(overrides={"top_layers": 1, "epochs": 2}), make("head")
    twice = make("head", overrides={"epochs": 4})
    lora, upper, only, longer = forecast([full, top, head, twice], fixed(full, top, head, twice))
    assert only.training < upper.training < lora.training
    # Of a head's training, what is left beside the steps' own seconds is nearly all of it done once.
    once = only.training - 8 * PACE["step"]
    assert longer.training - 16 * PACE["step"] == pytest.approx(once, rel=0.05)


def test_patience_makes_it_an_upper_bound(make: Any, fixed: Any) -> None:
    cell = make(overrides={"patience": 1})
    assert forecast([cell], fixed(cell))[0].bounded


def test_windows_of_long_texts_are_counted(make: Any, fixed: Any) -> None:
    whole, cut = make(), make(overrides={"max_length": 24, "overlap": 8})
    short = make(overrides={"max_length": 24, "long_text": "truncate"})
    one, windows, beginning = forecast([whole, cut, short], fixed(whole, cut, short))
    assert windows.training != one.training
    assert beginning.training < min(windows.training, one.training)


def test_baselines_are_foretold_too(make: Any, fixed: Any) -> None:
    whole, half, brief = make("tf-idf"), make("tf-idf", shots=8), make("tf-idf", max_seconds=0.5)
    one, drawn, cut = forecast([whole, half, brief], fixed(whole, half, brief))
    assert one.memory is None and one.steps == 8 and not one.bounded
    assert drawn.training < one.training
    assert cut.bounded and cut.steps < 8 and cut.training < one.training


def test_memory_is_what_a_run_is_allowed_at_most(make: Any, fixed: Any) -> None:
    full, lora, tight = make("full"), make("lora"), make("full", max_memory=10**8)
    profile = fixed(full, lora, tight)
    large, small, limited = forecast([full, lora, tight], profile)
    assert large.memory is not None and small.memory is not None and large.process is not None
    assert large.memory > small.memory > large.process
    assert limited.memory == 10**8


def test_totals_add_up(make: Any, fixed: Any) -> None:
    cells = [make("lora"), make("lora", seed=7), make("full"), make("tf-idf")]
    profile = fixed(*cells)
    runs = forecast(cells, profile)
    whole = total(cells, runs, profile, price="aws/g5.xlarge")
    assert whole.runs == 4 and whole.seconds == pytest.approx(sum(run.seconds for run in runs))
    assert whole.low < whole.seconds < whole.high
    assert whole.memory == runs[2].memory
    assert whole.money == money.cost(whole.seconds, "aws/g5.xlarge")
    assert whole.elapsed == pytest.approx(3.0 + whole.seconds)
    # Only the two of LoRA can keep each other company.
    assert whole.seconds - whole.in_company == pytest.approx(2 * runs[0].training * (1 - 1 / COMPANY_GAIN))
    two, many = (total(cells, runs, profile, workers=workers) for workers in (2, 9))
    assert max(run.seconds for run in runs) + 3.0 == pytest.approx(many.elapsed)
    assert many.elapsed <= two.elapsed < whole.elapsed and two.money is None
    assert json.dumps(whole.record())
    nothing = total([], [], profile)
    assert nothing.seconds == nothing.elapsed == 0 and nothing.memory is None


def test_runs_that_train_alone_save_nothing(make: Any, fixed: Any, tmp_path: Path) -> None:
    """Those that `in_company` leaves alone: heads, limits of memory, layers that nobody trains, teachers."""
    head, limited, top = make("head"), make(max_memory=10**9), make(overrides={"top_layers": 1})
    other = make(overrides={"dropout": 0.3})
    one, profile = make(), fixed(head, limited, top, other, make())

    def saved(*cells: Cell) -> float:
        whole = total(cells, forecast(cells, profile), profile)
        return whole.seconds - whole.in_company

    def companies(*cells: Cell) -> int:
        return len(in_company([Job(str(number), cell, tmp_path) for number, cell in enumerate(cells)]))

    for cell in (head, limited, top):
        pair = cell, cell.model_copy(update={"seed": 7})
        assert saved(*pair) == 0 and companies(*pair) == 2, cell.title
    assert saved(one, other) == 0 and companies(one, other) == 2
    assert saved(one, one.model_copy(update={"seed": 7})) > 0 and companies(one, one) == 1


def test_processes_on_the_same_processors_are_no_faster(
    make: Any, fixed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [make("lora", seed=seed) for seed in range(4)]
    profile = fixed(*cells)
    monkeypatch.setattr("posology.study.forecast.measure", lambda *_: profile)

    def elapsed(workers: int, gpus: int = 0, cluster: bool = False) -> float:
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        return float(forecast_study(None, cells, workers=workers, cluster=cluster)["elapsed"])

    seconds = sum(run.seconds for run in forecast(cells, profile))
    assert elapsed(1) == elapsed(4) == elapsed(4, gpus=1) == pytest.approx(3.0 + seconds)
    assert elapsed(4, gpus=2) == elapsed(2, cluster=True) == pytest.approx(3.0 + seconds / 2)
    assert elapsed(1, gpus=4) == pytest.approx(3.0 + seconds)
    # What a study file names as its executor decides.
    for executor, share in (("local", 1), ("ray", 4)):
        file = tmp_path / f"{executor}.yaml"
        file.write_text(
            f"study: s\ntasks: [{cells[0].data}]\nbackbones: ['{cells[0].backbone}']\nmethods: [lora]\n"
            f"seeds: [0, 1, 2, 3]\nset: {{epochs: 2}}\nexecutor: {executor}\n"
        )
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
        found = Study(file, ledger=tmp_path / "ledger.db").plan(workers=4)
        assert found["elapsed"] == pytest.approx(3.0 + seconds / share)


def test_a_profile_is_measured_once(
    make: Any, fixed: Any, measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [make("lora"), make("ia3"), make("tf-idf"), make("lora", tag=True)]
    fixed(*cells)
    known = dict(measured)
    for pace in known["paces"].values():
        assert all(np.isfinite(value) and value >= 0 for value in pace.values())
        assert pace["prediction"] > 0 and pace["operation"] + pace["step"] > 0
    lora, ia3, tagger = (pace_key(Wanted(cells[number]), known) for number in (0, 1, 3))
    assert lora == ia3 != tagger, "LoRA and IA3 share a pace, kinds of task do not"
    again = json.loads(json.dumps(known))
    import posology.study.profiling as profiling

    monkeypatch.setattr(profiling.Measurement, "add", lambda *_: pytest.fail("measured again"))
    assert measure(cells, again) == known
    assert measure(cells[:1], again) == known
    # Where there is no time, what is known is what there is.
    new = make("lora", overrides={"max_length": 24, "long_text": "truncate", "precision": "fp32"})
    partly = measure([*cells, new], again, more=lambda: False)
    assert partly == known and not is_complete(Wanted(new), partly) and is_complete(Wanted(cells[0]), partly)
    monkeypatch.setattr(profiles, "this_machine", lambda: {"processor": "another"})
    with pytest.raises(pytest.fail.Exception):
        measure(cells, again)


def test_a_study_keeps_the_profile_in_its_ledger(
    make: Any, fixed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [make("lora"), make("full")]
    profile = fixed(*cells)
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        monkeypatch.setattr("posology.study.forecast.measure", lambda *_: profile)
        found = forecast_study(ledger, cells, price="aws/g5.xlarge")
        twice = forecast_study(ledger, cells, price="aws/g5.xlarge", times=2)
        monkeypatch.undo()
        assert forecast_study(ledger, cells, price="aws/g5.xlarge") == found
        assert found["currency"] == "USD" and twice["money"] == pytest.approx(2 * found["money"])
        assert twice["seconds"] == pytest.approx(2 * found["seconds"]) and twice["memory"] == found["memory"]
        with pytest.raises(UserError):
            forecast_study(ledger, cells, price="a guess")


def test_what_is_missing_is_said(make: Any, fixed: Any, tmp_path: Path) -> None:
    known = fixed(make("lora"))
    with pytest.raises(UserError) as caught:
        forecast([make("dora")], known)
    assert "says nothing of this run" in str(caught.value)
    lost = make().model_copy(update={"data": tmp_path / "nowhere"})
    for work in (measure, lambda cells: forecast(cells, known)):
        with pytest.raises(UserError) as caught:
            work([lost])
        assert "nowhere" in str(caught.value)
    with pytest.raises(UserError):
        measure([make("lorra")])


def test_classes_of_length() -> None:
    assert [length_class(length) for length in (1, 64, 64.5, 200, 480)] == [0, 0, 1, 2, 3]
