"""Many runs in one call against each by itself."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import posology
from posology.engine import company, many
from posology.engine import run as run_module
from posology.engine.artifact import read_record
from posology.engine.checkpoint import left_behind
from posology.engine.run import Run
from posology.errors import Interrupted, UserError
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import save_backbone

EXACT = {"precision": "fp32", "dropout": 0.0, "attention_dropout": 0.0, "epochs": 2, "max_length": 40, "overlap": 8,
         "patience": 9}  # fmt: skip


@pytest.fixture
def runs(backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path) -> list[dict[str, Any]]:
    def run(name: str, task: PreparedTask, method: str, seed: int, **overrides: Any) -> dict[str, Any]:
        if method == "lora":
            overrides["adapter_dropout"] = 0.0
        return {"data": task.folder, "out": tmp_path / name, "backbone": str(backbone), "method": method,
                "seed": seed, "overrides": {**EXACT, **overrides}}  # fmt: skip

    return [
        run("a", classification, "lora", 1, rank=2),
        run("b", tagging, "lora", 2, learning_rate=1e-3),
        run("c", tagging, "ia3", 3),
        run("d", classification, "head", 4, epochs=1),
        run("e", classification, "full", 5),
    ]


def weights(folder: Path) -> Any:
    return load_file(next(folder.glob("*.safetensors")))


def test_each_ends_as_by_itself(runs: list[dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    together = posology.train_many(runs, at_once=3)
    assert "4 runs on" in capfd.readouterr().err
    for run, result in zip(runs, together, strict=True):
        alone = posology.train(**{**run, "out": tmp_path / "alone" / Path(run["out"]).name})
        assert result["artifact"] == str(run["out"]) and result["method"] == run["method"]
        assert result["metrics"][result["metric"]]["value"] == pytest.approx(
            alone["metrics"][alone["metric"]]["value"], abs=1e-4
        )
        ours, theirs = weights(run["out"]), weights(tmp_path / "alone" / Path(run["out"]).name)
        assert ours.keys() == theirs.keys()
        assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in ours)
        assert posology.evaluate(run["out"], run["data"])["metrics"] == result["metrics"]


def test_each_corpus_is_read_once(runs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, count = run_module.training_documents, []

    def counted(task: PreparedTask, shots: int | None, seed: int) -> Any:
        count.append((task.name, shots, None if shots is None else seed))
        return read(task, shots, seed)

    monkeypatch.setattr(run_module, "training_documents", counted)
    few = [{**runs[3], "out": tmp_path / f"few-{seed}", "seed": seed, "shots": 2} for seed in (1, 2)]
    posology.train_many([*runs[:4], *few])
    assert len(count) == len(set(count)) == 4


def test_watching_ends_a_run_and_results_come_one_by_one(runs: list[dict[str, Any]]) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    came: list[tuple[int, dict[str, Any]]] = []

    def watch(number: int, evaluation: dict[str, float]) -> bool:
        seen.append((number, evaluation))
        return number in (1, 4)  # one in company, and one alone

    results = posology.train_many(runs, watch=watch, done=lambda number, result: came.append((number, result)))
    assert [result["training"]["stopped"] for result in results] == ["epochs", "pruned", "epochs", "epochs", "pruned"]
    for number, result in enumerate(results):
        evaluations = result["training"]["evaluations"]
        assert [evaluation for other, evaluation in seen if other == number] == evaluations
        assert len(evaluations) == (2 if number in (0, 2) else 1)
        assert result["metrics"][result["metric"]]["value"] is not None
        assert posology.evaluate(runs[number]["out"], runs[number]["data"])["metrics"] == result["metrics"]
    order = [number for number, _ in came]  # that in which they ended
    assert set(order[:2]) == {1, 3} and set(order[2:4]) == {0, 2} and order[4] == 4
    assert all(result is results[number] for number, result in came)


def test_only_runs_that_agree_keep_company(runs: list[dict[str, Any]], backbone: Path) -> None:
    from posology.engine.many import _asked, _grouped

    def groups(*changed: dict[str, Any]) -> list[int]:
        some = [{**runs[0], **change} for change in changed]
        for number, run in enumerate(some):
            run["overrides"] = {**EXACT, "adapter_dropout": 0.0, **run.pop("more", {})}
            run["out"] = Path(f"{number}")
        return sorted(len(group) for group in _grouped(_asked(number, run) for number, run in enumerate(some)))

    assert groups({}, {"seed": 7}, {"more": {"rank": 64}}, {"more": {"top_layers": 1}}) == [4]
    assert groups({}, {"backbone": f"{backbone}:2"}) == [1, 1]
    assert groups({}, {"more": {"precision": "bf16"}}) == [1, 1]
    assert groups({}, {"more": {"dropout": 0.2}}) == [1, 1]
    assert groups({"more": {"dropout": 0.2}}, {"more": {"dropout": 0.2, "top_layers": 1}}) == [1, 1]
    assert groups({"method": "dora"}, {"method": "dora"}) == [1, 1]


def test_architectures_that_are_not_written_out_train_one_by_one(
    runs: list[dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = save_backbone(tmp_path / "modernbert", "modernbert")
    some = [{**run, "backbone": str(other), "overrides": {**run["overrides"], "epochs": 1}} for run in runs[:2]]
    assert [result["method"] for result in posology.train_many(some)] == ["lora", "lora"]


def test_one_that_fails_does_not_take_the_others_with_it(
    runs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = many.make_training

    def broken(*given: Any, seed: int, **others: Any) -> Any:
        training = make(*given, seed=seed, **others)
        if seed == 2:
            with torch.no_grad():
                next(iter(training.weights.values())).fill_(float("nan"))
        return training

    monkeypatch.setattr(many, "make_training", broken)
    came: list[int] = []
    results = posology.train_many(runs[:3], done=lambda number, _: came.append(number))
    assert ["failed" in result for result in results] == [False, True, False]
    assert came[0] == 1 and sorted(came) == [0, 1, 2]
    assert "training diverged" in results[1]["failed"] and not runs[1]["out"].exists()


def test_whatever_a_user_can_mend_fails_one_run_only(
    runs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read = Run.read

    def unreadable(self: Run, *given: Any) -> None:
        read(self, *given)
        if self.out.name == "a":
            raise UserError("cannot be read", "Mend it", self.out)

    monkeypatch.setattr(Run, "read", unreadable)
    monkeypatch.setattr(Run, "validate", lambda self: {self.task.metric: float("nan") if self.out.name == "b" else 0.5})
    results = posology.train_many([*runs[:3], {**runs[4], "out": tmp_path / "f" / "a"}])
    assert ["failed" in result for result in results] == [True, True, False, True]
    assert "cannot be read" in results[0]["failed"] and "undefined" in results[1]["failed"]
    assert posology.load(runs[2]["out"]) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "run 2: epochs"),
        ({"seed": -1}, "run 2: seed"),
        ({"method": "laura"}, "no method"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_a_wrong_run_is_named_before_any_training(
    runs: list[dict[str, Any]], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        posology.train_many([runs[0], {**runs[1], **change}])
    assert not (tmp_path / "a").exists()


def test_outputs_must_differ_and_be_free(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="same output"):
        posology.train_many([runs[0], runs[0]])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        posology.train_many(runs[:2])


@pytest.mark.parametrize("steps", [6, 8])  # in the middle of the second epoch, and after the last step
def test_a_signal_leaves_what_was_reached_and_the_others_go_on_from_there(
    runs: list[dict[str, Any]],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    alone = [posology.train(**{**run, "out": tmp_path / "alone" / run["out"].name}) for run in runs[:4]]
    stop_at(monkeypatch, steps, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="3 hold their best state so far, not scored on test"):
        posology.train_many(runs[:4])
    left = [number for number, run in enumerate(runs[:4]) if left_behind(run["out"])]
    assert 0 in left and posology.load(runs[0]["out"]) is not None
    assert all(read_record(run["out"])["test"] is not None for run in runs[:4] if not left_behind(run["out"]))
    monkeypatch.undo()
    capfd.readouterr()
    # The first in company again, the last by itself: either goes on from the same kind of checkpoint.
    results = [*posology.train_many([runs[number] for number in left[:-1]]), posology.train(**runs[left[-1]])]
    assert capfd.readouterr().err.count("continuing from the checkpoint") == len(left) > 2
    for number, result in zip(left, results, strict=True):
        assert result["training"]["resumed"] == 1 and not left_behind(runs[number]["out"])
        assert steps_of(result) == steps_of(alone[number])
        ours, theirs = weights(runs[number]["out"]), weights(Path(alone[number]["artifact"]))
        assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in ours)


def test_a_company_that_dies_loses_no_step_that_was_kept(
    runs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def die() -> None:
        raise RuntimeError("no memory left")

    stop_at(monkeypatch, 5, die)
    with pytest.raises(RuntimeError, match="no memory left"):
        posology.train_many(runs[:3], checkpoint_seconds=0)
    monkeypatch.undo()
    posology.train(**{**runs[0], "out": tmp_path / "alone", "fresh": True})
    other = {**runs[2], "seed": 7}
    results = posology.train_many([*runs[:2], other])
    assert [result.get("training", {}).get("resumed") for result in results] == [1, 1, None]
    assert "made with other settings: seed 3, now 7" in results[2]["failed"]
    assert steps_of(results[0]) > 5
    ours, theirs = weights(runs[0]["out"]), weights(tmp_path / "alone")
    assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in ours)
    (result,) = posology.train_many([other], overwrite=True)
    assert result["training"]["resumed"] == 0 and result["seed"] == 7


def steps_of(result: dict[str, Any]) -> int:
    return int(result["training"]["evaluations"][-1]["step"])


def stop_at(monkeypatch: pytest.MonkeyPatch, steps: int, what: Callable[[], None]) -> None:
    """Does something after so many steps of a company."""
    step, count = company.Company.step, []

    def counted(self: company.Company) -> None:
        step(self)
        count.append(1)
        if len(count) == steps:
            what()

    monkeypatch.setattr(company.Company, "step", counted)
