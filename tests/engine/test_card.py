"""The model card: says what is known, says what is not, is what the hub reads, and holds no text of documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

import posology
from posology.engine import artifact
from posology.engine.card import model_card
from posology.engine.card.text import UNKNOWN, code, plain
from posology.engine.record import label_counts
from posology.evaluation.metrics import per_class
from posology.evaluation.statistics import with_intervals
from posology.tasks.prepared import PreparedTask, write_prepared

SMALL = {"epochs": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def folders(
    backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """An artifact of each kind."""
    out = tmp_path_factory.mktemp("artifacts")
    made = {"lora": (classification, "lora"), "tagger": (tagging, "full"), "tf-idf": (classification, "tf-idf")}
    for name, (task, method) in made.items():
        overrides = {} if method == "tf-idf" else SMALL
        posology.train(task.folder, str(backbone), method, out / name, overrides=overrides)
    return {name: out / name for name in made}


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "posology.json").read_text())
    return record


def section(card: str, title: str) -> str:
    """What stands under a heading."""
    found = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#+ |\Z)", card, re.M | re.S)
    assert found, f"no {title}"
    return found[1]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of its tables, by their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    return {first.strip(): rest for first, *rest in cells}


def test_the_hub_reads_its_front_matter(folders: dict[str, Path]) -> None:
    for name, (library, pipeline) in {
        "lora": ("peft", "text-classification"),
        "tagger": ("transformers", "token-classification"),
        "tf-idf": ("posology", "text-classification"),
    }.items():
        card = ModelCard((folders[name] / "README.md").read_text())
        assert (card.data.library_name, card.data.pipeline_tag) == (library, pipeline)
        test = record_of(folders[name])["test"]["metrics"]
        told = {result.metric_name: result.metric_value for result in card.data.eval_results or []}
        assert told and all(value == pytest.approx(test[metric]["value"], abs=1e-4) for metric, value in told.items())
        assert card.data.base_model is None, "a folder of this machine is no model of the hub"


def test_what_is_measured_stands_on_it(folders: dict[str, Path], classification: PreparedTask) -> None:
    record = record_of(folders["lora"])
    card = (folders["lora"] / "README.md").read_text()
    assert card == model_card(record)
    results = rows(section(card, "Results"))
    for name, entry in record["test"]["metrics"].items():
        low = "" if entry["low"] is None else f"{entry['low']:.4f} to {entry['high']:.4f}"
        assert results[f"`{name}`"][1:3] == [f"{entry['value']:.4f}", low]
    by_label = rows(section(card, "By label, on test"))
    fever = record["test"]["per_label"]["fever"]
    assert by_label["`fever`"][2] == f"{fever['f1']:.3f} ({fever['f1_low']:.3f} to {fever['f1_high']:.3f})"
    data = rows(section(card, "Data"))
    assert data["documents in the task"] == ["64", "24", "24"] and data["documents used"] == ["64", "24", "24"]
    counts = [sum(each.label == label for each in classification.documents("train")) for label in ("fever", "pain")]
    assert [data[f"`{label}`"][0] for label in ("fever", "pain")] == [str(count) for count in counts]
    assert record["training"]["per_label"] == dict(zip(("fever", "pain"), counts, strict=True))
    assert record["machine"]["processor"] in card.replace("\\", "")
    assert "only 12 groups" in section(card, "Limits")
    checklist = rows(section(card, "TRIPOD+AI"))
    assert checklist["5b"] == ["dates of the data", UNKNOWN] and len(checklist) > 25
    assert "24 test documents of 12 groups" in checklist["10"][1]


def test_entities_are_counted_as_such(folders: dict[str, Path], tagging: PreparedTask) -> None:
    record = record_of(folders["tagger"])
    entities = sum(len(document.spans) for document in tagging.documents("train"))
    assert record["training"]["per_label"] == {"Finding": entities}
    card = model_card(record)
    assert "Marks entities" in card and "no threshold" in section(card, "Decision threshold")
    assert "De-identification" in section(card, "Out of scope")
    assert label_counts([np.array([0, 3, 4, 1, 2, 2]), np.array([1])], "token-classification", ["a", "b"]) == {
        "a": 2, "b": 1,
    }  # fmt: skip


def test_it_holds_no_text_of_documents_and_no_folder(
    folders: dict[str, Path], classification: PreparedTask, tagging: PreparedTask, backbone: Path
) -> None:
    texts = {document.text for task in (classification, tagging) for document in task.documents("train")}
    for folder in folders.values():
        card = (folder / "README.md").read_text()
        assert not any(text in card for text in texts) and not re.search(r"\babc\b", card)
        assert str(folder.parent) not in card and str(backbone.parent) not in card


def test_the_flow_says_who_was_left_out_and_why(classification: PreparedTask, tmp_path: Path) -> None:
    flow = {
        "unit": "admissions",
        "entered": 130,
        "left": 112,
        "steps": [{"reason": "died in hospital", "excluded": 18}],
    }
    splits = {split: classification.documents(split) for split in ("train", "validation", "test")}
    notes = {
        "flow": flow, "groups": {"train": 32, "validation": 12, "test": 12}, "group_overlap": {"train, test": 3},
        "defects": ["A section is lost."], "problems_found": 2, "problems": [["secret-file.txt", "what it says"]],
    }  # fmt: skip
    source = {"format": "mimic-iii", "synthetic": True, "files": {"John Doe.csv": "0" * 64}}
    task = write_prepared(
        tmp_path / "task", name="mortality", kind=classification.kind, labels=classification.labels, splits=splits,
        notes=notes, source=source,
    )  # fmt: skip
    posology.train(task.folder, None, "tf-idf", tmp_path / "run")
    text = (tmp_path / "run" / "posology.json").read_text() + (card := (tmp_path / "run" / "README.md").read_text())
    assert "John Doe" not in text and "secret-file" not in text
    data = rows(section(card, "Data"))
    assert data["left out: died in hospital"] == ["18"] and data["admissions out"] == ["112"]
    assert data["groups (patients where the data say so)"] == ["32", "12", "12"]
    limits = section(card, "Limits")
    assert "generated" in limits and "train, test: 3 documents" in limits and "A section is lost." in limits


def test_leaks_that_were_dropped_are_counted_by_split(folders: dict[str, Path]) -> None:
    record = record_of(folders["lora"])
    record["task"]["data"] = {
        "documents": {"train": 60, "validation": 20, "test": 20}, "leak_rule": "drop", "counts": {"dropped_empty": 3},
        "dropped_leaks": {"train": 4, "validation": 1, "test": 0},
    }  # fmt: skip
    data = rows(section(model_card(record), "Data"))
    assert data["documents read"] == ["108"] and data["documents kept"] == ["100"]
    assert data["left out: dropped empty"] == ["3"] and data["left out: same text or group in a later split"] == ["5"]
    assert data["left out of train: in a later split too"] == ["4", "", ""]


def test_calibration_and_threshold(folders: dict[str, Path], classification: PreparedTask, tmp_path: Path) -> None:
    record = record_of(folders["lora"])
    found = record["calibration"]
    card = model_card(record | {"temperature": 1.7, "calibration": found | {"refused": None}})
    table = rows(section(card, "Calibration"))
    assert "1.700" in section(card, "Calibration") and "Divide the logits by 1.7000" in card
    assert table["expected calibration error"] == [f"{found[part]['ece']:.3f}" for part in ("before", "after")]
    refused = section(model_card(record | {"calibration": found | {"refused": "too few"}}), "Calibration")
    assert "Not calibrated (too few)" in refused and "|" not in refused
    reached = {
        "sensitivity": {"value": 0.9, "low": 0.8, "high": 1.0},
        "ppv": {"value": None, "low": None, "high": None},
    }
    threshold = {
        "positive": "pain",
        "probability": 0.25,
        "goal": {"sensitivity": 0.9},
        "validation": reached,
        "test": None,
    }
    said = section(model_card(record | {"threshold": threshold}), "Decision threshold")
    assert "`pain` from a probability of 0.2500, chosen on validation for sensitivity 0.9" in said
    assert rows(said)["sensitivity"][0] == "0.900 (0.800 to 1.000)" and rows(said)["ppv"][0] == "undefined"


def test_records_of_earlier_versions_and_of_interrupted_runs(folders: dict[str, Path]) -> None:
    old = record_of(folders["lora"])
    for place, name in ((old["task"], "data"), (old, "machine"), (old, "calibration"), (old["training"], "per_label")):
        del place[name]
    for entry in old["test"]["per_label"].values():
        del entry["f1_low"], entry["f1_high"]
    assert "did not record the data flow" in model_card(old)
    cut = record_of(folders["lora"]) | {"test": None, "validation": None, "calibration": None}
    del cut["coverage"]["test"]
    card = model_card(cut)
    assert "Not scored on test" in card and "By label" not in card
    assert "metrics" not in ModelCard(card).data.to_dict()


def test_names_break_no_table(folders: dict[str, Path]) -> None:
    record = record_of(folders["lora"])
    odd = "a|b `c`\n| d |"
    record["labels"] = [odd, "pain"]
    for place in (record["test"]["per_label"], record["training"]["per_label"]):
        place[odd] = place.pop("fever")
    record["task"]["name"] = "x: [y](z) | *w*\n---"
    card = model_card(record)
    assert len(rows(section(card, "By label, on test"))) == 4 and ModelCard(card).data.library_name == "peft"
    assert code(odd) == "`a¦b 'c' ¦ d ¦`" and plain("a|b") == "a\\|b"
    for table in re.findall(r"(?:^\|.*\n)+", card, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_a_model_worse_than_a_constant_is_told(folders: dict[str, Path]) -> None:
    record = record_of(folders["lora"])
    record["test"]["metrics"]["accuracy"]["value"] = 0.2
    assert "no more often (20.0 %) than always answering" in section(model_card(record), "Limits")
    record["test"]["metrics"]["accuracy"]["value"] = 0.99
    assert "no more often" not in model_card(record)


def test_intervals_of_labels_are_those_of_groups() -> None:
    counts = np.array([[[1, 1, 1], [0, 0, 0]], [[0, 1, 1], [0, 1, 0]]] * 20)
    groups = [str(number // 2) for number in range(40)]
    found = with_intervals(per_class(counts, ["a", "b"]), counts, groups)
    assert (found["a"]["f1"], found["a"]["f1_low"], found["a"]["f1_high"]) == (0.5, 0.5, 0.5), "all groups are alike"
    assert found["a"]["support"] == 40 and found["b"]["f1_low"] == 0
    alone = with_intervals(per_class(counts, ["a", "b"]), counts, [str(number) for number in range(40)])
    assert alone["a"]["f1_low"] < 0.4 < 0.6 < alone["a"]["f1_high"]


def test_an_update_writes_it_anew(folders: dict[str, Path]) -> None:
    record = record_of(folders["tf-idf"])
    artifact.update(folders["tf-idf"], record | {"temperature": 2.5, "calibration": record["calibration"]})
    assert "2.5" in (folders["tf-idf"] / "README.md").read_text()
    artifact.update(folders["tf-idf"], record)
