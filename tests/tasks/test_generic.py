"""From files in every layout to prepared tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from posology.corpus.document import Span
from posology.errors import UserError
from posology.tasks.generic import prepare
from posology.tasks.prepared import SPLITS, PreparedTask
from tests.data import corpus


def _csv(path: Path, rows: int, start: int = 0, labels: str = "ab") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f'note "{n}" of {path.stem},{labels[n % len(labels)]},p{n}'.replace('"', "") for n in range(start, start + rows)
    ]
    path.write_text("text,label,patient\n" + "\n".join(lines) + "\n")
    return path


def _ids(task: PreparedTask) -> dict[str, list[str]]:
    return {split: [document.id for document in task.documents(split)] for split in SPLITS}


def test_a_column_of_patients_that_is_not_named_is_spoken_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _csv(tmp_path / "notes.csv", 40)
    prepare("classification", source, tmp_path / "out")
    assert "column 'patient' seems to name the patient: with --group patient" in capsys.readouterr().err
    prepare("classification", source, tmp_path / "grouped", group="patient")
    assert "seems to name" not in capsys.readouterr().err


def test_given_files_are_the_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "data"
    for number, name in enumerate(("train", "dev", "test1", "test2", "extra")):
        _csv(source / f"{name}.csv", 4, 10 * number)
    (source / "README.md").write_text("no data")
    task = prepare("classification", source, tmp_path / "out", group="patient")
    assert _ids(task) == {
        "train": [f"train-{n}" for n in range(1, 5)],
        "validation": [f"dev-{n}" for n in range(1, 5)],
        "test": [f"test{k}-{n}" for k in (1, 2) for n in range(1, 5)],
    }
    assert task.name == "out"
    assert [document.group for document in task.documents("train")] == ["p0", "p1", "p2", "p3"]
    assert task.source["format"] == "csv"
    assert sorted(task.source["files"]) == ["dev.csv", "test1.csv", "test2.csv", "train.csv"]
    assert task.source["options"] == {"group": "patient"}
    assert str(tmp_path) not in (tmp_path / "out" / "task.json").read_text()
    messages = capsys.readouterr()
    assert messages.out == ""
    assert "test: test1.csv, test2.csv" in messages.err
    assert "no splits: extra.csv" in messages.err
    assert ["documents", "4", "4", "8"] in [line.split() for line in messages.err.splitlines()]


def test_named_files_win_over_names(tmp_path: Path) -> None:
    source = tmp_path / "data"
    a = _csv(source / "train.csv", 4)
    _csv(source / "final.csv", 4, 10)
    task = prepare(
        "classification",
        source,
        tmp_path / "out",
        train=Path("final.csv"),
        validation=a,
        test=_csv(tmp_path / "t.csv", 4, 20),
    )
    assert {split: ids[0] for split, ids in _ids(task).items()} == {split: f"{split}-1" for split in SPLITS}
    assert [task.documents(split)[0].text for split in SPLITS] == [
        "note 10 of final",
        "note 0 of train",
        "note 20 of t",
    ]


def test_named_folders_of_class_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two", "three")):
        for label in "ab":
            path = tmp_path / name / label / "x.txt"
            path.parent.mkdir(parents=True)
            path.write_text(f"{number} {label}")
    folders = {split: tmp_path / name for split, name in zip(SPLITS, ("one", "two", "three"), strict=True)}
    task = prepare("classification", tmp_path, tmp_path / "out", **folders)  # type: ignore[arg-type]
    assert _ids(task) == {split: [f"{split}/a/x", f"{split}/b/x"] for split in SPLITS}


def test_one_file_is_split_and_twice_the_same(tmp_path: Path) -> None:
    source = _csv(tmp_path / "train.csv", 60)
    tasks = [prepare("classification", source, tmp_path / f"out{n}", seed=seed) for n, seed in enumerate((1, 1, 2))]
    assert tasks[0].counts == {"train": 42, "validation": 6, "test": 12}
    assert tasks[0].fingerprint == tasks[1].fingerprint != tasks[2].fingerprint
    assert tasks[0].notes["splits"]["seed"] == 1


def test_only_train_and_test(tmp_path: Path) -> None:
    _csv(tmp_path / "d" / "train.csv", 40)
    _csv(tmp_path / "d" / "test.csv", 10, 50)
    task = prepare("classification", tmp_path / "d", tmp_path / "out")
    assert task.counts == {"train": 36, "validation": 4, "test": 10}


def test_lists_of_patients(tmp_path: Path) -> None:
    source, lists = _csv(tmp_path / "a.csv", 6), tmp_path / "lists"
    lists.mkdir()
    for name, content in {"train": "p0\np1\np2\n", "validation": "p3\n", "test": "p4\np5\n"}.items():
        (lists / f"{name}.txt").write_text(content)
    task = prepare("classification", source, tmp_path / "out", group="patient", splits=lists)
    assert task.counts == {"train": 3, "validation": 1, "test": 2}
    assert task.notes["lists_of"] == "group"


def test_class_folders_with_and_without_splits(tmp_path: Path) -> None:
    for split, number in {"train": 10, "dev": 2, "test": 2}.items():
        for label in ("pos", "neg"):
            for n in range(number):
                path = tmp_path / "split" / split / label / f"{n}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{split} {label} {n}")
    task = prepare("classification", tmp_path / "split", tmp_path / "a")
    assert task.counts == {"train": 20, "validation": 4, "test": 4}
    assert task.labels == ("neg", "pos")
    assert _ids(task)["validation"] == ["dev/neg/0", "dev/neg/1", "dev/pos/0", "dev/pos/1"]
    task = prepare("classification", tmp_path / "split" / "train", tmp_path / "b")
    assert sum(task.counts.values()) == 20
    assert task.source["format"] == "folders"


def _brat(folder: Path, name: str, text: str, annotation: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(text)
    (folder / f"{name}.ann").write_text(annotation)


def test_brat_entities_and_relations(tmp_path: Path) -> None:
    for n in range(10):
        text = f"Drug{n} helps pain {n}. Drug{n} harms skin {n}."
        cut = text.index(". ") + 2
        annotation = (
            f"T1\tDrug 0 5\tDrug{n}\nT2\tProblem 12 16\tpain\nT3\tDrug {cut} {cut + 5}\tDrug{n}\n"
            "R1\tHelps Arg1:T1 Arg2:T2\n#1\tNote T1\tx\n"
        )
        _brat(tmp_path / "d", f"test{n}", text, annotation + f"T4\tProblem {cut + 12} {cut + 16}\tskin\n")
    task = prepare("entities", tmp_path / "d", tmp_path / "e")
    assert task.labels == ("Drug", "Problem")
    assert task.counts == {"train": 7, "validation": 1, "test": 2}, "files of pairs are no split files"
    assert task.notes["counts"] == {"ignored_notes": 10}
    document = task.documents("train")[0]
    assert [document.text[span.start : span.end] for span in document.spans][1] == "pain"
    task = prepare("relations", tmp_path / "d", tmp_path / "r", markers="instead", arguments=["Drug:Problem"])
    assert task.labels == ("Helps", "false")
    assert sum(task.counts.values()) == 20
    for split in SPLITS:
        for document in task.documents(split):
            verb, label = ("helps", "Helps") if document.label == "Helps" else ("harms", "false")
            assert (document.text[:22], document.label) == (f"@Drug$ {verb} @Problem$", label)


def test_jsonl_entities_with_made_words(tmp_path: Path) -> None:
    rows = [{"text": f"no pain in {n} days", "spans": [{"start": 3, "end": 7, "label": "P"}]} for n in range(12)]
    rows[0]["spans"] += [{"start": 3, "end": 10, "label": "P"}, {"start": 3, "end": 7, "label": "P"}]
    rows[1]["spans"] += [{"start": 2, "end": 3, "label": "P"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"a\.jsonl:1: document 'a-1' has overlapping spans, 3-7 \(P\) and 3-10 \(P\)"):
        prepare("entities", path, tmp_path / "out")
    task = prepare("entities", path, tmp_path / "out", overlaps="longest")
    documents = {document.id: document for split in SPLITS for document in task.documents(split)}
    assert documents["a-1"].spans == [Span(3, 10, "P")]
    assert documents["a-2"].spans == [Span(3, 7, "P")]
    assert documents["a-3"].words == [(0, 2), (3, 7), (8, 10), (11, 12), (13, 17)]
    assert task.notes["counts"] == {
        "entities_without_words": 1, "overlapping_entities_dropped": 1, "repeated_entities": 1,
    }  # fmt: skip


def test_unknown_labels_are_dropped_if_asked(tmp_path: Path) -> None:
    _csv(tmp_path / "d" / "train.csv", 8)
    _csv(tmp_path / "d" / "dev.csv", 4, 20)
    _csv(tmp_path / "d" / "test.csv", 6, 30, labels="abc")
    task = prepare("classification", tmp_path / "d", tmp_path / "out", unknown_labels="drop")
    assert task.counts["test"] == 4
    assert task.notes["counts"] == {"documents_with_unknown_label_dropped": 2}


def test_conll_scheme_is_decided_by_all_files(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a\tI-X\nb\tB-X\n")
    (tmp_path / "dev.tsv").write_text("c\tI-X\n")
    (tmp_path / "test.tsv").write_text("d\tO\n")  # would be IOB2 by itself
    task = prepare("entities", tmp_path, tmp_path / "out")
    assert task.documents("train")[0].spans == [Span(0, 1, "X"), Span(2, 3, "X")]
    assert task.documents("validation")[0].spans == [Span(0, 1, "X")]


def test_overwrite_replaces_but_never_the_source(tmp_path: Path) -> None:
    source = _csv(tmp_path / "d" / "a.csv", 30)
    first = prepare("classification", source, tmp_path / "out")
    with pytest.raises(UserError, match=r"is a folder that is not empty.*--overwrite"):
        prepare("classification", source, tmp_path / "out")
    second = prepare("classification", source, tmp_path / "out", seed=7, overwrite=True)
    assert first.fingerprint != second.fingerprint
    with pytest.raises(UserError, match=r"holds no task\.json, so --overwrite does not replace it"):
        prepare("classification", source, tmp_path / "d", overwrite=True)
    (tmp_path / "d" / "task.json").touch()
    with pytest.raises(UserError, match="--out would replace the source"):
        prepare("classification", source, tmp_path / "d", overwrite=True)
    assert source.exists()


def _save(folder: Path, splits: dict[str, dict[str, Any]], features: Any = None) -> Path:
    datasets = pytest.importorskip("datasets")
    made = {split: datasets.Dataset.from_dict(columns, features=features) for split, columns in splits.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder))
    return folder


def test_saved_dataset_with_class_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    splits = {
        split: {"sentence": [f"{split} {n}" for n in range(4)], "label": [0, 1, 0, 1]}
        for split in ("train", "validation", "test", "unsupervised")
    }
    task = prepare("classification", _save(tmp_path / "d", splits, features), tmp_path / "out")
    assert task.labels == ("neg", "pos")
    assert [document.label for document in task.documents("test")] == ["neg", "pos", "neg", "pos"]
    assert task.counts == {"train": 4, "validation": 4, "test": 4}


def test_saved_dataset_with_token_tags(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-X", "I-X"]
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=names)),
            "doc": datasets.Value("int64"),
        }
    )
    splits = {
        split: {"tokens": [[split, "x"], ["a", "b", "c"], []], "ner_tags": [[0, 0], [1, 2, 0], []], "doc": [5, 6, 7]}
        for split in ("train", "validation", "test")
    }
    source = _save(tmp_path / "d", splits, features)
    task = prepare("entities", source, tmp_path / "out", leaks="allow", group="doc")
    found = task.documents("validation")[1]
    assert (found.id, found.group, found.text, found.spans) == ("validation-2", "6", "a b c", [Span(0, 3, "X")])
    with pytest.raises(
        UserError, match=r"the column for --text is not clear; found columns 'tokens', 'ner_tags', 'doc'"
    ):
        prepare("entities", source, tmp_path / "other", text="words")


def test_without_the_extra_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _save(tmp_path / "d", {"train": {"text": ["a"], "label": ["x"]}})
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package `datasets`.*pip install 'posology\[hub\]'"):
        prepare("classification", source, tmp_path / "out")


# Real corpora: the counts are those of their READMEs.


def test_ncbi_disease(tmp_path: Path) -> None:
    task = prepare("entities", corpus("ncbi-disease"), tmp_path / "out", leaks="allow")
    assert task.counts == {"train": 5424, "validation": 923, "test": 940}
    assert task.labels == ("Disease",)
    documents = {split: task.documents(split) for split in SPLITS}
    assert [sum(len(document.words) for document in documents[split]) for split in SPLITS] == [135701, 23969, 24497]
    assert [sum(len(document.spans) for document in documents[split]) for split in SPLITS] == [5134, 787, 960]
    assert [max(len(document.words) for document in documents[split]) for split in SPLITS] == [123, 86, 106]
    leaks = task.notes["leaks"]
    assert leaks["train, validation"]["texts"] >= 5  # the README counts exact copies, we fold case and signs
    assert leaks["train, test"]["texts"] >= 1


def test_chemprot(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train, test: 4 documents with the same text\).*--leaks drop"):
        prepare("relations", corpus("chemprot"), tmp_path / "out")
    task = prepare("relations", corpus("chemprot"), tmp_path / "out", leaks="drop")
    assert task.counts == {"train": 4165, "validation": 2427, "test": 3469}
    assert len(task.labels) == 13
    for document in task.documents("train"):
        for marker in ("[E1] ", " [/E1]", "[E2] ", " [/E2]"):
            assert document.text.count(marker) == 1
        assert "<< " not in document.text


def test_mts_dialog(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column is named text.*'ID', 'section_header', 'section_text', 'dialogue'"):
        prepare("classification", corpus("mts-dialog"), tmp_path / "out")
    task = prepare(
        "classification", corpus("mts-dialog"), tmp_path / "out", text="dialogue", label="section_header", leaks="allow"
    )
    assert task.counts == {"train": 1201, "validation": 100, "test": 400}
    assert len(task.labels) == 20
    texts = [document.text for document in task.documents("train")]
    assert max(len(text.split()) for text in texts) == 1509
    assert any("\r\n" in text for text in texts), "line ends inside a field are part of the text"


def test_specialty11(tmp_path: Path) -> None:
    task = prepare("classification", corpus("mtsamples") / "specialty11", tmp_path / "out", id="note_id")
    assert task.counts == {"train": 1024, "validation": 148, "test": 292}
    assert len(task.labels) == 11
    assert task.notes["leaks"] == {}
    assert pl.read_parquet(task.file("train"))["label"].value_counts().sort("count")["count"].to_list() == [
        29, 36, 43, 52, 55, 87, 92, 99, 133, 161, 237,
    ]  # fmt: skip


def test_all_of_mtsamples_never_leaks(tmp_path: Path) -> None:
    """Most texts are there two or three times, under other labels: made splits keep copies together."""
    task = prepare(
        "classification", corpus("mtsamples") / "mtsamples.csv.gz", tmp_path / "out",
        text="transcription", label="MEDICAL_SPECIALTY", drop_empty=True,
    )  # fmt: skip
    assert sum(task.counts.values()) == 4999 - 33
    assert task.notes["leaks"] == {}
    assert task.notes["counts"] == {"dropped_empty": 33}
    assert sum(task.notes["same_text_other_label"].values()) > 3000
