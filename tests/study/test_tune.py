"""Searches: what is tried, how often, and what is left of them when they are killed."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from posology.errors import UserError
from posology.study.cell import Cell
from posology.study.executor import Event, Job
from posology.study.grouping import in_company
from posology.study.ledger import Ledger
from posology.study.local import LocalExecutor
from posology.study.spec import Search
from posology.study.tune import tune
from posology.tasks.prepared import PreparedTask

EPOCHS = 3
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "rank": {"low": 2, "high": 16},
    "alpha_ratio": [0.5, 1, 2],
    "targets": ["default", ["query", "value"], ["key"]],
}
RATES = {"learning_rate": SPACE["learning_rate"]}


def score_of(cell: Cell, epoch: float) -> float:
    """Best at a learning rate of 1e-2, and better with every epoch."""
    rate = cell.overrides.get("learning_rate", 5e-3)
    rank = cell.overrides.get("rank", 8)
    return float((0.9 - 0.1 * (math.log10(rate) + 2) ** 2 - 0.001 * rank) * (1 - 0.5**epoch))


class Machine:
    """An executor that trains nothing: scores follow from recipes, all its runs advance epoch by epoch together.

    Args:
        end_after: so many events, then `end` is called.
    """

    def __init__(self, end_after: int | None = None, end: Any = None, fails: tuple[int, ...] = ()):
        self.batches: list[list[Job]] = []
        self.stopped: list[str] = []
        self._left, self._end, self._fails, self._jobs = end_after, end, fails, 0

    def run(self, jobs: Iterable[Job]) -> Iterator[Event]:
        batch = list(jobs)
        self.batches.append(batch)
        for event in self._events(batch):
            if self._left == 0:
                self._end()
            self._left = None if self._left is None else self._left - 1
            yield event

    def stop(self, key: str) -> None:
        self.stopped.append(key)

    def _events(self, batch: list[Job]) -> Iterator[Event]:
        evaluations: dict[str, list[dict[str, float]]] = {job.key: [] for job in batch}
        failing = {job.key for number, job in enumerate(batch, self._jobs) if number in self._fails}
        self._jobs += len(batch)
        for job in batch:
            yield Event(job.key, "running", worker="1")
        for epoch in range(1, EPOCHS + 1):
            for job in batch:
                if job.key in failing or job.key in self.stopped:
                    continue
                score = score_of(job.cell, epoch)
                evaluation = {"epoch": float(epoch), "step": 4 * epoch, "seconds": epoch, "loss": 1.0, "score": score}
                evaluations[job.key].append(evaluation)
                yield Event(job.key, "evaluated", evaluation=evaluation)
        for job in batch:
            if job.key in failing:
                yield Event(job.key, "failed", problem="training diverged")
            else:
                stopped = "pruned" if len(evaluations[job.key]) < EPOCHS else "epochs"
                yield Event(job.key, "done", result=outcome(job, evaluations[job.key], stopped))


def outcome(job: Job, evaluations: list[dict[str, float]], stopped: str) -> dict[str, Any]:
    """What `posology.train` gives, as far as anybody reads it."""
    score = evaluations[-1]["score"]
    return {
        "artifact": str(job.out),
        "metric": "macro_f1",
        "metrics": {"macro_f1": {"value": score - 0.1, "low": score - 0.2, "high": score}},
        "validation": {"macro_f1": score, "accuracy": 1 - score},
        "seconds": float(job.cell.overrides.get("rank", 8)),
        "trainable_parameters": 10,
        "training": {"stopped": stopped, "evaluations": evaluations},
    }


@pytest.fixture(scope="module")
def base(backbone: Path, classification: PreparedTask) -> Cell:
    return Cell(task="complaint", data=classification.folder, backbone=str(backbone), overrides={"batch_size": 8})


@pytest.fixture(scope="module")
def whole(base: Cell, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A search that nobody disturbs, in batches of four."""
    return search(tmp_path_factory.mktemp("whole") / "ledger.db", base, parallel=4)[0]


def search(ledger: Path, base: Cell, machine: Any = None, **changes: Any) -> tuple[dict[str, Any], Machine]:
    """The result of one search, and the machine that did it."""
    machine = machine or Machine()
    options = {name: changes.pop(name) for name in ("seed", "parallel") if name in changes}
    with Ledger(ledger, write=True) as opened:
        found = tune(opened, "s", [base], Search(**{"trials": 8, "space": RATES, **changes}), machine, **options)
    return found["searches"][0], machine


def keys(machine: Machine) -> list[str]:
    return [job.key for batch in machine.batches for job in batch]


def trials_of(ledger: Path, name: str | None = None) -> list[optuna.trial.FrozenTrial]:
    """As Optuna, and its dashboard, read them."""
    storage = f"sqlite:///{ledger.with_suffix('.optuna.db')}"
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def test_the_best_of_all_trials_beside_the_default(tmp_path: Path, base: Cell, capsys: Any) -> None:
    found, machine = search(tmp_path / "ledger.db", base, space=SPACE, trials=10, parallel=4)
    assert [len(batch) for batch in machine.batches] == [4, 4, 2]
    rows = found["trials"]
    assert [row["number"] for row in rows] == list(range(10))
    assert found["states"] == {"complete": 10, "pruned": 0, "failed": 0}
    assert rows[0]["overrides"] == base.overrides and rows[0]["key"] == base.key() == found["default"]["key"]
    best = found["best"]
    assert best["validation"] == max(row["validation"] for row in rows) > found["default"]["validation"]
    assert best["test"] == {
        name: pytest.approx(best["validation"] - less) for name, less in (("value", 0.1), ("low", 0.2), ("high", 0))
    }
    assert found["default"]["test"]["value"] == pytest.approx(score_of(base, EPOCHS) - 0.1)
    assert "test" not in rows[1], "nothing is chosen by test"
    assert max(found["importance"], key=found["importance"].get) == "learning_rate"
    assert sum(found["importance"].values()) == pytest.approx(1)
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert ledger.status("s")["done"] == 10, "every trial is a run of the study"
        assert ledger.noted("s", "tune")["searches"] == [found]
    assert capsys.readouterr().err.count("on validation; best") == 10
    trials = trials_of(tmp_path / "ledger.db")
    assert [trial.user_attrs["key"] for trial in trials] == [row["key"] for row in rows]
    assert trials[3].intermediate_values.keys() == {1, 2, 3}
    assert (tmp_path / "ledger.optuna.db").stat().st_mode & 0o077 == 0


def test_what_is_drawn_lies_in_the_space(tmp_path: Path, base: Cell) -> None:
    found, _ = search(tmp_path / "ledger.db", base, space=SPACE, sampler="random", trials=20, parallel=20)
    ratios, targets = set(), []
    for row in found["trials"][1:]:
        drawn = row["overrides"]
        assert drawn.keys() == {"batch_size", "learning_rate", "rank", "alpha", "targets"} and drawn["batch_size"] == 8
        assert 1e-4 <= drawn["learning_rate"] <= 1e-1
        assert isinstance(drawn["rank"], int) and 2 <= drawn["rank"] <= 16
        ratios.add(drawn["alpha"] / drawn["rank"])
        targets.append(drawn["targets"])
    assert ratios == {0.5, 1, 2}
    assert all(choice in targets for choice in SPACE["targets"])


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_seed_decides_what_is_tried(tmp_path: Path, base: Cell, sampler: str) -> None:
    one, again, other = (
        [row["key"] for row in search(tmp_path / f"{name}.db", base, sampler=sampler, seed=seed, trials=7)[0]["trials"]]
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    assert one == again
    assert one[0] == other[0] and not set(one[1:]) & set(other[1:])
    assert len(set(one)) == 7


def test_tpe_learns_and_random_does_not(tmp_path: Path, base: Cell) -> None:
    def late(sampler: str) -> float:
        found = search(tmp_path / f"{sampler}.db", base, sampler=sampler, trials=20, parallel=2)[0]["trials"]
        return sum(row["validation"] for row in found[10:]) / 10

    assert late("tpe") > late("random") + 0.05


def test_ratio_is_of_the_rank_that_the_base_has(tmp_path: Path, base: Cell) -> None:
    ranked = base.model_copy(update={"overrides": {"rank": 32, "alpha": 5.0}})
    found, _ = search(tmp_path / "ledger.db", ranked, space={"alpha_ratio": [0.5, 1.0]}, trials=6)
    assert found["trials"][0]["overrides"] == {"rank": 32, "alpha": 5.0}
    assert {row["overrides"]["alpha"] for row in found["trials"][1:]} == {16.0, 32.0}
    assert trials_of(tmp_path / "ledger.db")[0].params == {}, "a ratio of 5/32 is not in the space"


def test_the_same_recipe_proposed_twice_is_one_run(tmp_path: Path, base: Cell) -> None:
    space = {"top_layers": [None, 1], "class_weights": ["none", "balanced"]}
    found, machine = search(tmp_path / "ledger.db", base, space=space, trials=12, parallel=4)
    assert found["states"]["complete"] == 12
    assert len(keys(machine)) == len(set(keys(machine))) == len({row["key"] for row in found["trials"]}) <= 4
    assert trials_of(tmp_path / "ledger.db")[0].params == {"top_layers": None, "class_weights": "none"}


def test_searches_advance_together_and_leave_out_what_a_method_has_not(tmp_path: Path, base: Cell) -> None:
    head = base.model_copy(update={"method": "head"})
    wanted = Search(trials=6, space={"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "rank": [4, 8]})
    machine = Machine()
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        found = tune(ledger, "s", [base, head], wanted, machine, parallel=3)["searches"]
        assert ledger.status("s")["done"] == 12
    assert [len(batch) for batch in machine.batches] == [6, 6]
    assert [one["method"] for one in found] == ["lora", "head"]
    assert all("rank" in row["overrides"] for row in found[0]["trials"][1:])
    assert not any("rank" in row["overrides"] for row in found[1]["trials"])


def test_runs_that_fail_count_and_are_not_tried_again(tmp_path: Path, base: Cell) -> None:
    found, _ = search(tmp_path / "ledger.db", base, Machine(fails=(0, 5)))
    assert found["states"] == {"complete": 6, "pruned": 0, "failed": 2}
    assert found["default"]["problem"] == "training diverged" and found["default"]["test"] is None
    again, machine = search(tmp_path / "ledger.db", base)
    assert again == found and keys(machine) == []


def test_another_metric_than_the_checkpoints(tmp_path: Path, base: Cell) -> None:
    found, _ = search(tmp_path / "ledger.db", base, metric="accuracy")
    assert found["metric"] == "accuracy"
    assert found["best"]["validation"] == max(row["validation"] for row in found["trials"])
    assert found["best"]["validation"] == pytest.approx(
        1 - min(t.intermediate_values[EPOCHS] for t in trials_of(tmp_path / "ledger.db"))
    )


# --- ends and continuations -------------------------------------------------------------------------------------------


def stop() -> None:
    raise RuntimeError("the machine is on fire")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("events", [0, 19, 30])
def test_continues_after_an_error_without_repeating(
    tmp_path: Path, base: Cell, whole: dict[str, Any], events: int
) -> None:
    ledger = tmp_path / "ledger.db"
    with pytest.raises(RuntimeError):
        search(ledger, base, Machine(events, stop), parallel=4)
    asked = [trial.params for trial in trials_of(ledger)]
    with Ledger(ledger) as opened:
        done = set(opened.keys("s", "done"))
    found, machine = search(ledger, base, parallel=4)
    assert asked == [trial.params for trial in trials_of(ledger)][: len(asked)]
    assert not done & set(keys(machine)) and len(done) + len(keys(machine)) == 8
    assert found == without_names(whole, found)


def without_names(whole: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """`whole`, with the places of another ledger."""
    return whole | {name: whole[name] | {"artifact": found[name]["artifact"]} for name in ("best", "default")}


def _search_and_die(ledger: Path, base: Cell) -> None:
    search(ledger, base, Machine(27, kill), parallel=4)


def test_continues_after_a_kill_without_repeating(tmp_path: Path, base: Cell, whole: dict[str, Any]) -> None:
    ledger = tmp_path / "ledger.db"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_search_and_die, args=(ledger, base))
    process.start()
    process.join(90)
    assert process.exitcode == -signal.SIGKILL
    with Ledger(ledger) as opened:
        done = set(opened.keys("s", "done"))
        assert len(done) == 4 and opened.status("s")["running"] == 4
    assert [trial.state.name for trial in trials_of(ledger)] == ["COMPLETE"] * 4 + ["RUNNING"] * 4
    found, machine = search(ledger, base, parallel=4)
    assert [len(batch) for batch in machine.batches] == [4]
    assert not done & set(keys(machine))
    assert found == without_names(whole, found)
    with Ledger(ledger) as opened:
        assert not opened.check() and opened.status("s") == {"pending": 0, "running": 0, "done": 8, "failed": 0}


def test_a_result_that_optuna_was_not_told_is_told(tmp_path: Path, base: Cell, monkeypatch: Any) -> None:
    ledger = tmp_path / "ledger.db"
    with monkeypatch.context() as patch:
        patch.setattr("posology.study.trials.Trial.tell", lambda *_: stop())
        with pytest.raises(RuntimeError):
            search(ledger, base, parallel=4)
    with Ledger(ledger) as opened:
        done = opened.keys("s", "done")
    assert len(done) == 1
    found, machine = search(ledger, base, parallel=4)
    assert not set(done) & set(keys(machine)) and found["states"]["complete"] == 8


def test_killed_between_asking_and_drawing(tmp_path: Path, base: Cell, whole: dict[str, Any], monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        drawn = optuna.Trial.suggest_float

        def once(trial: optuna.Trial, *given: Any, **options: Any) -> float:
            return stop() if trial.number == 6 else drawn(trial, *given, **options)  # type: ignore[return-value]

        patch.setattr(optuna.Trial, "suggest_float", once)
        with pytest.raises(RuntimeError):
            search(tmp_path / "ledger.db", base, parallel=4)
    found, _ = search(tmp_path / "ledger.db", base, parallel=4)
    assert len(found["trials"]) == len(trials_of(tmp_path / "ledger.db")) == 8
    assert [row["key"] for row in found["trials"][:6]] == [row["key"] for row in whole["trials"][:6]]


def test_more_trials_go_on_and_fewer_are_refused(tmp_path: Path, base: Cell) -> None:
    first, _ = search(tmp_path / "ledger.db", base, trials=5)
    more, machine = search(tmp_path / "ledger.db", base, trials=9)
    assert more["trials"][:5] == first["trials"] and len(keys(machine)) == 4
    with pytest.raises(UserError, match="has 9 trials already, and 5 are asked for"):
        search(tmp_path / "ledger.db", base, trials=5)


def test_a_lost_ledger_is_filled_again(tmp_path: Path, base: Cell) -> None:
    first, _ = search(tmp_path / "ledger.db", base)
    for file in tmp_path.glob("ledger.db*"):
        file.unlink()
    again, machine = search(tmp_path / "ledger.db", base)
    assert again == first and len(keys(machine)) == 8


# --- halving and two objectives ---------------------------------------------------------------------------------------


def test_halving_ends_trials_that_are_behind(tmp_path: Path, base: Cell) -> None:
    found, machine = search(tmp_path / "ledger.db", base, pruner="halving", trials=16, sampler="random")
    assert found["states"]["pruned"] >= 5
    assert found["states"]["complete"] + found["states"]["pruned"] == 16
    trials = trials_of(tmp_path / "ledger.db")
    for row, trial in zip(found["trials"], trials, strict=True):
        assert row["state"] == "complete" or row["key"] in machine.stopped
        assert trial.value == pytest.approx(trial.intermediate_values[trial.last_step])
        assert row["epochs"] == trial.last_step and (row["epochs"] < EPOCHS) == (row["state"] == "pruned")
    assert found["trials"][0]["state"] == "complete", "the default is there to compare with"
    best = max((row for row in found["trials"]), key=lambda row: score_of(base.model_copy(update=row), 1))
    assert best["state"] == "complete" and found["best"]["key"] == best["key"]


def test_halving_continues_after_an_error(tmp_path: Path, base: Cell) -> None:
    options: dict[str, Any] = {"pruner": "halving", "trials": 12, "sampler": "random", "parallel": 6}
    whole, _ = search(tmp_path / "whole.db", base, **options)
    with pytest.raises(RuntimeError):
        search(tmp_path / "ledger.db", base, Machine(17, stop), **options)
    found, _ = search(tmp_path / "ledger.db", base, **options)
    assert [row["state"] for row in found["trials"]] == [row["state"] for row in whole["trials"]]


def test_what_another_search_ended_early_is_done_anew(tmp_path: Path, base: Cell) -> None:
    wanted: dict[str, Any] = {"trials": 12, "space": RATES, "sampler": "random"}
    first, second = Machine(), Machine()
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        halved = tune(ledger, "halved", [base], Search(**wanted, pruner="halving"), first)["searches"][0]
        whole = tune(ledger, "whole", [base], Search(**wanted), second)["searches"][0]
        pruned = {row["key"] for row in halved["trials"] if row["state"] == "pruned"}
        assert pruned and set(keys(second)) == pruned, "those, and no others"
        assert whole["states"] == {"complete": 12, "pruned": 0, "failed": 0}
        assert {row["epochs"] for row in whole["trials"]} == {EPOCHS}
        third = Machine()
        more = tune(ledger, "halved", [base], Search(**wanted | {"trials": 13}, pruner="halving"), third)["searches"][0]
        assert len(keys(third)) == 1 and more["states"]["pruned"] >= len(pruned)


def test_a_search_keeps_what_it_ended_early_itself(tmp_path: Path, base: Cell) -> None:
    options: dict[str, Any] = {"pruner": "halving", "sampler": "random"}
    found, _ = search(tmp_path / "ledger.db", base, trials=12, **options)
    assert found["states"]["pruned"]
    again, machine = search(tmp_path / "ledger.db", base, trials=12, **options)
    assert keys(machine) == [] and again == found


def test_two_objectives_give_a_front(tmp_path: Path, base: Cell) -> None:
    found, _ = search(tmp_path / "ledger.db", base, space=SPACE, objective=["metric", "cost"], trials=12)
    front = sorted(found["front"], key=lambda row: row["seconds"])
    assert len(front) > 1
    scores = [row["validation"] for row in front]
    assert scores == sorted(scores)
    for row in found["trials"]:
        assert any(row["validation"] <= best["validation"] and row["seconds"] >= best["seconds"] for best in front)
    assert found["best"]["key"] == front[-1]["key"] and front[0]["test"]["low"] < front[0]["test"]["high"]
    assert trials_of(tmp_path / "ledger.db")[4].values == [
        found["trials"][4]["validation"],
        found["trials"][4]["seconds"],
    ]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"virtual_tokens": [5, 10]}}, "search.space.virtual_tokens: is no field that lora uses"),
        ({"space": {"learning_rat": [1e-3]}}, "search.space.learning_rat: is no field"),
        ({"space": {"rank": [0, 8]}}, "search.space.rank: .*greater than or equal to 1"),
        ({"space": {"class_weights": {"low": 1, "high": 2}}}, "search.space.class_weights: "),
        ({"space": {"alpha": [1, 2], "alpha_ratio": [1, 2]}}, "search.space.alpha: is given by alpha_ratio too"),
        ({"metric": "entity_f1"}, "entity_f1 is no metric of complaint"),
        ({"pruner": "halving", "objective": ["metric", "cost"]}, "two objectives"),
        ({"parallel": 0}, "0 trials at once"),
    ],
)
def test_searches_that_cannot_be(tmp_path: Path, base: Cell, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        search(tmp_path / "ledger.db", base, **changes)


def test_no_trials_are_refused(tmp_path: Path, base: Cell) -> None:
    none = Search(space=RATES).model_copy(update={"trials": 0})
    with Ledger(tmp_path / "ledger.db", write=True) as ledger:
        with pytest.raises(UserError, match="0 trials are none"):
            tune(ledger, "s", [base], none, Machine())
        with pytest.raises(UserError, match="two searches are called complaint"):
            tune(ledger, "s", [base, base], Search(space=RATES), Machine())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"space": RATES | {"rank": [8]}}, "space"),
        ({"sampler": "random"}, "sampler"),
        ({"seed": 3}, "seed of the sampler"),
        ({"objective": ["metric", "cost"]}, "objective"),
    ],
)
def test_another_search_of_the_same_name(tmp_path: Path, base: Cell, changes: dict[str, Any], what: str) -> None:
    search(tmp_path / "ledger.db", base, trials=2)
    with pytest.raises(UserError, match=f"holds a search called s: complaint .* with another {what}. Give the study"):
        search(tmp_path / "ledger.db", base, **{"trials": 2} | changes)


def test_a_file_that_is_not_optunas(tmp_path: Path, base: Cell) -> None:
    (tmp_path / "ledger.optuna.db").write_text("something else, long enough to be no empty database\n" * 100)
    with pytest.raises(UserError, match="cannot be read as Optuna's storage"):
        search(tmp_path / "ledger.db", base)


# --- real training ----------------------------------------------------------------------------------------------------


def test_trials_train_in_company(tmp_path: Path, base: Cell, monkeypatch: Any) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine, groups = LocalExecutor(), []

    def grouped(jobs: list[Job], workers: int) -> list[list[Job]]:
        groups.append(in_company(jobs, workers))
        return groups[-1]

    monkeypatch.setattr("posology.study.grouping.in_company", grouped)
    short = base.model_copy(update={"overrides": {"epochs": 3}})
    found, _ = search(tmp_path / "ledger.db", short, machine, trials=4, pruner="halving")
    assert [len(group) for group in groups[0]] == [4], "the executor has all of a batch at once"
    assert found["states"]["failed"] == 0 and found["states"]["complete"] >= 1
    for row, trial in zip(found["trials"], trials_of(tmp_path / "ledger.db"), strict=True):
        assert (tmp_path / "ledger.runs" / row["key"] / "posology.json").is_file()
        assert row["seconds"] > 0 and trial.intermediate_values
        assert row["state"] == "pruned" or trial.value == row["validation"]
    assert found["best"]["test"]["low"] <= found["best"]["test"]["value"] <= found["best"]["test"]["high"]
