"""The runtime that is copied into exports reads and decodes as the engine does, without importing any of it."""

from __future__ import annotations

import ast
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.engine import decode
from posology.engine.encode import Encoder, Frame
from posology.engine.recipe import make_recipe
from posology.ship import runtime
from posology.ship.runtime import InputError, Runtime
from tests.engine.tiny import CONFIGS, KINDS, tokenizer


def test_it_imports_nothing_but_three_packages() -> None:
    tree = ast.parse(Path(runtime.__file__).read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    outside = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside == {"numpy", "onnxruntime", "tokenizers"}


def test_words_of_every_character() -> None:
    """But for those that one of the two tables of Unicode does not know yet."""
    known = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    for start in range(0, len(known), 1000):
        text = " ".join(f"a{chr(code)}1" for code in known[start : start + 1000])
        assert runtime.words_of(text) == words_of(text), hex(known[start])


@given(st.text())
def test_words_of_any_text(text: str) -> None:
    if all(unicodedata.category(character) not in ("Cn", "Cs") for character in text):
        assert runtime.words_of(text) == words_of(text)


@given(st.integers(0, 12), st.integers(1, 3), st.integers(0, 10**6), st.floats(0.3, 4))
def test_entities_of_any_logits(count: int, types: int, seed: int, temperature: float) -> None:
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(count, 2 * types + 1)).astype(np.float32)
    logits[draw.random(count) < 0.2] = np.nan
    words = [(3 * place, 3 * place + 2) for place in range(count)]
    labels = ["X", "Y", "Z"][:types]
    spans, scores = decode.entities(words, logits, labels, temperature)
    found = runtime.entities(words, logits, labels, temperature)
    assert [entity[:3] for entity in found] == [tuple(span) for span in spans]
    np.testing.assert_allclose([entity[3] for entity in found], scores, rtol=1e-5)


def _reader(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, overrides: dict[str, Any], pair: bool) -> Runtime:
    """A runtime with no network behind it, and the encoder it must equal."""
    config, recipe = CONFIGS["bert"](), make_recipe("head", overrides={"overlap": 8, **overrides})
    own = tokenizer()
    own.backend_tokenizer.encode_special_tokens = True  # as `load_tokenizer` has it
    encoder = Encoder(own, config, recipe, kind)
    frame = Frame.of(own)
    folder.mkdir(exist_ok=True)
    own.backend_tokenizer.save(str(folder / "tokenizer.json"))
    reading = {
        "max_length": encoder.max_length,
        "long_text": recipe.long_text,
        "overlap": recipe.overlap,
        "padding_id": 0,
        "frame": {name: getattr(frame, name) for name in ("before", "after", "between", "after_pair")},
    }
    record = {"kind": kind, "labels": ["a", "b"], "text_pair": pair, "temperature": 1.0, "threshold": None}
    record |= {"precision": "fp32", "model": "none", "reading": reading}
    (folder / "posology.json").write_text(json.dumps(record))

    class NoSession:
        def __init__(self, *_: Any, **__: Any):
            self.get_inputs = list

    monkeypatch.setattr(runtime.onnxruntime, "InferenceSession", NoSession)
    made = Runtime(folder)
    made.encoder = encoder  # type: ignore[attr-defined]
    return made


WORDS = st.lists(
    st.sampled_from(["fever", "no", "d1", "[SEP]", "héé", "\u00ad", "pain-", "  ", "\n", "aaaaaaaa"]), max_size=60
)
OVERRIDES = [{"max_length": 24}, {"max_length": 24, "long_text": "truncate"}, {"max_length": 90}]


@pytest.mark.parametrize("overrides", OVERRIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_the_encoders(
    kind: str, overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _reader(tmp_path, monkeypatch, kind, overrides, pair=False)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(WORDS, min_size=1, max_size=3))
    def same(lists: list[list[str]]) -> None:
        texts = [" ".join(words) or "x" for words in lists]
        words = [words_of(text) for text in texts]
        documents = [Document(str(n), text, words=own) for n, (text, own) in enumerate(zip(texts, words, strict=True))]
        expected = [window for own in reader.encoder.encode(documents).windows for window in own]  # type: ignore[attr-defined]
        if kind == KINDS[0]:
            found = reader._windows_by_text(texts, None)
        else:
            found = reader._windows_by_word(texts, words)
        assert [window.ids for window in found] == [window.ids.tolist() for window in expected]
        assert [window.text for window in found] == [window.document for window in expected]
        assert [list(window.words) for window in found] == [window.words.tolist() for window in expected]
        assert [list(window.columns) for window in found] == [window.columns.tolist() for window in expected]

    same()


@pytest.mark.parametrize("overrides", OVERRIDES)
def test_windows_of_pairs(overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = _reader(tmp_path, monkeypatch, KINDS[0], overrides, pair=True)

    @settings(max_examples=40, deadline=None)
    @given(WORDS, WORDS)
    def same(first: list[str], second: list[str]) -> None:
        text, pair = " ".join(first), " ".join(second)
        expected = reader.encoder.encode([Document("0", text, text_pair=pair)]).windows[0]  # type: ignore[attr-defined]
        found = reader._windows_by_text([text], [pair])
        assert [window.ids for window in found] == [window.ids.tolist() for window in expected]
        assert [window.second_from for window in found] == [window.second_from for window in expected]

    same()


def test_pairs_are_refused_where_there_should_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = _reader(tmp_path, monkeypatch, KINDS[0], {}, pair=False)
    with pytest.raises(InputError, match="single texts"):
        reader.predict(["a"], ["b"])


def test_a_folder_that_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        Runtime(tmp_path)


def test_the_threshold_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = _reader(tmp_path, monkeypatch, KINDS[0], {}, pair=False)
    monkeypatch.setattr(reader, "_run", lambda windows: np.tile(np.log([[0.7, 0.3]]), (len(windows), 1)))
    assert reader.predict(["x"])[0]["label"] == "a"
    reader.record["threshold"] = {"positive": "b", "probability": 0.25}
    answer = reader.predict(["x"])[0]
    assert answer["label"] == "b" and answer["score"] == pytest.approx(0.3)
