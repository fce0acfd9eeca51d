"""From a ledger to what is said: groups, names, comparisons, corrections and sentences."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posology.errors import UserError
from posology.evaluation.metrics import ClassificationScores
from posology.report import comparing, sentences
from posology.report.reading import read
from posology.report.results import Configuration, Difference, Run, Score, TaskResults
from posology.tasks.prepared import PreparedTask
from tests.report.ledgers import prepared, run, write


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return prepared(tmp_path / "triage")


def only(path: Path, **options: Any) -> TaskResults:
    (found,) = read(path, **options).tasks
    return found


def test_runs_that_differ_in_their_seed_alone_are_one_configuration(tmp_path: Path, task: Path) -> None:
    rights = {12: 0.75, 34: 0.85, 56: 0.80}
    runs = [run(task, "lora", right, seed=seed) for seed, right in rights.items()]
    found = only(write(tmp_path / "l.db", [*runs, run(task, "lora", 0.6, overrides={"rank": 32})]))
    first, second = found.configurations
    assert (first.name, second.name) == ("lora on minilm", "lora on minilm, rank=32")
    assert [each.seed for each in first.runs] == [12, 34, 56]
    # Answers are right in exactly these shares, on classes of equal size: macro-F1 is close to the share.
    values = [each.score.value for each in first.runs]
    assert first.median == pytest.approx(sorted(values)[1])
    assert first.sd == pytest.approx(np.std(values, ddof=1))
    assert first.mean.value == pytest.approx(np.mean(values))
    assert first.mean.low < min(values)
    assert second.sd is None
    assert second.mean == second.first.score
    assert found.counts == {"train": 8, "validation": 4, "test": 120}
    assert found.labels == ("no", "yes")


def test_names_say_as_little_as_tells_configurations_apart(tmp_path: Path, task: Path) -> None:
    runs = [
        run(task, "full", 0.8, overrides={"epochs": 2}),
        run(task, "lora", 0.8, overrides={"epochs": 2}),
        run(task, "lora", 0.8, overrides={"epochs": 2, "rank": 4, "learning_rate": 0.00123456}, shots=16),
        run(task, "lora", 0.8, overrides={"epochs": 2, "rank": 8, "learning_rate": 0.00123456}, shots=16),
        run(task, "lora", 0.8, overrides={"epochs": 50}, max_seconds=4, evaluate_seconds=1),
        run(task, "tf-idf", 0.8, backbone=None),
    ]
    names = {each.name for each in only(write(tmp_path / "l.db", runs)).configurations}
    assert names == {
        "full on minilm", "lora on minilm", "lora on minilm, 16 shots, rank=4", "lora on minilm, 16 shots, rank=8",
        "lora on minilm, 4 s", "tf-idf",
    }  # fmt: skip


def test_a_run_done_anew_takes_the_place_of_the_old_one(tmp_path: Path, task: Path) -> None:
    found = only(write(tmp_path / "l.db", [run(task, "lora", 0.6), run(task, "lora", 0.9)]))
    (configuration,) = found.configurations
    assert configuration.mean.value == pytest.approx(0.9, abs=0.01)


def test_p_values_are_corrected_by_holm_for_all_comparisons_of_the_task(
    tmp_path: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([0.04, 0.01, 0.03])
    monkeypatch.setattr(
        "posology.evaluation.seeds.combined_difference",
        lambda *_, **__: {"value": 0.05, "low": 0.01, "high": 0.09, "p": next(given)},
    )
    runs = [
        run(task, method, right) for method, right in (("lora", 0.82), ("ia3", 0.81), ("head", 0.8), ("dora", 0.79))
    ]
    found = only(write(tmp_path / "l.db", runs))
    assert [each.p for each in found.differences] == [0.04, 0.01, 0.03]
    # sorted 0.01, 0.03, 0.04: times 3, 2, 1, and never falling
    assert [each.corrected for each in found.differences] == pytest.approx([0.06, 0.03, 0.06])
    assert found.differences[1].sentence.endswith("p = 0.030 (corrected for 3 comparisons): a difference is shown.")
    assert found.differences[0].sentence.endswith("p = 0.060 (corrected for 3 comparisons): no difference shown.")


def configuration(name: str) -> Configuration:
    values: dict[str, Any] = {each.name: None for each in dataclasses.fields(Run)}
    first = Run(**values | {"backbone": "minilm", "metric": "macro_f1", "seconds": 1.0})
    return Configuration(name, (first,), 0.8, None, Score(0.8, 0.75, 0.85))


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (
            (0.004, -0.008, 0.016, 0.3, 0.6),
            "A and B differ by 0.4 points, 95 % interval -0.8 to +1.6: no difference shown.",
        ),
        (
            (-0.031, -0.05, -0.012, 0.0002, 0.0004),  # the second is ahead: it is named first, with its own lead
            "B scores 3.1 points higher than A, 95 % interval +1.2 to +5.0, p < 0.001 (corrected for 2 comparisons): "
            "a difference is shown.",
        ),
        (
            (0.02, 0.001, 0.039, 0.04, 0.08),
            "A and B differ by 2.0 points, 95 % interval +0.1 to +3.9, but p = 0.080 (corrected for 2 comparisons): no "
            "difference shown.",
        ),
        (
            (0.02, None, None, None, None),
            "A and B differ by 2.0 points; the test set is too small for an interval, so nothing is shown.",
        ),
    ],
)
def test_sentences_of_differences(difference: tuple[float | None, ...], said: str) -> None:
    entry = Difference("A", "B", *difference, "")
    first, second = configuration("A"), configuration("B")
    assert sentences.of_difference(entry, first, second, overlap=True, count=2) == said


def test_without_answers_only_intervals_speak(tmp_path: Path, task: Path) -> None:
    near = [run(task, "lora", 0.80, answers=False), run(task, "full", 0.78), run(task, "head", 0.5)]
    found = only(write(tmp_path / "l.db", near))
    by_second = {each.second: each for each in found.differences if each.first == "lora on minilm"}
    assert by_second["full on minilm"].value is None
    assert by_second["full on minilm"].sentence == (
        "lora on minilm and full on minilm: answers by document are missing, so only their own intervals can be "
        "compared; they overlap, so no difference is shown."
    )
    assert "head on minilm" not in by_second  # its interval is far below: nobody takes it for the best
    assert any("1 is shown to be worse, 1 is not" in said for said in found.sentences)


def test_answers_about_other_documents_are_not_compared(tmp_path: Path, task: Path) -> None:
    found = only(write(tmp_path / "l.db", [run(task, "lora", 0.80), run(task, "full", 0.78, ids="other")]))
    (difference,) = found.differences
    assert (difference.value, difference.p) == (None, None)


def test_the_verdict_names_the_best_the_cheapest_the_baseline_and_what_validation_chose(
    tmp_path: Path, task: Path
) -> None:
    runs = [
        run(task, "full", 0.85, seconds=100, validation=0.80),
        run(task, "lora", 0.84, backbone="minilm:3", seconds=10, validation=0.90),
        run(task, "head", 0.60, backbone="minilm:3", seconds=5),
        run(task, "tf-idf", 0.55, backbone=None, seconds=1, trained=900),
    ]
    found = only(write(tmp_path / "l.db", runs))
    assert (found.best, found.cheapest) == ("full on minilm", "lora on minilm:3")
    said = "\n".join(found.sentences)
    assert found.sentences[0].startswith("full on minilm: macro-F1 0.850 (0.800 to 0.900), with 22.7 M trainable")
    assert "a backbone of 17.4 M parameters instead of 22.7 M, 10 s of training instead of 100 s" in said
    assert "0.00068 GBP instead of 0.0068 GBP, 200 kB to store instead of 90.9 MB" in said
    assert "Validation would have chosen lora on minilm:3, which has 0.84" in said
    assert "A language model pays: full on minilm scores 30.0 points higher than tf-idf" in said
    assert "Of the other 3, 2 are shown to be worse, 1 is not." in said
    assert "This test set (120 documents of 60 groups) tells configurations like these apart from about" in said


def test_a_baseline_that_is_as_good_is_named(tmp_path: Path, task: Path) -> None:
    runs = [run(task, "full", 0.85), run(task, "tf-idf", 0.84, backbone=None)]
    found = only(write(tmp_path / "l.db", runs))
    assert found.cheapest == "tf-idf"
    assert any(
        said.startswith("No language model is shown to be better than the baseline.") for said in found.sentences
    )
    ahead = only(write(tmp_path / "m.db", [run(task, "full", 0.7), run(task, "tf-idf", 0.9, backbone=None)]))
    assert any("nothing here shows that a language model is needed" in said for said in ahead.sentences)
    assert "It is also the smallest and quickest." in ahead.sentences


def test_a_test_set_that_cannot_tell_says_so_at_once(tmp_path: Path) -> None:
    task = prepared(tmp_path / "tiny", size=16)
    found = only(write(tmp_path / "l.db", [run(task, "full", 0.7), run(task, "lora", 0.6)]))
    assert "too much to choose by" in found.sentences[1]
    assert found.sentences[-1].startswith("8 groups are few")


def test_one_seed_is_said_to_speak_of_models_and_several_are_not(tmp_path: Path, task: Path) -> None:
    single = only(write(tmp_path / "l.db", [run(task, "full", 0.8), run(task, "lora", 0.7)]))
    assert any(said.startswith("What was trained with one seed") for said in single.sentences)
    several = [
        run(task, method, value, seed=seed) for method, value in (("full", 0.8), ("lora", 0.7)) for seed in (1, 2)
    ]
    found = only(write(tmp_path / "m.db", several))
    assert not any("one seed" in said for said in found.sentences)


def test_comparisons_are_bounded(tmp_path: Path, task: Path) -> None:
    runs = [run(task, "lora", 0.8, overrides={"rank": rank}) for rank in range(1, 41)]
    found = only(write(tmp_path / "l.db", runs))
    assert len(found.configurations) == 40
    assert comparing.RIVALS <= len(found.differences) <= comparing.RIVALS + 2
    assert "more might not be (they were not compared)" in "\n".join(found.sentences)


def test_answers_are_scored_once_for_a_weighting_and_read_again_when_needed(tmp_path: Path, task: Path) -> None:
    found = only(write(tmp_path / "l.db", [run(task, "lora", 0.8)]))
    own = found.configurations[0].first
    answers = comparing.Answers(own, None)
    weights = np.random.default_rng(0).integers(0, 3, (120, 7)).astype(float)
    expected = comparing.Answers(own, None)._read()[0](weights)["macro_f1"]
    np.testing.assert_array_equal(answers(weights)["macro_f1"], expected)
    answers.release()
    assert own.artifact is not None
    (own.artifact / "test.parquet").rename(own.artifact / "gone")
    np.testing.assert_array_equal(answers(weights)["macro_f1"], expected)  # kept
    with pytest.raises(UserError, match="answers by document"):
        answers(weights[:, :3])
    (own.artifact / "gone").rename(own.artifact / "test.parquet")
    assert answers(weights[:, :3])["macro_f1"].tolist() == expected[:3].tolist()


def test_rankings_can_be_left_out_of_scores() -> None:
    gold, logits = np.array([0, 1, 1]), np.array([[0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    some = ClassificationScores(gold, logits, ranked=False)(np.ones((3, 1)))
    every = ClassificationScores(gold, logits)(np.ones((3, 1)))
    assert set(every) - set(some) == {"auroc", "auroc_ovo", "average_precision"}
    assert all(every[name][0] == value[0] for name, value in some.items())


def test_rough_means_hold_what_seeds_and_documents_leave_open() -> None:
    alike = comparing.rough_mean([Score(0.8, 0.7, 0.9)] * 3)
    assert (alike.value, alike.low, alike.high) == (
        pytest.approx(0.8), pytest.approx(0.7), pytest.approx(0.9))  # fmt: skip
    apart = comparing.rough_mean([Score(0.78, 0.78, 0.78), Score(0.80, 0.80, 0.80), Score(0.82, 0.82, 0.82)])
    # t(2, 0.975) = 4.3027; sd 0.02; 4.3027 * 0.02 / sqrt(3) = 0.04968
    assert (apart.low, apart.high) == (pytest.approx(0.8 - 0.04968, abs=1e-4), pytest.approx(0.8 + 0.04968, abs=1e-4))
    assert comparing.rough_mean([Score(None), Score(0.5)]) == Score(0.5)
    assert comparing.rough_mean([Score(None)]) == Score(None)


def test_what_is_not_in_the_report_is_counted(tmp_path: Path, task: Path) -> None:
    samples = prepared(tmp_path / "samples" / "100")
    runs = [
        run(task, "lora", 0.8, study="s"),
        run(task, "full", 0.8, study="s", state="failed"),
        run(task, "head", 0.8, study="s", state="pending"),
        run(task, "ia3", 0.8, study="s", state="pending"),
        run(samples, "lora", 0.2, study="prescribe 0123abcd rung 1"),
        run(task, "full", 0.7, study="prescribe 0123abcd rung 3", seed=7),
    ]
    found = read(write(tmp_path / "l.db", runs))
    assert [task.task for task in found.tasks] == ["triage"]  # the sample is out, the rung on everything is in
    assert {each.name for each in found.tasks[0].configurations} == {"lora on minilm", "full on minilm"}
    said = "\n".join(found.notes)
    assert "Not in here: 1 run failed." in said
    assert "Not in here: 2 runs not begun." in said
    assert "1 run of prescriptions, on samples of a training set, is left out" in said
    assert found.title == "Report on s"


def test_studies_are_chosen_by_name(tmp_path: Path, task: Path) -> None:
    runs = [run(task, "lora", 0.8, study="one"), run(task, "full", 0.8, study="two", state="pending")]
    path = write(tmp_path / "l.db", runs)
    assert [each.name for each in only(path, studies=["one"]).configurations] == ["lora on minilm"]
    with pytest.raises(UserError, match=r"holds no study three\. It has one, two"):
        read(path, studies=["three"])
    with pytest.raises(UserError, match=r"has no run that is done \(1 pending\)"):
        read(path, studies=["two"])


def test_a_task_is_its_data_whatever_it_is_called(tmp_path: Path) -> None:
    first, again = prepared(tmp_path / "a" / "triage"), prepared(tmp_path / "b" / "triage")
    other = prepared(tmp_path / "c" / "triage", size=60)
    runs = [
        run(first, "lora", 0.8),
        run(again, "full", 0.8, task="urgency"),
        run(other, "lora", 0.8),
        run(tmp_path / "gone" / "triage", "lora", 0.7),
    ]
    found = read(write(tmp_path / "l.db", runs)).tasks
    assert [(each.task, len(each.configurations)) for each in found] == [
        ("triage", 2), ("triage (2)", 1), ("triage (3)", 1)]  # fmt: skip
    assert found[2].counts == {}


def test_prices_and_domains_come_from_the_catalogue(tmp_path: Path, task: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "prices:\n  - {name: ours, currency: EUR, per_hour: 3.6, date: 2026-01-01, source: us}\n", encoding="utf-8"
    )
    runs = [run(task, "lora", 0.8, backbone="biobert", seconds=50), run(task, "tf-idf", 0.5, backbone=None)]
    found = read(write(tmp_path / "l.db", runs), price="ours", prices=prices)
    first, baseline = (each.first for each in found.tasks[0].configurations)
    assert (first.cost, first.currency, first.domain) == (pytest.approx(0.05), "EUR", "biomedical")
    assert (baseline.backbone, baseline.domain, baseline.name) == (None, None, "tf-idf")
    assert any("3.6 EUR an hour (price `ours`)" in note for note in found.notes)
    with pytest.raises(UserError, match="there is no price"):
        read(tmp_path / "l.db", price="theirs")


@pytest.mark.parametrize(
    ("source", "train", "published"),
    [
        ({"format": "mimic-iii"}, 33_000, "icd9-triage"),
        ({"format": "mimic-iii"}, 100, None),  # a subset, or something else
        ({"format": "mimic-iii", "synthetic": True}, 33_000, None),
    ],
)
def test_only_original_data_whole_is_the_papers_task(
    tmp_path: Path, source: dict[str, Any], train: int, published: str | None
) -> None:
    counts = {name: {"here": here, "paper": 33_954, "difference": 0} for name, here in
              (("train", train), ("evaluation", 30_000), ("classes", 2))}  # fmt: skip
    task = prepared(tmp_path / "mimic-triage", source=source, notes={"published": counts})
    found = read(write(tmp_path / "l.db", [run(task, "lora", 0.8)]))
    assert found.tasks[0].published == published
    assert any(note.startswith("Synthetic notes: mimic-triage.") for note in found.notes) == ("synthetic" in source)


@pytest.mark.parametrize("kept_by", ["result", "artifact"])
def test_runs_on_data_that_were_exchanged_are_no_seeds_of_one_configuration(
    tmp_path: Path, task: Path, kept_by: str
) -> None:
    now = PreparedTask.open(task).fingerprint
    path = write(tmp_path / "l.db", [run(task, "lora", 0.6, seed=1), run(task, "lora", 0.9, seed=2)])
    for number, fingerprint in enumerate(("what lay there before", now)):
        if kept_by == "artifact":
            record = json.dumps({"task": {"fingerprint": fingerprint}, "recipe": {"rank": 8}})
            (tmp_path / "l.runs" / f"{number:032x}" / "posology.json").write_text(record)
        else:
            with sqlite3.connect(path) as connection:
                connection.execute(
                    "UPDATE runs SET result = json_set(result, '$.fingerprint', ?) WHERE key = ?",
                    (fingerprint, f"{number:032x}"),
                )
    before, after = read(path).tasks
    assert [[each.seed for each in found.configurations[0].runs] for found in (before, after)] == [[1], [2]]
    assert before.counts == {} and after.counts["test"] == 120, "nothing is known of what is no longer there"
