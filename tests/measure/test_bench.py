"""The benches: the peer trains as we do, sides do the same work, and results have their promised shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posology import console
from posology.cli import main
from posology.errors import UserError
from posology.measure import memory
from posology.measure.ours import OurTraining
from posology.measure.prediction import bench_predict
from posology.measure.rounds import interleave, rates, ratios, spread
from posology.measure.setting import Setting, make_plan, make_setting
from posology.measure.trainer import (
    AS_PAPER,
    Flags,
    PeerTraining,
    candidates,
    check_peer,
    make_trainer,
    peer_logits,
    peer_model,
    tokenise,
    train_whole,
)
from posology.measure.training import bench_train
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import save_backbone

EXACT = {"dropout": 0.0, "attention_dropout": 0.0, "adapter_dropout": 0.0, "precision": "fp32", "batch_size": 8}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "QUIET", True)


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not measured, but what would be is run: a process for each side takes seconds to start."""

    def run(prepare: Any, *arguments: Any) -> None:
        prepare(*arguments)()

    monkeypatch.setattr(memory, "peak", run)


def setting(task: PreparedTask, backbone: Path, method: str, **changes: Any) -> Setting:
    return make_setting(task.folder, str(backbone), method, "standard", EXACT | changes, 64, 1)


@pytest.mark.parametrize("method", ["full", "lora", "ia3", "head"])
@pytest.mark.parametrize("kind", ["classification", "tagging"])
def test_the_peer_is_the_same_training(method: str, kind: str, backbone: Path, request: pytest.FixtureRequest) -> None:
    own = setting(request.getfixturevalue(kind), backbone, method, schedule="constant", warmup=0)
    documents = own.task.documents("train")
    ours = OurTraining(own, documents)
    plan = make_plan(ours.lengths, 8, 6, 1, seed=1).rounds[0]
    ours.run(plan)
    peer = PeerTraining(own, AS_PAPER, tokenise(own, documents), plan)
    for _ in plan:
        peer.run()
    peer.close()
    np.testing.assert_allclose(ours.losses, peer.losses, rtol=1e-4)
    assert ours.losses[-1] != pytest.approx(ours.losses[0], rel=1e-3)


def test_the_peer_adapts_the_same_layers_and_projections(classification: PreparedTask, backbone: Path) -> None:
    for method, changes in {
        "lora": {"targets": ("query", "up"), "top_layers": 2},
        "ia3": {"top_layers": 1, "targets": ("key", "down")},
        "rslora": {"targets": "all"},
    }.items():
        own = setting(classification, backbone, method, **changes)
        ours = OurTraining(own, own.task.documents("test")).predictor.adapted.trainable()
        theirs = {name for name, weight in peer_model(own, "sdpa").named_parameters() if weight.requires_grad}
        assert set(ours) == theirs


def test_a_whole_training_of_both_ends_with_the_same_scores(classification: PreparedTask, backbone: Path) -> None:
    """With batches of all documents the order does not matter, and nothing but schedule and epochs is left."""
    own = setting(classification, backbone, "full", batch_size=64, epochs=20)
    ours = OurTraining(own, own.task.documents("train"))
    ours.run_all()
    rows = tokenise(own, own.task.documents("train"))
    trainer, seconds = train_whole(own, Flags(group_by_length=True), rows)
    assert len(trainer.losses) == len(ours.losses) == 20 and seconds > 0
    np.testing.assert_allclose(ours.losses, trainer.losses, rtol=2e-3)
    test = own.task.documents("test")
    mine = ours.predictor.logits(ours.predictor.encoder.encode(test))
    theirs = peer_logits(trainer, tokenise(own, test))
    assert [values.argmax() for values in mine] == [values.argmax() for values in theirs]
    np.testing.assert_allclose(np.stack(mine), np.stack(theirs), atol=0.02)


def test_taggers_of_both_sides_answer_for_the_same_words(tagging: PreparedTask, backbone: Path, tmp_path: Path) -> None:
    own = setting(tagging, backbone, "full")
    test = own.task.documents("test")
    ours, rows = OurTraining(own, test), tokenise(own, test)
    theirs = peer_logits(make_trainer(own, AS_PAPER, rows, str(tmp_path)), rows)
    for mine, other in zip(ours.predictor.logits(ours.predictor.encoder.encode(test)), theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_flags_do_what_they_say(tagging: PreparedTask, backbone: Path, tmp_path: Path) -> None:
    own = setting(tagging, backbone, "lora")
    rows = tokenise(own, own.task.documents("train"))
    trainer = make_trainer(own, Flags(True, "eager", True, 8), rows, str(tmp_path))
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[1] % 8 == 0 and trainer.args.bf16
    assert trainer.model.config._attn_implementation == "eager"
    paddings = []
    for flags in (Flags(group_by_length=True), AS_PAPER):
        trainer = make_trainer(own, flags, rows, str(tmp_path))
        masks = [batch["attention_mask"] for batch in trainer.get_train_dataloader()]
        real, places = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
        paddings.append(1 - real / places)
        assert flags.padding([mask.sum(dim=1).numpy() for mask in masks]) == pytest.approx(paddings[-1])
    assert paddings[0] < 0.85 * paddings[1]
    assert {flags.bf16 for flags in candidates(False)} == {False}


def test_a_plan_gives_all_sides_the_same_documents() -> None:
    lengths = np.random.default_rng(0).integers(4, 200, 1000).tolist()
    plan = make_plan(lengths, 32, 6, 3, seed=5)
    assert len(plan.rounds) == len(plan.grouped) == 3
    wanted = sorted(plan.documents)
    assert len(set(wanted)) == 6 * 32
    for batches in (*plan.rounds, *plan.grouped):
        assert sorted(np.concatenate(batches)) == wanted and {len(batch) for batch in batches} == {32}
    own = np.array(lengths)
    assert AS_PAPER.padding([own[batch] for batch in plan.rounds[0]]) > 0.3
    assert AS_PAPER.padding([own[batch] for batch in plan.grouped[0]]) < 0.15
    assert own[plan.documents].mean() == pytest.approx(own.mean(), rel=0.15)
    assert len(plan.trial) == 16
    with pytest.raises(UserError, match="do not fill"):
        make_plan(lengths[:20], 32, 1, 1, seed=0)


def test_sides_take_turns_and_are_compared_within_rounds() -> None:
    order: list[str] = []
    seconds = interleave(
        {name: (lambda name=name: order.append(name)) for name in "ab"}, 2, lambda: order.append("|"), turns=2
    )
    assert "".join(order) == "|abab|abab" and {len(own) for own in seconds.values()} == {2}
    assert ratios([4, 6, 30], [2, 2, 3]) == {"median": 3, "min": 2, "max": 10}
    assert rates(12, [2, 4]) == {"median": 4.5, "min": 3, "max": 6} and spread([1])["median"] == 1


def _holding(megabytes: int) -> Any:
    return lambda: torch.ones(megabytes * 2**18).sum().item()


def test_memory_is_that_of_the_work_alone() -> None:
    used = memory.peak(_holding, 300)
    assert used is None or 300 * 2**20 <= used < 400 * 2**20


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize("peer", [False, True])
def test_bench_train_tells_what_is_promised(peer: bool, classification: PreparedTask, backbone: Path) -> None:
    found = bench_train(
        classification.folder,
        matrix_peak=lambda dtype, device: {"float32": 100.0, "bfloat16": 200.0}[dtype],
        backbone=str(backbone),
        overrides=EXACT | {"epochs": 3},
        peer=peer,
        steps=2,
        repeats=3,
        quality=peer,
    )
    peers = ["peer_as_paper", "peer_best"] if peer else []
    assert found["matrix_peak_gflops"] == {"fp32": 100.0, "bf16": 200.0} and list(found["ratios"]) == peers
    assert found["setting"]["documents"] == 16 and found["setting"]["recipe"]["long_text"] == "truncate"
    for name in ("ours", *peers):
        side = found[name]
        assert side["examples_per_second"]["max"] == pytest.approx(16 / side["seconds"]["min"])
        peak = found["matrix_peak_gflops"][side["precision"]]
        assert side["share_of_peak"] == pytest.approx(side["gflops"]["median"] / peak)
        assert side["tokenising_seconds"] > 0 and np.isfinite(list(side["loss"].values())).all()
        if peer:
            assert 0 <= side["quality"]["test"] <= 1 and side["quality"]["training_seconds"] > 0
    if peer:
        assert not found["peer_as_paper"]["flags"]["bf16"] and len(found["peer_best"]["tried"]) > 1
        assert found["peer_best"]["padding"] < found["peer_as_paper"]["padding"]
    json.dumps(found)


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize(
    ("method", "kind"),
    [("lora", "classification"), ("lora", "tagging"), ("full", "tagging"), ("head", "classification")],
)
def test_bench_predict_finds_the_same_labels(
    method: str, kind: str, backbone: Path, request: pytest.FixtureRequest
) -> None:
    found = bench_predict(
        request.getfixturevalue(kind).folder,
        matrix_peak=lambda dtype, device: 100.0,
        backbone=str(backbone),
        method=method,
        overrides={"batch_size": 8},
        max_length=64,
        peer=True,
        documents=12,
        repeats=2,
    )
    assert found["peer_as_paper"]["same_labels"] > 0.95 and found["peer_best"]["same_labels"] > 0.95
    assert set(found["ratios"]) == {"peer_as_paper", "peer_best"} and found["setting"]["documents"] == 12
    json.dumps(found)


@pytest.mark.usefixtures("_in_process")
def test_the_command_prints_a_table_or_json(
    classification: PreparedTask, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*more: str) -> tuple[int, str, str]:
        sizes = ["--max-length", "64", "--steps", "1", "--repeats", "1", "--set", "batch_size=8"]
        command = ["bench", "train", "--data", str(classification.folder), "--backbone", str(backbone), *sizes]
        with pytest.raises(SystemExit) as end:
            main([*command, *more])
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    code, out, _ = run("--json")
    assert code == 0 and set(json.loads(out)) == {"ours", "matrix_peak_gflops", "ratios", "setting"}
    code, out, _ = run("--peer")
    assert code == 0 and "times faster" in out and "peer, at its best" in out and "8 documents" in out
    code, out, error = run("--peer", "--method", "prompt")
    assert code == 2 and "no peer for prompt" in error and out == ""


def test_what_cannot_be_measured_is_refused(classification: PreparedTask, backbone: Path) -> None:
    with pytest.raises(UserError, match="pooling"):
        setting(classification, backbone, "lora", pooling="mean")
    with pytest.raises(UserError, match="no backbone"):
        setting(classification, backbone, "tf-idf")
    with pytest.raises(UserError, match="no peer for prefix"):
        check_peer("prefix")


def test_a_company_is_measured_beside_the_same_runs_one_by_one(
    backbone: Path, classification: PreparedTask, tagging: PreparedTask
) -> None:
    from posology.measure.company import bench_company

    exact = {"dropout": 0.0, "attention_dropout": 0.0, "adapter_dropout": 0.0, "precision": "fp32"}
    result = bench_company(
        [classification.folder, tagging.folder], backbone=str(backbone), ranks=(2, 4, 4), overrides=exact,
        steps=2, repeats=2,
    )  # fmt: skip
    assert result["company"]["loss"] == pytest.approx(result["one_by_one"]["loss"], rel=1e-4)
    assert result["ratio"]["median"] > 0 and result["setting"]["tasks"] == ["complaint", "mentions", "complaint"]
    assert len(set(result["setting"]["learning_rates"])) == 3
    with pytest.raises(UserError, match="cannot keep company"):
        bench_company([classification.folder], backbone=str(backbone), method="full")
    other = save_backbone(backbone.parent / "albert", "albert")
    with pytest.raises(UserError, match="not written out"):
        bench_company([classification.folder], backbone=str(other), ranks=(2,))
