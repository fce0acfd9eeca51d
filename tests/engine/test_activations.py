"""Frozen layers run once: the same training as with running them in every step, and nothing is left of it on the disk."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import shutil
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import posology
from posology.corpus.document import Document, Span
from posology.corpus.tags import words_of
from posology.engine import activations, loop
from posology.engine.activations import Activations, frozen_layers
from posology.engine.adapted import Adapted
from posology.engine.artifact import read_record
from posology.engine.checkpoint import folder_of
from posology.engine.encode import Encoded, Encoder
from posology.engine.loop import backward, fit, make_training
from posology.engine.methods import adapt
from posology.engine.precision import decide
from posology.engine.predictor import Predictor, outputs_of
from posology.engine.recipe import Recipe, make_recipe
from posology.engine.run import targets
from posology.engine.training import Budget
from posology.errors import Interrupted, UserError
from posology.tasks.prepared import PreparedTask
from tests.engine import processes
from tests.engine.test_checkpoint import same, stop_at
from tests.engine.tiny import CONFIGS, KINDS, task_model, tokenizer

TEXTS = [
    "patient no pain", "fever", "the patient fever pain abc def " * 8, "pain pain", "no", "fever and the pain of no",
    "d1 abc fever 22 pain no " * 4, "the the the fever", "abc",
]  # fmt: skip
TOP = {"top_layers": 1}
METHODS: list[tuple[str, dict[str, Any]]] = [("lora", TOP), ("head", {})]
fp32 = decide("fp32")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Setting(NamedTuple):
    """A tiny model before its training, with documents of one and of several windows."""

    predictor: Predictor
    encoded: Encoded
    goals: list[np.ndarray]
    recipe: Recipe

    @property
    def adapted(self) -> Adapted:
        return self.predictor.adapted

    def activations(self, out: Path, keep: Path | None = None, **depends: Any) -> Activations:
        return Activations(self.adapted, fp32, out, depends, keep)


def setting(
    kind: str, method: str = "lora", architecture: str = "bert", *, pairs: bool = False, **more: Any
) -> Setting:
    labels = ("a", "b") if kind == KINDS[0] else ("X",)
    overrides = {"precision": "fp32", "batch_size": 4, "max_length": 40, "overlap": 8, "epochs": 3, "dropout": 0.2}
    recipe = make_recipe(method, overrides=overrides | (TOP if method != "head" else {}) | more)
    documents = [
        Document(
            id=str(number),
            text=text,
            text_pair=TEXTS[-number] if pairs and number % 3 else None,
            label="ab"[number % 2],
            words=words_of(text),
            spans=[Span(0, text.find(" ") if " " in text else len(text), "X")] if kind == KINDS[1] else [],
        )
        for number, text in enumerate(TEXTS)
    ]
    base = task_model(architecture, kind, len(outputs_of(kind, labels)))
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    torch.manual_seed(1)
    adapted = adapt(base, method, recipe, kind)
    encoder = Encoder(tokenizer(), CONFIGS[architecture](), recipe, kind)
    predictor = Predictor(adapted, encoder, labels, fp32)
    return Setting(predictor, encoder.encode(documents), targets(documents, kind, labels), recipe)


def trained(
    own: Setting, kept: Activations | None
) -> tuple[dict[str, torch.Tensor], list[list[np.ndarray]], list[Any]]:
    """The weights at the end, the answers to "validation" after each epoch, and its evaluations."""
    answers: list[list[np.ndarray]] = []

    def validate() -> dict[str, float]:
        given = kept.of(own.encoded, "validation") if kept is not None else None
        answers.append(own.predictor.logits(own.encoded, kept=given))
        return {"f1": float(len(answers))}

    result = fit(
        own.adapted, own.encoded, own.goals, own.recipe,
        seed=3, precision=fp32, validate=validate, metric="f1", token_budget=64, activations=kept,
    )  # fmt: skip
    weights = {name: weight.detach().clone() for name, weight in own.adapted.trainable().items()}
    return weights, answers, [evaluation["loss"] for evaluation in result.evaluations]


def alike(one: Any, other: Any, **tolerance: float) -> None:
    assert one[0].keys() == other[0].keys()
    for name, weight in one[0].items():
        torch.testing.assert_close(weight, other[0][name], msg=name, **tolerance)
    for mine, theirs in zip(one[1], other[1], strict=True):
        for answer, expected in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(answer, expected, rtol=tolerance["rtol"], atol=tolerance["atol"])
    assert one[2] == pytest.approx(other[2], rel=tolerance["rtol"])


# --- the same training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("method", "more"), [*METHODS, ("ia3", TOP)])
def test_kept_or_computed_in_every_step_training_is_the_same(
    architecture: str, kind: str, method: str, more: dict[str, Any], tmp_path: Path
) -> None:
    def make() -> Setting:
        return setting(kind, method, architecture, learning_rate=1e-2, **more)

    own = make()
    assert max(map(len, own.encoded.windows)) > 1
    kept = own.activations(tmp_path / "run")
    assert kept.layer == (3 if method == "head" else 2)
    with_them = trained(own, kept)
    assert kept.of(own.encoded, "training") is not None and not any(tmp_path.iterdir())
    alike(with_them, trained(make(), None), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("method", "more"), METHODS)
def test_pairs_keep_their_token_types(method: str, more: dict[str, Any], tmp_path: Path) -> None:
    own = setting(KINDS[0], method, pairs=True, **more)
    assert any(window.second_from for windows in own.encoded.windows for window in windows)
    expected = trained(setting(KINDS[0], method, pairs=True, **more), None)
    alike(trained(own, own.activations(tmp_path / "run")), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_reads_the_mean(kind: str, tmp_path: Path) -> None:
    own = setting(kind, "head")
    mean = adapt(task_model("bert", kind), "head", own.recipe, kind, mean=True)
    made = Activations(mean, fp32, tmp_path / "run", {}).of(own.encoded, "training")
    assert made is not None
    windows = own.encoded.windows[2]
    batch = mean.batch(windows)
    mean.module.eval()
    torch.testing.assert_close(made.answers(mean, batch, windows), mean.answers(batch))


def test_layers_that_are_not_trained_drop_nothing_and_all_others_do() -> None:
    def gradients(seed: int, method: str, **more: Any) -> torch.Tensor:
        own = setting(KINDS[1], method, **more)
        for module in own.adapted.base.get_submodule("classifier").modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        own.adapted.base.get_submodule("dropout").p = 0.0  # type: ignore[assignment]
        training = make_training(own.adapted, own.encoded, own.goals, own.recipe, fp32, seed=0)
        torch.manual_seed(seed)
        backward(training, own.adapted, np.arange(4), fp32, 1024)
        return torch.cat([weight.grad.flatten() for weight in training.weights.values() if weight.grad is not None])

    assert torch.equal(gradients(1, "head"), gradients(2, "head"))
    assert not torch.equal(gradients(1, "lora"), gradients(2, "lora"))


def test_micro_batches_of_a_head_are_larger_and_give_the_same_gradient(tmp_path: Path) -> None:
    def step(budget: int, keep: bool) -> tuple[float, int, list[torch.Tensor]]:
        own = setting(KINDS[1], "head", dropout=0.0)
        for module in own.adapted.base.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        training = make_training(own.adapted, own.encoded, own.goals, own.recipe, fp32, seed=0)
        kept = own.activations(tmp_path / "run").of(own.encoded, "training") if keep else None
        loss, tokens = backward(training, own.adapted, np.arange(9), fp32, budget, kept)
        return loss, tokens, [weight.grad for weight in training.weights.values() if weight.grad is not None]

    expected = step(4096, False)
    for budget, keep in ((40, False), (40, True), (1, False), (1, True)):
        torch.testing.assert_close(step(budget, keep), expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_where_nothing_is_saved(
    backbone: Path, tagging: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("made")

    monkeypatch.setattr(Activations, "_make", never)
    for number, (method, overrides) in enumerate([("lora", {"epochs": 2}), ("head", {"epochs": 1}), ("full", {})]):
        train(tagging, backbone, tmp_path / str(number), method, overrides={"epochs": 1} | overrides)
    with pytest.raises(AssertionError, match="made"):
        train(tagging, backbone, tmp_path / "run", "head", overrides={"epochs": 2})
    padded = setting(KINDS[0])
    padded.adapted.layout = "padded"
    assert frozen_layers(padded.adapted) == 0


# --- whole runs ---------------------------------------------------------------------------------------------------------


def train(task: PreparedTask, backbone: Path, out: Path, method: str = "lora", **options: Any) -> dict[str, Any]:
    overrides = {
        "epochs": 4, "batch_size": 4, "learning_rate": 1e-2, "max_length": 60, "overlap": 8, "precision": "fp32",
        "patience": 9, **(TOP if method == "lora" else {}),
    }  # fmt: skip
    overrides |= options.pop("overrides", {"top_layers": 1} if method == "lora" else {})
    if overrides["epochs"] == 2 and method == "lora":
        overrides["top_layers"] = None
    return posology.train(task.folder, str(backbone), method, out, overrides=overrides, **options)


@pytest.fixture(scope="module")
def undisturbed(backbone: Path, tagging: PreparedTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    torch.set_num_threads(1)
    train(tagging, backbone, out)
    record = read_record(out)["training"]
    assert 0 < record["activation_seconds"] < record["seconds"]
    return out


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    in_memory: bool, backbone: Path, tagging: PreparedTask, undisturbed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "run"
    if not in_memory:
        monkeypatch.setattr(activations, "IN_MEMORY_BYTES", 0)
    with monkeypatch.context() as patch:
        stop_at(21, patch)
        with pytest.raises(Interrupted, match="the same command continues"):
            train(tagging, backbone, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.checkpoint", "run"]
    train(tagging, backbone, out)
    assert read_record(out)["training"]["resumed"] == 1
    same(out, undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    said = capsys.readouterr().err
    assert (
        "layers 1 to 2 of 3 are not trained and give the same in every epoch: 0." in said
        and " MB of activations for training, " in said
    )
    assert ("in memory" in said) is in_memory and (f"on the disk of {tmp_path}" in said) is not in_memory


def mapped(folder: Path) -> list[str]:
    """Files in a folder that this process has mapped and that have no name any more."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(folder) in line and line.endswith("(deleted)")]


def test_the_file_has_no_name_and_goes_with_the_run(
    backbone: Path, tagging: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "IN_MEMORY_BYTES", 0)
    seen = []

    def looking(*arguments: Any) -> tuple[float, int]:
        seen.append((len(mapped(tmp_path)), {path.name for path in tmp_path.iterdir()}))
        return step(*arguments)

    step = loop.backward
    monkeypatch.setattr(loop, "backward", looking)
    train(tagging, backbone, tmp_path / "run")
    assert seen[0] == (1, {".run.checkpoint"}) and seen[-1] == (2, {".run.checkpoint"})  # of training, of validation
    assert not mapped(tmp_path)


def test_after_kill_9_nothing_is_left(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([processes.__name__])
    process = context.Process(target=_killed, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["was mapped"]


def _killed(folder: Path) -> None:
    activations.IN_MEMORY_BYTES = 0
    own = setting(KINDS[0])
    kept = own.activations(folder / "run").of(own.encoded, "training")
    assert kept is not None
    (folder / "was mapped").write_text("\n".join(mapped(folder)) or os._exit(1))  # type: ignore[func-returns-value]
    os.kill(os.getpid(), signal.SIGKILL)


def test_cut_off_while_they_are_made_nothing_is_left(
    backbone: Path, tagging: PreparedTask, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = tmp_path / "kept"
    monkeypatch.setattr(activations, "_TOKEN_BUDGET", 64)
    lower, calls = Adapted.lower, []

    def sending(self: Adapted, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            assert len(list(keep.iterdir())) == 1
            os.kill(os.getpid(), signal.SIGTERM)
        return lower(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Adapted, "lower", sending)
        with pytest.raises(KeyboardInterrupt):
            train(tagging, backbone, tmp_path / "run", keep_activations=keep)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and not list(keep.iterdir())


# --- kept -----------------------------------------------------------------------------------------------------------------


def test_what_is_kept_serves_other_runs(
    backbone: Path, tagging: PreparedTask, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    keep = tmp_path / "kept"
    train(tagging, backbone, tmp_path / "first", keep_activations=keep)
    same(tmp_path / "first", undisturbed)
    files = sorted(keep.iterdir())
    assert len(files) == 2 and stat.S_IMODE(keep.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert f"in {keep}, kept" in capsys.readouterr().err

    def never(*_: Any) -> None:
        raise AssertionError("made anew")

    monkeypatch.setattr(Activations, "_fill", never)
    train(tagging, backbone, tmp_path / "second", keep_activations=keep)
    same(tmp_path / "second", undisturbed)
    assert f"found in {keep}" in capsys.readouterr().err
    train(tagging, backbone, tmp_path / "other", keep_activations=keep, seed=7, overrides={"rank": 2, "epochs": 1})
    assert sorted(keep.iterdir()) == files
    with pytest.raises(AssertionError, match="made anew"):  # other windows
        train(tagging, backbone, tmp_path / "longer", keep_activations=keep, overrides={"max_length": 16})
    with pytest.raises(AssertionError, match="made anew"):  # another layer
        train(tagging, backbone, tmp_path / "deeper", keep_activations=keep, overrides={"top_layers": 2})


def test_every_fact_and_every_piece_is_in_the_key(tmp_path: Path) -> None:
    own = setting(KINDS[0], pairs=True)
    windows = own.encoded.windows[1]

    def key(**depends: Any) -> bytes:
        return own.activations(tmp_path, weights="abc", **depends)._key(windows)

    first = key()
    assert key() == first and key(quantise="8bit") != first
    windows[0].second_from += 1
    assert key() != first
    windows[0].second_from -= 1
    windows[0].ids[1] += 1
    assert key() != first


@pytest.mark.parametrize("damage", ["bit", "short", "long", "empty"])
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = setting(KINDS[0])
    windows = own.encoded.windows[2]
    batch = own.adapted.batch(windows)
    own.adapted.module.eval()

    def read() -> torch.Tensor:
        kept = own.activations(tmp_path / "run", tmp_path / "kept").of(own.encoded, "training")
        assert kept is not None
        return kept.answers(own.adapted, batch, windows)

    expected = read()
    (path,) = (tmp_path / "kept").iterdir()
    whole = path.read_bytes()
    flipped = whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]
    path.write_bytes({"bit": flipped, "short": whole[:-4], "long": whole + b"1234", "empty": b""}[damage])
    assert torch.equal(read(), expected) and path.read_bytes() == whole
    assert "is damaged, and made anew" in capsys.readouterr().err
    assert torch.equal(read(), expected) and "is damaged" not in capsys.readouterr().err


def test_what_a_killed_process_began_is_removed_and_nothing_else(tmp_path: Path) -> None:
    own, keep = setting(KINDS[0]), tmp_path / "kept"
    keep.mkdir()
    names = [".abc.activations.x1.partial", ".abc.activations.x2.partial", "notes.csv", ".notes.partial"]
    for name in names:
        (keep / name).touch()
    with open(keep / names[1]) as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        assert own.activations(tmp_path / "run", keep).of(own.encoded, "training") is not None
    assert {path.name for path in keep.iterdir()} - set(names[1:]) == {next(keep.glob("*.activations")).name}
    assert all((keep / name).exists() for name in names[1:])


def test_a_file_in_the_way_is_said_before_any_work(backbone: Path, tagging: PreparedTask, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(UserError, match="is a file"):
        train(tagging, backbone, tmp_path / "run", keep_activations=tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_where_nothing_is_frozen_there_is_nothing_to_keep(
    backbone: Path, tagging: PreparedTask, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="top_layers=K"):
        train(tagging, backbone, tmp_path / "run", "full", keep_activations=tmp_path / "kept")
    assert not any(tmp_path.iterdir())


# --- no room, no time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("full", ["before", "meanwhile"])
def test_without_room_layers_run_in_every_step(
    keep: bool, full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = trained(setting(KINDS[0]), None)
    own = setting(KINDS[0])
    monkeypatch.setattr(activations, "IN_MEMORY_BYTES", 0)
    kept = own.activations(tmp_path / "run", tmp_path / "kept" if keep else None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if full == "before":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        found = trained(own, kept)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert ("the disk has 1 MB free and about 26" in said) if full == "before" else ("File too large" in said)
    assert "layers that are not trained run in every epoch" in said
    alike(found, expected, rtol=0.0, atol=0.0)
    assert all(path.is_dir() and not any(path.iterdir()) for path in tmp_path.iterdir())


def test_what_was_computed_anew_stays_so_when_it_is_continued(
    backbone: Path, tagging: PreparedTask, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(21, patch)
        patch.setattr(Activations, "of", lambda *_: None)
        with pytest.raises(Interrupted):
            train(tagging, backbone, out)
    asked = []
    of = Activations.of
    monkeypatch.setattr(
        Activations, "of", lambda self, encoded, name, *more: asked.append(name) or of(self, encoded, name)
    )  # type: ignore[func-returns-value]
    train(tagging, backbone, out)
    assert set(asked) == {"validation"} and not folder_of(out).exists()


def test_they_take_no_more_than_half_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = setting(KINDS[0])
    monkeypatch.setattr(activations, "_TOKEN_BUDGET", 16)
    assert own.activations(tmp_path / "run").of(own.encoded, "training", 1e-3) is None
    assert "that are left): layers that are not trained run in every epoch" in capsys.readouterr().err
    assert own.activations(tmp_path / "run").of(own.encoded, "training", 1e3) is not None


def test_the_schedule_begins_after_they_are_made() -> None:
    own = setting(KINDS[0])
    training = make_training(
        own.adapted, own.encoded, own.goals, own.recipe, fp32, seed=0, budget=Budget(max_seconds=100.0)
    )
    training.spend_on_activations(40.0)
    assert training.seconds_left == 60.0 and training.fit.seconds == 40.0
    assert training.learning_rate() == own.recipe.learning_rate
    training.fit.seconds += 30.0  # half of what is left
    assert training.learning_rate() == pytest.approx(own.recipe.learning_rate / 2)
