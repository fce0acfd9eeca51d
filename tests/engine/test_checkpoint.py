"""Whatever stops a training, it goes on where it was, and nothing it wrote is ever half."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

import posology
from posology.engine import checkpoint as checkpoints
from posology.engine import loop
from posology.engine.artifact import read_record
from posology.engine.checkpoint import Checkpoint, folder_of, generators, restore_generators
from posology.engine.stopping import Stop
from posology.errors import Interrupted, UserError
from posology.tasks.prepared import PreparedTask
from tests.engine.processes import STATE, finish, start, wait_until

OPTIONS: dict[str, Any] = {
    "overrides": {
        "epochs": 6,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "max_length": 90,
        "overlap": 8,
        "precision": "fp32",
        "patience": 9,
    },
    "checkpoint_seconds": 1000,
}
OFTEN = OPTIONS | {"checkpoint_seconds": 0}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: shells let what they start in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def train(task: PreparedTask, backbone: Path, out: Path, **options: Any) -> dict[str, Any]:
    return posology.train(task.folder, str(backbone), "lora", out, **OPTIONS | options)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Sends this process a signal in the middle of a step, once."""
    backward, calls = loop.backward, []

    def sending(*arguments: Any) -> tuple[float, int]:
        calls.append(1)
        result = backward(*arguments)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(loop, "backward", sending)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


def same(one: Path, other: Path) -> None:
    """Two artifacts have the same tensors, bit for bit, and were scored the same on the way."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    curves = [
        [(point["step"], point["loss"], point["score"]) for point in read_record(out)["training"]["evaluations"]]
        for out in (one, other)
    ]
    assert curves[0] == curves[1]
    assert read_record(one)["test"] == read_record(other)["test"]


@pytest.fixture(scope="module")
def undisturbed(backbone: Path, tagging: PreparedTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped, and that wrote no checkpoint but after evaluations."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    torch.set_num_threads(1)
    train(tagging, backbone, out)
    assert read_record(out)["training"]["best"] >= 2  # the artifact holds weights from well within training
    return out


@pytest.fixture
def cut_off(backbone: Path, tagging: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a run that was stopped."""
    with monkeypatch.context() as patch:
        stop_at(20, patch)
        with pytest.raises(Interrupted):
            train(tagging, backbone, tmp_path / "run")
    return tmp_path / "run"


# --- kills ------------------------------------------------------------------------------------------------------------


def kill_often(kills: int, task: PreparedTask, backbone: Path, out: Path, options: dict[str, Any]) -> int:
    """Kills a training at random moments after it has begun anew to write, and lets it finish then.

    Returns how many kills met it.
    """
    draw, met = random.Random(kills), 0
    state = folder_of(out) / STATE
    for _ in range(kills):
        process = start(task.folder, backbone, out, **options)
        before = state.stat().st_mtime_ns if state.exists() else 0

        def written(before: int = before) -> bool:
            return state.exists() and state.stat().st_mtime_ns != before

        if wait_until(written, process):
            time.sleep(draw.uniform(0, 0.06))
            process.kill()
            met += finish(process) == -signal.SIGKILL
        else:
            assert finish(process) == 0
            return met
    assert finish(start(task.folder, backbone, out, **options)) == 0
    return met


def test_killed_at_random_moments_it_ends_with_the_same_weights(
    backbone: Path, tagging: PreparedTask, undisturbed: Path, tmp_path: Path
) -> None:
    assert kill_often(6, tagging, backbone, tmp_path / "run", OFTEN) >= 5
    same(tmp_path / "run", undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.err"]
    assert "continuing from the checkpoint of step" in (tmp_path / "run.err").read_text()
    assert read_record(tmp_path / "run")["training"]["resumed"] >= 5


@pytest.mark.slow
def test_killed_fifty_times_it_ends_with_the_same_weights(
    backbone: Path, tagging: PreparedTask, tmp_path: Path
) -> None:
    more = {"overrides": OPTIONS["overrides"] | {"epochs": 30, "patience": 99, "learning_rate": 3e-3}}
    train(tagging, backbone, tmp_path / "whole", **more)
    assert kill_often(50, tagging, backbone, tmp_path / "run", OFTEN | more) == 50
    same(tmp_path / "run", tmp_path / "whole")


def test_killed_while_the_test_is_scored_it_has_only_that_to_do(
    backbone: Path, tagging: PreparedTask, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posology.engine.predictor import Predictor

    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("as if killed")

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "answer", killed)
        with pytest.raises(RuntimeError):
            train(tagging, backbone, tmp_path / "run", checkpoint_seconds=0)
    assert read_record(tmp_path / "run")["test"] is None
    monkeypatch.setattr(loop, "backward", killed)  # no step is left
    train(tagging, backbone, tmp_path / "run")
    same(tmp_path / "run", undisturbed)


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_step_and_the_same_command_goes_on(
    number: int, backbone: Path, tagging: PreparedTask, undisturbed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "run"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        stop_at(21, patch, number)  # of 16 an epoch
        with pytest.raises(Interrupted, match=r"best state so far, not scored on test; the same command continues"):
            train(tagging, backbone, out)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    record = read_record(out)
    assert record["training"]["stopped"] == "interrupted" and record["test"] is None
    scored = posology.evaluate(out, tagging.folder, split="validation")
    assert scored["metrics"]["entity_f1"]["value"] == pytest.approx(record["validation"]["entity_f1"])
    capsys.readouterr()
    result = train(tagging, backbone, out)
    assert "checkpoint of step 21 (epoch 2 of 6" in capsys.readouterr().err
    assert result["training"]["stopped"] == "epochs" and result["training"]["resumed"] == 1
    same(out, undisturbed)
    assert not folder_of(out).exists()
    with pytest.raises(UserError, match="--overwrite"):  # it is done now
        train(tagging, backbone, out)


def test_sigterm_on_the_command_line_exits_with_130(backbone: Path, tagging: PreparedTask, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(tagging.folder, backbone, out, **OFTEN)
    assert wait_until((folder_of(out) / STATE).exists, process)
    process.terminate()
    assert finish(process) == 130
    assert "the same command continues" in (tmp_path / "run.err").read_text()
    assert read_record(out)["training"]["stopped"] == "interrupted"


def test_a_signal_ends_an_evaluation_at_once_and_it_is_made_later(
    backbone: Path, tagging: PreparedTask, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posology.engine.predictor import Predictor

    logits, calls = Predictor.logits, []

    def sending(self: Predictor, *arguments: Any, **more: Any) -> Any:
        torch.rand(3)  # training must not notice
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            raise AssertionError("not stopped")
        return logits(self, *arguments, **more)

    monkeypatch.setattr(Predictor, "logits", sending)
    with pytest.raises(Interrupted):
        train(tagging, backbone, tmp_path / "run")
    assert len(read_record(tmp_path / "run")["training"]["evaluations"]) == 1
    train(tagging, backbone, tmp_path / "run")
    same(tmp_path / "run", undisturbed)


def test_a_second_signal_does_not_wait_and_ignored_signals_stay_ignored() -> None:
    with Stop.deferred() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Stop.deferred() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGTERM, before)


def test_trainings_in_threads_leave_signals_alone(backbone: Path, tagging: PreparedTask, tmp_path: Path) -> None:
    results: list[dict[str, Any]] = []
    options = {"overrides": OPTIONS["overrides"] | {"epochs": 1}}
    thread = threading.Thread(target=lambda: results.append(train(tagging, backbone, tmp_path / "run", **options)))
    thread.start()
    thread.join(60)
    assert results[0]["training"]["stopped"] == "epochs"


# --- disks ------------------------------------------------------------------------------------------------------------


def small(value: float) -> dict[str, torch.Tensor]:
    return {"weights/a": torch.full((3,), value), "step": torch.tensor(value), "half": torch.ones(5)[1:3].bfloat16()}


def holds(out: Path, value: float) -> None:
    with Checkpoint(out, {"seed": 1}) as own:
        found = own.read()
    assert found is not None
    tensors, facts = found
    assert facts == {"value": value} and tensors.keys() == small(value).keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in small(value).items())


@pytest.mark.parametrize("stage", ["write", "mkdir", "fsync", "replace", "flush"])
def test_a_full_disk_leaves_the_old_checkpoint(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with Checkpoint(out, {"seed": 1}) as own:
        own.write(small(1.0), {"value": 1.0})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoint(out, {"seed": 1}) as own, monkeypatch.context() as patch:
        if stage == "write":  # a real one: no file may grow beyond what the header needs
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
        elif stage == "mkdir":
            patch.setattr(Path, "mkdir", full)
        elif stage == "flush":  # the folder's, after the file has taken its place
            patch.setattr(checkpoints, "_flush", lambda path: full() if path == own.folder else None)
        else:
            patch.setattr(os, stage, full)
        try:
            own.write(small(2.0), {"value": 2.0})
            own.write(small(2.0), {"value": 2.0})
        finally:
            if stage == "write":
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert said.count("could not be written") == 1 and "the one before is kept" in said
    holds(out, 2.0 if stage == "flush" else 1.0)
    assert sorted(path.name for path in folder_of(out).iterdir()) == ["lock", STATE]


def test_training_goes_on_when_checkpoints_cannot_be_written(
    backbone: Path, tagging: PreparedTask, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "_save", full)
    train(tagging, backbone, tmp_path / "run", checkpoint_seconds=0)
    assert capsys.readouterr().err.count("a checkpoint could not be written (No space left on device)") == 1
    same(tmp_path / "run", undisturbed)
    assert not folder_of(tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["truncated", "garbled", "header", "empty", "foreign", "facts"])
def test_a_damaged_checkpoint_is_not_used(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Checkpoint(tmp_path / "run", {"seed": 1}) as own:
        own.write(small(1.0), {"value": 1.0})
    path = own.folder / STATE
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-10:]
    elif damage == "garbled":
        content[-1] ^= 1
    elif damage == "header":
        content[20:40] = b"x" * 20
    elif damage == "empty":
        content.clear()
    elif damage == "facts":
        content = content.replace(b"1.0", b"2.0")
    else:
        content = bytearray(save(small(1.0)))
    path.write_bytes(content)
    with Checkpoint(tmp_path / "run", {"seed": 1}) as own:
        assert own.read() is None
        said = capsys.readouterr().err
        assert "is damaged" in said and "starts over" in said
        own.write(small(3.0), {"value": 3.0})
    holds(tmp_path / "run", 3.0)


def test_training_starts_over_where_a_checkpoint_is_damaged(
    cut_off: Path, backbone: Path, tagging: PreparedTask, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder_of(cut_off) / STATE
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    train(tagging, backbone, cut_off)
    assert "continuing" not in capsys.readouterr().err
    same(cut_off, undisturbed)


def test_left_overs_of_a_killed_write_are_cleared(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "run", {"seed": 1}) as own:
        own.write(small(1.0), {"value": 1.0})
        (own.folder / f"{STATE}.partial").write_bytes(b"half")
        (own.folder / ".tmpAbC").write_bytes(b"half")
    holds(tmp_path / "run", 1.0)
    assert sorted(path.name for path in folder_of(tmp_path / "run").iterdir()) == ["lock", STATE]


def test_only_its_owner_can_read_it_and_it_holds_no_pickle_and_no_text(
    backbone: Path, tagging: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        stop_at(3, monkeypatch)
        with pytest.raises(Interrupted):
            train(tagging, backbone, tmp_path / "run")
    finally:
        os.umask(before)
    folder = folder_of(tmp_path / "run")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    tensors = load_file(folder / STATE)  # safetensors alone reads it
    assert {name.partition("/")[0] for name in tensors} == {"weights", "optimiser", "random"}
    content = (folder / STATE).read_bytes()
    assert not any(document.text.encode() in content for document in tagging.documents("train"))


# --- whose checkpoint it is -------------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name_and_fresh_starts_over(
    cut_off: Path, backbone: Path, tagging: PreparedTask, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = folder_of(cut_off) / STATE
    before, record = state.read_bytes(), (cut_off / "posology.json").read_bytes()
    with pytest.raises(UserError, match=r"other settings: seed 42, now 7\. .*--fresh"):
        train(tagging, backbone, cut_off, seed=7)
    overrides = OPTIONS["overrides"] | {"learning_rate": 1e-3}
    with pytest.raises(UserError, match=r"other settings: learning_rate 0.01, now 0.001; shots none, now 3\."):
        train(tagging, backbone, cut_off, overrides=overrides, shots=3)
    with pytest.raises(UserError, match=r"other settings: max_seconds none, now 60\."):
        train(tagging, backbone, cut_off, max_seconds=60)
    with pytest.raises(UserError, match=r"other settings: .*method lora, now ia3"):
        posology.train(tagging.folder, str(backbone), "ia3", cut_off, **OPTIONS)
    torch.set_num_threads(2)
    with pytest.raises(UserError, match=r"other settings: threads 1, now 2\."):
        train(tagging, backbone, cut_off)
    torch.set_num_threads(1)
    assert state.read_bytes() == before and (cut_off / "posology.json").read_bytes() == record
    capsys.readouterr()
    train(tagging, backbone, cut_off, fresh=True)
    assert "continuing" not in capsys.readouterr().err
    same(cut_off, undisturbed)


def test_if_other_starts_over_only_where_settings_differ(
    cut_off: Path, backbone: Path, tagging: PreparedTask, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (folder_of(cut_off) / STATE).read_bytes()
    train(tagging, backbone, cut_off, fresh="if-other")
    assert "continuing" in capsys.readouterr().err
    same(cut_off, undisturbed)
    folder_of(cut_off).mkdir()
    (folder_of(cut_off) / STATE).write_bytes(content)
    train(tagging, backbone, cut_off, fresh="if-other", seed=7, overwrite=True)
    assert "continuing" not in capsys.readouterr().err
    assert read_record(cut_off)["seed"] == 7


def test_other_data_and_versions_are_refused(
    cut_off: Path, backbone: Path, classification: PreparedTask, tagging: PreparedTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posology.engine import run as training

    with pytest.raises(UserError, match=r"other settings: data; metric entity_f1, now macro_f1\."):
        train(classification, backbone, cut_off)
    monkeypatch.setattr(training, "versions", lambda *_: {"torch": "1.0"})
    with pytest.raises(UserError, match=r"torch [\d.+a-z]+, now 1\.0"):
        train(tagging, backbone, cut_off)


def test_an_interrupted_artifact_without_a_checkpoint_is_not_replaced_unasked(
    cut_off: Path, backbone: Path, tagging: PreparedTask, undisturbed: Path
) -> None:
    (folder_of(cut_off) / STATE).unlink()
    with pytest.raises(UserError, match="--overwrite"):
        train(tagging, backbone, cut_off)
    train(tagging, backbone, cut_off, fresh=True)
    same(cut_off, undisturbed)


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    with Checkpoint(tmp_path / "run", {"seed": 1}) as own:
        own.write(small(1.0), {"value": 1.0})
        with pytest.raises(UserError, match="another process"), Checkpoint(tmp_path / "run", {"seed": 1}):
            pass
    holds(tmp_path / "run", 1.0)


# --- when -------------------------------------------------------------------------------------------------------------


def test_writes_are_due_by_time_and_take_a_small_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    own = Checkpoint(tmp_path / "run", {}, every=60)
    now[0] += 9
    assert not own.due() and not own.due(evaluated=True)
    now[0] += 2
    assert not own.due() and own.due(evaluated=True)
    now[0] += 50
    assert own.due()

    def save(*_: Any) -> None:
        now[0] += 10

    monkeypatch.setattr(checkpoints, "_save", save)
    monkeypatch.setattr(os, "replace", lambda *_: None)
    assert own.write({}, {}) == 10
    now[0] += 150
    assert not own.due() and not own.due(evaluated=True)
    now[0] += 60
    assert own.due()
    assert Checkpoint(tmp_path / "run", {}, every=0).due()


def test_generators_go_back_to_where_they_were() -> None:
    state = {name: tensor.clone() for name, tensor in generators().items()}
    first = torch.rand(5)
    restore_generators(state)
    assert torch.equal(torch.rand(5), first)
    restore_generators(state)
    with checkpoints.untouched_generators():
        torch.rand(7)
    assert torch.equal(torch.rand(5), first)


def test_what_a_checkpoint_says_is_json(tmp_path: Path) -> None:
    from safetensors import safe_open

    with Checkpoint(tmp_path / "run", {"targets": ("query", "value"), "seed": 1}) as own:
        own.write(small(1.0), {"value": 1.0})
    with Checkpoint(tmp_path / "run", {"seed": 1, "targets": ("query", "value")}) as own:  # the order does not matter
        assert own.read() is not None
    with safe_open(folder_of(tmp_path / "run") / STATE, "pt") as stream:
        assert json.loads(stream.metadata()["settings"]) == {"targets": ["query", "value"], "seed": 1}
