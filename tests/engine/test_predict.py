"""Prediction: in blocks, merged, several models at once, and nothing half-written."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import shutil
import signal
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import posology
from posology.corpus import tabular, textfile
from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.engine import artifact, inputs
from posology.engine.architectures import matching
from posology.engine.encode import Encoder
from posology.engine.inputs import Inputs
from posology.engine.journal import Journal
from posology.engine.methods import adapt
from posology.engine.precision import decide
from posology.engine.predictor import Predictor, outputs_of
from posology.engine.recipe import make_recipe
from posology.engine.shared import Readers
from posology.errors import Interrupted, UserError
from posology.tasks.prepared import PreparedTask
from tests.data import corpus
from tests.engine.tiny import ARCHITECTURES, KINDS, task_model, tokenizer

FAST = {"epochs": 1, "max_length": 90, "overlap": 8, "precision": "fp32"}
LABELS = {KINDS[0]: ("a", "b", "c", "d", "e"), KINDS[1]: ("X", "Y")}
NOTES = [f"patient {number} " + "had no fever, abc pain " * (number % 7) for number in range(30)]


@pytest.fixture(scope="module")
def runs(
    backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Artifacts: two heads on one backbone, a tagger's, an adapter, a tuned model and a baseline."""
    folder = tmp_path_factory.mktemp("runs")
    wanted = [
        ("one", classification, "head", 1),
        ("two", classification, "head", 2),
        ("tagger", tagging, "head", 1),
        ("adapter", classification, "lora", 1),
        ("tuned", classification, "full", 1),
        ("words", tagging, "dictionary", 1),
    ]
    for name, task, method, seed in wanted:
        overrides = None if method == "dictionary" else FAST
        posology.train(task.folder, str(backbone), method, folder / name, overrides=overrides, seed=seed)
    return {name: folder / name for name, *_ in wanted}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.csv"
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([("id", "text"), *((f"n{row}", text) for row, text in enumerate(NOTES))])
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same(found: Any, expected: Any) -> bool:
    """Equal but for the last digits of numbers."""
    if isinstance(expected, float):
        return abs(found - expected) < 1e-6
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("name", ["adapter", "tagger", "words"])
def test_blocks_give_what_the_whole_gives_in_the_order_of_the_input(
    name: str, runs: dict[str, Path], notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = posology.predict(runs[name], notes, tmp_path / "whole.jsonl", id="id", with_text=True)
    monkeypatch.setattr(inputs, "_BLOCK_DOCUMENTS", 7)
    monkeypatch.setattr(inputs, "_BLOCK_CHARACTERS", 300)
    for ending in ("jsonl", "csv", "parquet"):
        parts = posology.predict(runs[name], notes, tmp_path / f"parts.{ending}", id="id", with_text=True)
        assert parts["documents"] == 30 and parts["found"] == whole["found"]
        assert parts["coverage"] == pytest.approx(whole["coverage"])
    expected = rows(tmp_path / "whole.jsonl")
    assert [(row["id"], row["text"]) for row in expected] == [(f"n{row}", text) for row, text in enumerate(NOTES)]
    assert same(rows(tmp_path / "parts.jsonl"), expected)
    assert same(pl.read_parquet(tmp_path / "parts.parquet").to_dicts(), expected)
    with open(tmp_path / "parts.csv", newline="", encoding="utf-8") as stream:
        cells = list(csv.DictReader(stream))
    nested = {"spans", "probabilities", "score"}
    assert same([{k: json.loads(v) if k in nested else v for k, v in row.items()} for row in cells], expected)
    assert {path.name for path in tmp_path.iterdir()} == {
        "notes.csv", "whole.jsonl", "parts.jsonl", "parts.csv", "parts.parquet",
    }  # fmt: skip
    assert (tmp_path / "parts.parquet").stat().st_mode & 0o777 == 0o600


def test_classes_are_those_of_the_pipeline_of_transformers(runs: dict[str, Path], notes: Path, tmp_path: Path) -> None:
    posology.predict(runs["tuned"], notes, tmp_path / "out.jsonl")
    model = AutoModelForSequenceClassification.from_pretrained(runs["tuned"])
    peer = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(runs["tuned"]))
    short = [(row, text) for row, text in zip(rows(tmp_path / "out.jsonl"), NOTES, strict=True) if len(text) < 80]
    assert len(short) > 10
    for (row, _), expected in zip(short, peer([text for _, text in short]), strict=True):
        assert row["label"] == expected["label"]
        assert row["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_several_artifacts_say_what_each_says_alone(
    runs: dict[str, Path], notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_BLOCK_DOCUMENTS", 11)
    names = ["tagger", "one", "adapter", "two", "words"]
    result = posology.predict(
        runs["tagger"], notes, tmp_path / "all.jsonl", id="id", also=[runs[name] for name in names[1:]]
    )
    together = rows(tmp_path / "all.jsonl")
    assert list(together[0]) == ["id", *names]
    for name in names:
        alone = posology.predict(runs[name], notes, tmp_path / f"{name}.jsonl", id="id")
        assert result["artifacts"][name]["found"] == alone["found"]
        assert same(
            [{"id": row["id"], **row[name]} for row in together],
            rows(tmp_path / f"{name}.jsonl"),
        )
    posology.predict(runs["tagger"], notes, tmp_path / "all.parquet", also=[runs["one"]])
    assert same(pl.read_parquet(tmp_path / "all.parquet")["one"].to_list(), [row["one"] for row in together])
    posology.predict(runs["tagger"], notes, tmp_path / "all.csv", also=[runs["one"]])
    assert same(json.loads(pl.read_csv(tmp_path / "all.csv")["one"][3]), together[3]["one"])


def test_names_of_artifacts_must_differ(runs: dict[str, Path], notes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^one: two artifacts have that name"):
        posology.predict(runs["one"], notes, tmp_path / "out.jsonl", also=[runs["one"]])
    runs["one"].rename(runs["one"].with_name("id"))
    try:
        with pytest.raises(UserError, match=r"^id: a column has that name"):
            posology.predict(runs["two"], notes, tmp_path / "out.jsonl", also=[runs["one"].with_name("id")])
    finally:
        runs["one"].with_name("id").rename(runs["one"])


def test_heads_on_one_backbone_cost_one_forward_and_one_copy_of_it(runs: dict[str, Path]) -> None:
    names = ["one", "adapter", "two", "tagger"]
    alone = {name: artifact.load(runs[name]) for name in names}
    readers = Readers([artifact.load(runs[name]) for name in names])
    assert [[names[position] for position in group] for group in readers.groups] == [
        ["one", "two"],
        ["adapter"],
        ["tagger"],
    ]
    bases = [model.adapted.base for model in readers.models]  # type: ignore[attr-defined]
    calls = [0] * len(bases)
    for position, base in enumerate(bases):
        linear = base.bert.encoder.layer[0].output.LayerNorm

        def count(*_: Any, position: int = position) -> None:
            calls[position] += 1

        base.bert.encoder.register_forward_hook(count)
        assert linear.weight.dtype == torch.float32
    assert (
        bases[0].bert.encoder.layer[1].output.dense.weight.data_ptr()
        == bases[2].bert.encoder.layer[1].output.dense.weight.data_ptr()
    )
    documents = [Document(id=str(row), text=text) for row, text in enumerate(NOTES)]
    found = readers.answer(documents, lambda _: None)
    for name, own in zip(names, found, strict=True):
        for ours, expected in zip(own.logits, alone[name].answer(documents).logits, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-5)


def _predictor(architecture: str, kind: str, method: str, *, seed: int = 0, mean: bool = False) -> Predictor:
    """A model whose adapter and head are far from where they start."""
    recipe = make_recipe(method, overrides={"max_length": 40, "overlap": 8, "precision": "fp32"})
    base = task_model(architecture, kind, len(outputs_of(kind, LABELS[kind])))
    adapted = adapt(base, method, recipe, kind, mean=mean)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in adapted.trainable().values():
            weight.add_(torch.randn_like(weight) * 0.2)
    adapted.module.eval()
    fast, virtual = tokenizer(), recipe.virtual_tokens if method in ("prefix", "prompt", "p-tuning") else 0
    encoder = Encoder(fast, base.config, recipe, kind, virtual)
    return Predictor(adapted, encoder, LABELS[kind], decide("fp32"))


def _documents() -> list[Document]:
    return [Document(id=str(row), text=text, words=words_of(text)) for row, text in enumerate(NOTES[:12])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        *((name, "lora") for name in ARCHITECTURES),
        ("bert", "rslora"), ("bert", "dora"), ("bert", "ia3"), ("modernbert", "ia3"), ("albert", "ia3"),
        ("bert", "layernorm"), ("bert", "prefix"), ("bert", "full"), ("bert", "bitfit"),
    ],
)  # fmt: skip
def test_merged_models_answer_the_same(architecture: str, method: str, kind: str) -> None:
    predictor = _predictor(architecture, kind, method)
    encoded = predictor.encoder.encode(_documents())
    before = predictor.logits(encoded)
    predictor.merge()
    wrapped = [part for part in predictor.adapted.module.modules() if hasattr(part, "base_layer")]
    assert not wrapped and not predictor.adapted.trainable()
    for ours, expected in zip(predictor.logits(encoded), before, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5 * max(1.0, float(np.nanmax(np.abs(expected)))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "head"])
def test_frozen_weights_in_bfloat16_change_no_answer_beyond_its_rounding(method: str, kind: str) -> None:
    predictor = _predictor("bert", kind, method)
    encoded = predictor.encoder.encode(_documents())
    exact = predictor.logits(encoded)
    predictor.precision = decide("bf16")
    cast_each_time = predictor.logits(encoded)
    predictor.merge()
    kept = predictor.logits(encoded)
    held = {part.weight.dtype for part in predictor.adapted.base.modules() if type(part) is torch.nn.Linear}
    assert held == {torch.bfloat16, torch.float32}  # the head stays exact
    if method == "head":
        assert all(np.array_equal(ours, own, equal_nan=True) for ours, own in zip(kept, cast_each_time, strict=True))
    scale = max(float(np.nanmax(np.abs(own))) for own in exact)
    for ours, own in zip(kept, exact, strict=True):
        np.testing.assert_allclose(ours, own, atol=0.06 * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_are_computed_once_for_all_heads(architecture: str, kind: str) -> None:
    plain = [_predictor(architecture, kind, "head", seed=seed) for seed in (1, 2, 3)]
    models = [_predictor(architecture, kind, "head", seed=seed) for seed in (1, 2, 3)]
    readers = Readers(models)
    assert readers.groups == [[0, 1, 2]]
    pattern = f"{models[1].adapted.base.base_model_prefix}.{models[1].adapted.architecture.layers}"
    names = matching(models[1].adapted.base, pattern.format(layer=0))

    def refuse(*_: Any) -> None:
        raise AssertionError("the backbone was run again")

    for name in names:
        models[1].adapted.base.get_submodule(name).register_forward_pre_hook(refuse)
    found = readers.answer(_documents(), lambda _: None)
    for own, model in zip(found, plain, strict=True):
        for ours, expected in zip(own.logits, model.answer(_documents()).logits, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert not np.allclose(found[0].logits[0], found[1].logits[0], equal_nan=True)


def test_a_head_on_the_mean_and_one_on_the_first_position_share_a_backbone() -> None:
    make = [
        lambda: _predictor("bert", KINDS[0], "head", seed=1),
        lambda: _predictor("bert", KINDS[0], "head", seed=2, mean=True),
    ]
    readers = Readers([one() for one in make])
    assert readers.groups == [[1, 0]]  # the mean needs every position
    for own, one in zip(readers.answer(_documents(), lambda _: None), make, strict=True):
        for ours, expected in zip(own.logits, one().answer(_documents()).logits, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("change", ["weight", "length", "pairs"])
def test_backbones_that_differ_are_not_shared(change: str) -> None:
    one, two = (_predictor("bert", KINDS[0], "head", seed=seed) for seed in (1, 2))
    if change == "weight":
        with torch.no_grad():
            two.adapted.base.bert.encoder.layer[2].output.dense.bias[3] += 1e-3  # type: ignore[attr-defined]
    elif change == "length":
        recipe = make_recipe("head", overrides={"max_length": 41, "overlap": 8})
        two.encoder = Encoder(tokenizer(), two.adapted.base.config, recipe, KINDS[0])
    else:
        two = _predictor("bert", KINDS[1], "head", seed=2)
    assert Readers([one, two]).groups == [[0], [1]]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int = 3) -> list[int]:
    """Makes the model fail at a block; gives the sizes of the blocks it was asked for."""
    answer, calls = Readers.answer, []

    def fail(self: Readers, documents: Any, advance: Any) -> Any:
        calls.append(len(documents))
        if len(calls) == at:
            raise error
        return answer(self, documents, advance)

    monkeypatch.setattr(Readers, "answer", fail)
    return calls


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("fault", ["interrupt", "disk"])
def test_nothing_is_left_half_written_and_the_same_command_goes_on(
    ending: str, fault: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in NOTES))
    monkeypatch.setattr(inputs, "_BLOCK_DOCUMENTS", 8)
    posology.predict(runs["words"], path, tmp_path / f"whole.{ending}")
    calls = failing(monkeypatch, KeyboardInterrupt() if fault == "interrupt" else UserError("disk full", "Free it"))
    out = tmp_path / f"out.{ending}"
    out.write_text("was here")
    with pytest.raises(Interrupted if fault == "interrupt" else UserError, match=r"16 documents|disk full"):
        posology.predict(runs["words"], path, out, overwrite=True)
    assert out.read_text() == "was here"
    result = posology.predict(runs["words"], path, out, overwrite=True)
    assert calls == [8, 8, 8, 8, 6] and result["documents"] == 30
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert names(tmp_path) == {"in.jsonl", f"whole.{ending}", out.name}


def test_killed_without_warning_it_goes_on_without_loss_or_duplicates(
    runs: dict[str, Path], notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_BLOCK_DOCUMENTS", 4)
    posology.predict(runs["words"], notes, tmp_path / "whole.jsonl", id="id")
    answer = Readers.answer
    for kill_at in (1, 3, 4):
        if (child := os.fork()) == 0:
            calls = iter(range(100))

            def dying(self: Readers, *given: Any) -> Any:
                if next(calls) == kill_at:  # noqa: B023
                    os.kill(os.getpid(), signal.SIGKILL)
                return answer(self, *given)

            Readers.answer = dying  # type: ignore[method-assign]
            posology.predict(runs["words"], notes, tmp_path / "out.jsonl", id="id")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert not (tmp_path / "out.jsonl").exists()
    journal = tmp_path / ".out.jsonl.parts" / "journal.jsonl"
    done = len(journal.read_text().splitlines())
    assert 1 <= done < 8
    with open(journal, "a") as stream:  # as if it had been killed while writing
        stream.write('{"rows": 9')
    result = posology.predict(runs["words"], notes, tmp_path / "out.jsonl", id="id")
    assert result["documents"] == 30
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert names(tmp_path) == {"notes.csv", "whole.jsonl", "out.jsonl"}


def test_killed_between_the_output_and_the_end_it_is_done(runs: dict[str, Path], notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    if (child := os.fork()) == 0:
        shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        posology.predict(runs["words"], notes, out, id="id")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL and out.exists()
    written = out.read_bytes()
    assert posology.predict(runs["words"], notes, out, id="id")["documents"] == 30
    assert out.read_bytes() == written and names(tmp_path) == {"notes.csv", "out.jsonl"}
    with pytest.raises(UserError, match="exists"):
        posology.predict(runs["words"], notes, out, id="id")


def test_parts_of_something_else_are_not_mixed(
    runs: dict[str, Path], notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_BLOCK_DOCUMENTS", 8)
    out = tmp_path / "out.jsonl"
    failing(monkeypatch, KeyboardInterrupt(), at=2)
    with pytest.raises(Interrupted):
        posology.predict(runs["words"], notes, out, id="id")
    with pytest.raises(UserError, match="made of the artifact that is no longer the same"):
        posology.predict(runs["tagger"], notes, out, id="id")
    with pytest.raises(UserError, match="made of the options that is"):
        posology.predict(runs["words"], notes, out)
    with open(notes, "a") as stream:
        stream.write("more,fever\n")
    with pytest.raises(UserError, match="made of the input that is"):
        posology.predict(runs["words"], notes, out, id="id")
    assert posology.predict(runs["words"], notes, out, id="id", fresh=True)["documents"] == 31


def test_two_at_once_do_not_write_one_output(runs: dict[str, Path], notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with Journal(out, {}), pytest.raises(UserError, match="another process is writing it"):
        posology.predict(runs["words"], notes, out)
    assert names(tmp_path) == {"notes.csv"}


BAD_LINES = {
    5: ('{"text": 7, "id": "seven"}', "column 'text' has a int where a text was expected"),
    9: ("{", "is no valid JSON"),
    10: ('{"text": " ", "id": "nine"}', "column 'text' is empty"),
    20: ('{"text": "\\ud800", "id": "half"}', "has what is no character of utf-8 (character 0 of a column)"),
    27: ("7", "is JSON but no object"),
}


def test_bad_rows_go_aside_and_the_others_are_answered(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"text": text, "id": f"n{row}"}).encode() for row, text in enumerate(NOTES)]
    for row, (line, _) in BAD_LINES.items():
        lines[row] = line.encode()
    lines[14] = b'{"text": "pain \xff", "id": "bytes"}'
    path.write_bytes(b"\n".join(lines))
    monkeypatch.setattr(inputs, "_BLOCK_DOCUMENTS", 8)
    result = posology.predict(runs["words"], path, out, id="id")
    assert (result["documents"], result["rejected"]) == (24, 6)
    good = [row for row in range(30) if row not in BAD_LINES and row != 14]
    assert [row["id"] for row in rows(out)] == [f"n{row}" for row in good]
    aside = {row["row"]: row for row in rows(tmp_path / "out.jsonl.rejected.jsonl")}
    assert {row - 1: entry["reason"] for row, entry in aside.items() if row != 15} == {
        row: reason for row, (_, reason) in BAD_LINES.items()
    }
    assert aside[6]["id"] == "seven" and aside[6]["place"] == "in.jsonl:6" and aside[10]["id"] is None
    assert (tmp_path / "out.jsonl.rejected.jsonl").stat().st_mode & 0o777 == 0o600
    assert "pain" not in (tmp_path / "out.jsonl.rejected.jsonl").read_text()
    with pytest.raises(UserError, match=rf"^{path}:15: is not utf-8|^{path}:6: column 'text' has a int"):
        posology.predict(runs["words"], path, tmp_path / "strict.jsonl", strict=True)
    path.write_text("\n".join(line for line, _ in BAD_LINES.values()))
    with pytest.raises(UserError, match=r"no row with text that can be read \(row 1: column 'text' has a int"):
        posology.predict(runs["words"], path, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists() and not list(tmp_path.glob(".*"))


def test_ids_are_those_of_the_column_that_is_called_so(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    given = [{"id": 7.0}, {"id": "seven"}, {}, {"id": None}, {"id": ""}, {"id": ["a"]}, {"id": "long " * 40}]
    path.write_text("\n".join(json.dumps({"text": "fever"} | row) for row in given))
    posology.predict(runs["words"], path, tmp_path / "out.jsonl")
    assert [row["id"] for row in rows(tmp_path / "out.jsonl")] == ["7", "seven", *(f"in-{row}" for row in range(3, 8))]
    with pytest.raises(UserError, match=r"no row with text that can be read|in.jsonl:3: column 'id' is empty"):
        posology.predict(runs["words"], path, tmp_path / "named.jsonl", id="id", strict=True)


def test_bad_rows_of_csv_and_files_of_a_folder_go_aside(runs: dict[str, Path], tmp_path: Path) -> None:
    table, folder = tmp_path / "in.csv", tmp_path / "notes"
    table.write_text('id,text\n1,fever\n2,a,b\n3,x"y" z\n4,"a"b\n5,pain\n')
    result = posology.predict(runs["words"], table, tmp_path / "out.jsonl", id="id")
    assert [row["id"] for row in rows(tmp_path / "out.jsonl")] == ["1", "3", "5"]
    assert [entry["row"] for entry in rows(tmp_path / "out.jsonl.rejected.jsonl")] == [2, 4]
    assert result["rejected"] == 2
    table.write_text('id,text\n1,fever\n2,"pain\n3,more\n')  # takes the rest of the file with it
    with pytest.raises(UserError, match="never closed"):
        posology.predict(runs["words"], table, tmp_path / "two.jsonl", id="id")
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"no fever")
    (folder / "b.txt").write_bytes(b"\xff\xfe")
    posology.predict(runs["words"], folder, tmp_path / "three.jsonl")
    assert [row["id"] for row in rows(tmp_path / "three.jsonl")] == ["a"]
    (aside,) = rows(tmp_path / "three.jsonl.rejected.jsonl")
    assert aside["id"] == "b" and aside["reason"].startswith("is not utf-8")


@pytest.mark.parametrize("name", ["tagger", "one"])
def test_a_text_that_occurs_again_is_read_once(
    name: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [NOTES[row % 5] for row in range(40)]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in NOTES[:5]))
    posology.predict(runs[name], tmp_path / "few.jsonl", tmp_path / "few.out.jsonl")
    calls = failing(monkeypatch, KeyboardInterrupt(), at=99)
    result = posology.predict(runs[name], path, tmp_path / "out.jsonl")
    assert calls == [5] and result["documents"] == 40 and result["repeated"] == 35
    expected = [{k: v for k, v in row.items() if k != "id"} for row in rows(tmp_path / "few.out.jsonl")]
    for row, found in enumerate(rows(tmp_path / "out.jsonl")):
        assert same({k: v for k, v in found.items() if k != "id"}, expected[row % 5])


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "parquet"])
def test_rows_are_counted_without_reading_them(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"in.{ending}"
    frame = pl.DataFrame({"id": range(300), "text": [f'line "one"\nand, {row}' for row in range(300)]})
    if ending == "parquet":
        frame.write_parquet(path)
    else:
        content = (frame.write_ndjson() if ending == "jsonl" else frame.write_csv()).encode()
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    identity, count = Inputs(path, tabular.Columns()).fingerprint()
    assert count == (600 if ending.endswith("gz") else 300)  # packed, line ends within rows count too
    changed = bytearray(path.read_bytes())
    changed[-9] ^= 1
    path.with_name(f"other.{ending}").write_bytes(changed)
    with contextlib.suppress(UserError):
        assert Inputs(path.with_name(f"other.{ending}"), tabular.Columns()).fingerprint()[0] != identity


def test_columns_of_later_json_rows_count(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"note": "x"}\n' * 50 + '{"note": "y", "second": "z"}\n')
    found = Inputs(path, tabular.Columns(text_pair="second"), strict=True)
    assert found.paired and found.documents == 51
    path.write_text('{"note": "x"}\n' * 50 + '{"note": "y", "text": "z"}\n')
    with pytest.raises(UserError, match="2 columns are named"):
        Inputs(path, tabular.Columns())


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("mtsamples/specialty11/train.jsonl", tabular.Columns()),
        ("mts-dialog", tabular.Columns()),
        ("chemprot", tabular.Columns()),
    ],
)
def test_blocks_of_real_files_are_the_documents_of_the_whole(
    name: str, columns: tabular.Columns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_BLOCK_CHARACTERS", 50_000)
    found = 0
    for path in _tables(corpus(name.partition("/")[0])):
        format = path.name.removesuffix(".gz").rpartition(".")[2]
        records = tabular.read_records(path, format)
        names = list(records[0].values)
        longest = max(names, key=lambda key: sum(len(str(record.values.get(key))) for record in records[:50]))
        columns = tabular.Columns(text=longest)
        resolved = tabular.resolve(columns, records, needs_label=False, place=path)
        bare = path.with_suffix("") if path.suffix == ".gz" else path
        whole = list(tabular.documents(records, resolved, name=bare.stem, drop_empty=True))
        blocks = list(Inputs(path, columns, drop_empty=True).blocks())
        assert [document for block in blocks for document in block.documents] == whole
        found += len(blocks)
    assert found > 1


def _tables(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.name.endswith((".csv", ".tsv", ".jsonl", ".csv.gz", ".tsv.gz", ".jsonl.gz")):
            yield path


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_memory_is_that_of_a_block_whatever_the_size_of_the_input(
    ending: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = " ".join(NOTES)

    def peak(documents: int) -> float:
        """Megabytes that Python and numpy held at once."""
        path = tmp_path / f"in.{ending}"
        frame = pl.DataFrame({"text": [f"{row} {note}" for row in range(documents)]})
        if ending == "parquet":
            frame.write_parquet(path, row_group_size=10)
        else:
            path.write_text(frame.write_ndjson())
        tracemalloc.start()
        posology.predict(runs["words"], path, tmp_path / f"out.{ending}", overwrite=True)
        held = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        return held

    monkeypatch.setattr(inputs, "_BLOCK_CHARACTERS", 15_000)
    monkeypatch.setattr(textfile, "_BLOCK_BYTES", 15_000)
    monkeypatch.setattr(tabular, "_ROWS_AT_ONCE", 10)
    peak(10)  # what is loaded once
    small, large = peak(20), peak(200)
    # A block may still be written while the next but one is read: how many are held is a matter of luck, 1 or 2.
    assert large < 2.2 * small
    monkeypatch.setattr(inputs, "_BLOCK_CHARACTERS", 10**9)
    assert peak(200) > 10 * small  # so it is blocks that keep it small
