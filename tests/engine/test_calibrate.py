"""Temperatures after every training, thresholds by command; what they change and what they leave alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import posology
from posology.cli import main
from posology.corpus.document import Document, Span
from posology.corpus.tags import words_of
from posology.engine import predictions
from posology.engine.calibrate import calibrate, rows
from posology.engine.decode import softmax, tags_of
from posology.engine.model import Model, Threshold
from posology.engine.predict import rows_of
from posology.errors import UserError
from posology.evaluation.calibration import calibration_scores, fit_temperature
from posology.evaluation.metrics import classification_metrics
from posology.tasks.prepared import PreparedTask, write_prepared
from tests.engine.tiny import KINDS

FAST = {"epochs": 3, "precision": "fp32", "learning_rate": 0.02}
MENDED = ("brier", "expected_calibration_error")


def noisy(folder: Path, kind: str = KINDS[0], labels: tuple[str, ...] = ("fever", "pain")) -> PreparedTask:
    """Notes of which one in four has a label, or an entity, that its words do not tell: nobody can be sure of them."""
    draw = random.Random(1)
    splits = {}
    for split, size in (("train", 96), ("validation", 80), ("test", 80)):
        documents = []
        for index in range(size):
            words = draw.choices(["no", "patient", "abc", "d1", "the"], k=draw.randint(2, 6))
            told = draw.choice(labels)
            words.insert(draw.randint(0, len(words)), told)
            document = Document(
                id=f"{split}-{index}", group=f"{split}-{index // 2}", text=f"{index} " + " ".join(words)
            )
            if kind == KINDS[0]:
                document.label = draw.choice(labels) if draw.random() < 0.5 else told
            else:
                document.words = words_of(document.text)
                start = document.text.index(told)
                if draw.random() < 0.7:
                    document.spans = [Span(start, start + len(told), "Finding")]
            documents.append(document)
        splits[split] = documents
    names = list(labels) if kind == KINDS[0] else ["Finding"]
    metric = "macro_f1" if kind == KINDS[0] else "entity_f1"
    return write_prepared(folder, name=folder.name, kind=kind, labels=names, metric=metric, splits=splits)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> PreparedTask:
    return noisy(tmp_path_factory.mktemp("tasks") / "two")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> PreparedTask:
    return noisy(tmp_path_factory.mktemp("tasks") / "tagged", KINDS[1])


@pytest.fixture
def trained(two: PreparedTask, tmp_path: Path) -> Path:
    posology.train(two.folder, None, "tf-idf", tmp_path / "run", overrides={"C": 100})
    return tmp_path / "run"


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "posology.json").read_text(encoding="utf-8"))


def set_record(folder: Path, **values: Any) -> None:
    (folder / "posology.json").write_text(json.dumps(record_of(folder) | values), encoding="utf-8")


def answers(folder: Path, task: PreparedTask, split: str) -> tuple[Model, list[Document], list[np.ndarray]]:
    model = posology.load(folder)
    found = model.answer(task.documents(split))
    return model, list(found.documents), found.logits


# --- after training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "head", "tf-idf", "random-forest"])
def test_every_training_of_a_classifier_ends_calibrated(
    method: str, two: PreparedTask, backbone: Path, tmp_path: Path
) -> None:
    overrides: dict[str, Any] = {"tf-idf": {}, "random-forest": {"trees": 20}}.get(method, FAST)
    result = posology.train(two.folder, str(backbone), method, tmp_path / "run", overrides=overrides)
    record, found = record_of(tmp_path / "run"), result["calibration"]
    assert record["calibration"] == found and record["temperature"] == result["temperature"]
    assert found["refused"] is None and found["documents"] == found["count"] == 80
    assert (found["unit"], found["split"], found["data"]) == ("document", "validation", two.fingerprint)
    assert found["after"]["nll"] <= found["before"]["nll"]
    # Fitted on what the saved model answers on validation, and on nothing else.
    model, documents, logits = answers(tmp_path / "run", two, "validation")
    assert model.temperature == result["temperature"] != 1.0
    assert fit_temperature(model.gold(documents), np.stack(logits)).value == pytest.approx(model.temperature, rel=1e-3)
    # Classes and rankings are those of the logits, the two others those of calibrated probabilities.
    kept = predictions.read(tmp_path / "run")
    assert kept.gold is not None and kept.logits is not None
    raw = classification_metrics(kept.gold, softmax(kept.logits))
    calibrated = classification_metrics(kept.gold, softmax(kept.logits, model.temperature))
    for name, score in result["metrics"].items():
        assert score["value"] == pytest.approx((calibrated if name in MENDED else raw)[name], abs=1e-5), name
    assert abs(calibrated["brier"] - raw["brier"]) > 1e-5
    assert record["test"]["temperature"] == model.temperature
    for mended, name in (("brier", "brier"), ("ece", "expected_calibration_error")):
        assert result["validation"][name] == pytest.approx(found["after"][mended], abs=1e-9)


@pytest.mark.parametrize("method", ["lora", "dictionary"])
def test_taggers_are_calibrated_by_word(method: str, tagged: PreparedTask, backbone: Path, tmp_path: Path) -> None:
    overrides = FAST | {"epochs": 10} if method == "lora" else {}
    result = posology.train(tagged.folder, str(backbone), method, tmp_path / "run", overrides=overrides)
    found = result["calibration"]
    words = sum(len(document.words) for document in tagged.documents("validation"))
    assert found["refused"] is None and (found["unit"], found["count"], found["documents"]) == ("word", words, 80)
    assert found["after"]["nll"] <= found["before"]["nll"]
    model, documents, logits = answers(tmp_path / "run", tagged, "test")
    calibrated = model.spans(documents, logits)
    scores = result["metrics"]
    temperature, model.temperature = model.temperature, 1.0
    raw = model.spans(documents, logits)
    assert temperature != 1.0
    assert [spans for spans, _ in calibrated] == [spans for spans, _ in raw]
    assert [own for _, own in calibrated] != [own for _, own in raw]
    assert model.evaluate(documents, logits)["metrics"] == scores


def test_too_few_documents_leave_probabilities_alone_and_it_is_said(
    classification: PreparedTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = posology.train(classification.folder, None, "tf-idf", tmp_path / "run")
    assert result["temperature"] == 1.0
    assert result["calibration"]["refused"] == "24 validation documents are fewer than 50"
    assert result["calibration"]["before"] == result["calibration"]["after"]
    assert "not calibrated: 24 validation documents" in capsys.readouterr().err


def test_company_calibrates_as_alone(two: PreparedTask, backbone: Path, tmp_path: Path) -> None:
    steady = {"dropout": 0.0, "attention_dropout": 0.0}
    runs = [
        {
            "data": two.folder,
            "out": tmp_path / f"{seed}",
            "backbone": str(backbone),
            "seed": seed,
            "overrides": FAST | steady,
        }
        for seed in (1, 2)
    ]
    together = posology.train_many(runs)
    alone = posology.train(two.folder, str(backbone), "lora", tmp_path / "alone", seed=2, overrides=FAST | steady)
    assert together[1]["temperature"] == pytest.approx(alone["temperature"], rel=0.02)
    assert together[0]["temperature"] != together[1]["temperature"]


def test_the_best_state_is_calibrated_even_where_a_run_was_resumed(
    two: PreparedTask, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posology.engine.run import Run

    whole = posology.train(two.folder, str(backbone), "lora", tmp_path / "whole", overrides=FAST)
    validate, calls = Run.validate, []

    def interrupted(self: Run) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(self)

    monkeypatch.setattr(Run, "validate", interrupted)
    options: dict[str, Any] = {"overrides": FAST, "checkpoint_seconds": 0}
    with pytest.raises(KeyboardInterrupt):
        posology.train(two.folder, str(backbone), "lora", tmp_path / "parts", **options)
    monkeypatch.setattr(Run, "validate", validate)
    parts = posology.train(two.folder, str(backbone), "lora", tmp_path / "parts", **options)
    assert parts["training"]["resumed"] == 1
    assert parts["calibration"] == whole["calibration"] and parts["metrics"] == whole["metrics"]


def test_rows_of_a_tagger_are_the_words_that_were_read() -> None:
    class Reader(Model):
        labels, kind, text_pair, units = ("P",), KINDS[1], False, ("word",)  # type: ignore[assignment]

        def answer(self, *_: Any, **__: Any) -> Any: ...

    text = "no pain at all"
    document = Document(id="a", text=text, words=words_of(text))
    document.spans = [Span(3, 7, "P")]
    values = np.arange(9, dtype=np.float32).reshape(3, 3)
    values[0] = np.nan  # dropped by the tokenizer; the last word lies beyond what was read
    gold, logits = rows(Reader(), [document], [values])
    assert [tags_of(["P"])[tag] for tag in gold] == ["B-P", "O"]
    np.testing.assert_array_equal(logits, values[1:])


# --- at work ----------------------------------------------------------------------------------------------------------


def test_predictions_are_calibrated_and_keep_their_labels(two: PreparedTask, trained: Path) -> None:
    model, documents, logits = answers(trained, two, "test")
    found = rows_of(model, model.answer(documents))
    expected = softmax(np.stack(logits) / model.temperature)
    np.testing.assert_allclose([list(row["probabilities"].values()) for row in found], expected)
    assert [row["label"] for row in found] == [model.labels[top] for top in np.stack(logits).argmax(axis=1)]
    assert [row["score"] for row in found] == expected.max(axis=1).tolist()


def test_artifacts_from_before_calibration_answer_as_they_did(two: PreparedTask, trained: Path) -> None:
    record = record_of(trained)
    for missing in ("calibration", "temperature", "threshold"):
        del record[missing]
    (trained / "posology.json").write_text(json.dumps(record), encoding="utf-8")
    model, documents, logits = answers(trained, two, "test")
    assert (model.temperature, model.threshold) == (1.0, None)
    found = rows_of(model, model.answer(documents))
    np.testing.assert_array_equal([list(row["probabilities"].values()) for row in found], softmax(np.stack(logits)))
    scores = posology.evaluate(trained, two.folder)
    known = classification_metrics(model.gold(documents), softmax(np.stack(logits)))
    for name, score in scores["metrics"].items():
        assert score["value"] == pytest.approx(known[name]), name
    assert scores["calibration"]["before"] == scores["calibration"]["after"]


def test_evaluate_tells_how_well_probabilities_fit(two: PreparedTask, trained: Path) -> None:
    result = posology.evaluate(trained, two.folder)
    json.dumps(result, allow_nan=False)
    report = result["calibration"]
    model, documents, logits = answers(trained, two, "test")
    for name, temperature in (("before", 1.0), ("after", model.temperature)):
        known = calibration_scores(model.gold(documents), softmax(np.stack(logits), temperature))
        assert {key: report[name][key] for key in known} == pytest.approx(known)
        assert sum(each["count"] for each in report[name]["reliability"]) == 80
    assert report["after"]["brier"] == pytest.approx(result["metrics"]["brier"]["value"])
    assert result["temperature"] == report["temperature"] == model.temperature
    assert result["threshold"] is None


def test_a_damaged_threshold_is_refused(trained: Path) -> None:
    set_record(trained, threshold={"positive": "cough", "probability": 0.5})
    with pytest.raises(UserError, match="is damaged"):
        posology.load(trained)


# --- thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", [{"sensitivity": 0.9}, {"specificity": 0.8}, {"cost_ratio": 5.0}])
@pytest.mark.parametrize("label", ["fever", "pain"])
def test_a_threshold_is_chosen_kept_and_used(
    goal: dict[str, float], label: str, two: PreparedTask, trained: Path
) -> None:
    before = record_of(trained)
    result = calibrate(trained, two.folder, positive=label, **goal)
    json.dumps(result, allow_nan=False)
    record = record_of(trained)
    assert record["threshold"] == result["threshold"]
    assert record["temperature"] == result["temperature"] == pytest.approx(before["temperature"])
    assert record["test"]["metrics"] == before["test"]["metrics"]
    found = result["threshold"]
    assert (found["positive"], found["goal"]) == (label, goal)
    for name, wanted in goal.items():
        if name in found["validation"]:
            assert found["validation"][name]["value"] >= wanted
    # What is said of it is what `predict` does from now on.
    model, documents, _ = answers(trained, two, "test")
    assert model.threshold == Threshold(model.labels.index(label), found["probability"])
    answered = rows_of(model, model.answer(documents))
    flagged = np.array([row["label"] == label for row in answered])
    positive = np.array([document.label == label for document in documents])
    assert found["test"]["sensitivity"]["value"] == pytest.approx(flagged[positive].mean())
    assert found["test"]["specificity"]["value"] == pytest.approx((~flagged)[~positive].mean())
    assert found["test"]["ppv"]["low"] < found["test"]["ppv"]["high"]
    assert all(row["score"] == row["probabilities"][row["label"]] for row in answered)
    assert all(
        (row["probabilities"][label] >= found["probability"]) == own for row, own in zip(answered, flagged, strict=True)
    )
    assert len(result["decision_curve"]) == 99
    evaluated = posology.evaluate(trained, two.folder)
    assert evaluated["threshold"]["metrics"] == found["test"]
    assert evaluated["metrics"] == before["test"]["metrics"]


def test_calibrating_again_without_a_goal_takes_the_threshold_away(two: PreparedTask, trained: Path) -> None:
    calibrate(trained, two.folder, sensitivity=0.95)
    assert posology.load(trained).threshold is not None
    assert calibrate(trained, two.folder)["threshold"] is None
    assert posology.load(trained).threshold is None


def test_an_older_artifact_gets_a_temperature(two: PreparedTask, trained: Path) -> None:
    known = record_of(trained)
    raw = known["test"]["metrics"] | {name: {"value": 9.0, "low": None, "high": None} for name in MENDED}
    set_record(trained, temperature=1.0, calibration=None, test=known["test"] | {"metrics": raw, "temperature": 1.0})
    result = calibrate(trained, two.folder)
    assert result["temperature"] == pytest.approx(known["temperature"])
    assert result["test"]["temperature"] == result["temperature"]
    # The record's own test scores are at the temperature it says.
    assert record_of(trained)["test"] == known["test"]


def test_another_hospitals_data_leave_the_test_scores_alone(trained: Path, tmp_path: Path) -> None:
    other = noisy(tmp_path / "other", labels=("pain", "fever"))  # the same labels in another order
    known = record_of(trained)
    result = calibrate(trained, other.folder, sensitivity=0.9, positive="fever")
    record = record_of(trained)
    assert record["test"] == known["test"]
    assert record["calibration"]["data"] == other.fingerprint != known["task"]["fingerprint"]
    assert result["threshold"]["positive"] == "fever"


def test_what_cannot_be_is_said_and_nothing_is_written(two: PreparedTask, trained: Path, tmp_path: Path) -> None:
    before = (trained / "posology.json").read_bytes()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sensitivity": 0.9, "cost_ratio": 2.0}, "2 goals were given"),
        ({"sensitivity": 1.2}, "1.2 is no share"),
        ({"specificity": 0.0}, "0.0 is no share"),
        ({"cost_ratio": -1.0}, "no ratio of costs"),
        ({"sensitivity": 0.9, "positive": "cough"}, "cough is not one of fever, pain"),
        ({"positive": "pain"}, "only with a goal"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            calibrate(trained, two.folder, **options)
    three = noisy(tmp_path / "three", labels=("fever", "pain", "abc"))
    with pytest.raises(UserError, match="does not know the label abc"):
        calibrate(trained, three.folder)
    posology.train(three.folder, None, "tf-idf", tmp_path / "run3")
    with pytest.raises(UserError, match="no classifier of two classes"):
        calibrate(tmp_path / "run3", three.folder, sensitivity=0.9)
    assert calibrate(tmp_path / "run3", three.folder)["threshold"] is None
    with pytest.raises(UserError, match="is no artifact"):
        calibrate(tmp_path, two.folder)
    assert (trained / "posology.json").read_bytes() == before


def test_the_command(two: PreparedTask, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as done:
            main(list(arguments))
        assert done.value.code == 0
        return capsys.readouterr().out

    arguments = ("calibrate", str(trained), str(two.folder), "--sensitivity", "0.9", "--positive", "pain")
    shown = run(*arguments)
    assert "for sensitivity 0.9" in shown and "validation" in shown and "adaptive ECE" in shown
    found = json.loads(run(*arguments, "--json"))
    assert found["threshold"]["goal"] == {"sensitivity": 0.9}
    shown = run("evaluate", str(trained), str(two.folder))
    assert "calibrated" in shown and f"pain from a probability of {found['threshold']['probability']:.4f}" in shown
