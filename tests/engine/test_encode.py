"""Windows and alignment: every piece, word and character accounted for."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.document import Document, Span
from posology.corpus.tags import snap, spans_to_tags, words_of
from posology.engine import tokens
from posology.engine.batch import batches, collate, cut
from posology.engine.decode import best_tags, entities, softmax, tags_of
from posology.engine.encode import Encoder, Frame, Window
from posology.engine.recipe import make_recipe
from posology.engine.tokens import tokenise
from posology.errors import UserError
from tests.engine.tiny import CONFIGS, KINDS, tokenizer

TOKENIZER = tokenizer()
# Letters, a combining accent, a character the tokenizer drops (zero width), unknown ones, blanks and line ends.
TEXTS = st.text(alphabet="abcz09 .,\n\té\u0301\u200b\u4e2d😀-", max_size=120)


def encoder(kind: str, **overrides: object) -> Encoder:
    recipe = make_recipe("full", overrides={"max_length": 16, "overlap": 4, **overrides})
    return Encoder(TOKENIZER, CONFIGS["bert"](), recipe, kind)


def document(text: str, spans: list[Span] | None = None) -> Document:
    return Document(id="d", text=text, label="a", words=words_of(text), spans=spans or [])


def test_frame_is_read_off_the_tokenizer() -> None:
    frame = Frame.of(TOKENIZER)
    start, stop = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id
    assert frame == Frame((start,), (stop,), (stop,), (stop,))


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_every_piece_of_a_text_is_in_a_window(text: str) -> None:
    encoded = encoder(KINDS[0]).encode([document(text)])
    whole = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    windows = encoded.windows[0]
    assert encoded.coverage == 1.0
    assert all(len(window.ids) <= 16 for window in windows)
    if len(windows) == 1:
        assert windows[0].ids.tolist() == TOKENIZER(text)["input_ids"]
    bodies = [window.ids[1:-1].tolist() for window in windows]
    rebuilt = bodies[0]
    for index, body in enumerate(bodies[1:], start=1):
        shared = 4 if index < len(bodies) - 1 else len(rebuilt) + len(body) - len(whole)
        assert shared >= 4 and rebuilt[len(rebuilt) - shared :] == body[:shared]
        rebuilt = rebuilt + body[shared:]
    assert rebuilt == whole


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_every_word_that_has_pieces_is_scored_once_at_its_first_piece(text: str) -> None:
    item = document(text)
    encoded = encoder(KINDS[1]).encode([item])
    scored = [int(word) for window in encoded.windows[0] for word in window.words]
    pieces = [TOKENIZER(text[start:end], add_special_tokens=False)["input_ids"] for start, end in item.words]
    assert sorted(scored) == [index for index, ids in enumerate(pieces) if ids]
    for window in encoded.windows[0]:
        for column, word in zip(window.columns, window.words, strict=True):
            assert window.ids[column] == pieces[word][0]


def test_words_at_a_window_border_are_read_where_most_is_seen_around_them() -> None:
    text = " ".join(["ab"] * 40)  # two pieces a word: 80 pieces in windows of 14
    encoded = encoder(KINDS[1]).encode([document(text)])
    windows = encoded.windows[0]
    starts = [*range(0, 80 - 14, 10), 80 - 14]
    assert len(windows) == len(starts)
    for start, window in zip(starts, windows, strict=True):
        for word in window.words:
            piece = 2 * int(word)

            def context(begin: int, piece: int = piece) -> float:
                left = piece - begin if begin else 99
                right = begin + 13 - piece if begin + 14 < 80 else 99
                return min(left, right) if begin <= piece < begin + 14 else -1

            assert context(start) == max(context(other) for other in starts)


def test_long_documents_are_covered_or_the_loss_is_told() -> None:
    item = document(" ".join(["abc"] * 1000))  # 3,000 pieces
    for kind in KINDS:
        whole = encoder(kind, max_length=90).encode([item])
        assert whole.pieces[0] == 3000 and whole.coverage == 1.0 and len(whole.windows[0]) > 30
        cut_off = encoder(kind, max_length=90, long_text="truncate").encode([item])
        assert len(cut_off.windows[0]) == 1
        assert cut_off.coverage == pytest.approx(88 / 3000)


def test_a_pair_keeps_its_second_text_in_every_window() -> None:
    item = Document(id="d", text="abc " * 20, text_pair="no pain", label="a")
    windows = encoder(KINDS[0]).encode([item]).windows[0]
    second = TOKENIZER("no pain", add_special_tokens=False)["input_ids"]
    for window in windows:
        assert window.ids[window.second_from :].tolist() == [*second, TOKENIZER.sep_token_id]
    batch = collate(windows, 0)
    assert batch.inputs["token_type_ids"].sum() == len(windows) * (len(second) + 1)
    short = Document(id="d", text="fever", text_pair="pain", label="a")
    window = encoder(KINDS[0]).encode([short]).windows[0][0]
    assert window.ids.tolist() == TOKENIZER("fever", "pain")["input_ids"]


def test_impossible_windows_are_refused() -> None:
    recipe = make_recipe("prompt", overrides={"virtual_tokens": 95})
    with pytest.raises(UserError, match="virtual tokens leave"):
        Encoder(TOKENIZER, CONFIGS["bert"](), recipe, KINDS[0], virtual_tokens=95)
    with pytest.raises(UserError, match="overlap=20"):
        encoder(KINDS[0], overlap=20)


def test_micro_batches_hold_every_window_once_within_the_budget() -> None:
    random = np.random.default_rng(0)

    def window(document: int, length: int) -> Window:
        return Window(document, np.zeros(length, np.int32), 0, np.empty(0, int), np.empty(0, int))

    units = [
        [window(row, int(length)) for length in random.integers(2, 60, random.integers(1, 4))] for row in range(50)
    ]
    groups = list(cut(units, 128))
    assert sorted(id(one) for group in groups for one in group) == sorted(id(one) for unit in units for one in unit)
    for group in groups:
        documents = {one.document for one in group}
        assert len(group) == sum(len(units[document]) for document in documents)  # units stay together
        assert len(documents) == 1 or len(group) * max(len(one.ids) for one in group) <= 128


def test_a_short_first_text_leaves_its_room_to_the_second() -> None:
    item = Document(id="d", text="no", text_pair="abc " * 25, label="a")  # 1 and 75 pieces
    encoded = encoder(KINDS[0], max_length=90).encode([item])
    assert encoded.coverage == 1.0 and len(encoded.windows[0]) == 1
    both = Document(id="d", text="abc " * 500, text_pair="abc " * 25, label="a")
    windows = encoder(KINDS[0], max_length=90, overlap=60).encode([both]).windows[0]
    assert len(windows) < 80  # the overlap is cut to half of the room that is left, not to a step of one piece


def test_order_follows_from_seed_and_epoch() -> None:
    first = np.concatenate(list(batches(20, 8, seed=1, epoch=0)))
    assert sorted(first) == list(range(20))
    assert (first == np.concatenate(list(batches(20, 8, seed=1, epoch=0)))).all()
    assert (first != np.concatenate(list(batches(20, 8, seed=1, epoch=1)))).any()
    assert (first != np.concatenate(list(batches(20, 8, seed=2, epoch=0)))).any()


def allowed(path: tuple[int, ...]) -> bool:
    return all(tag == 0 or tag % 2 or (before in (tag - 1, tag)) for before, tag in zip((0, *path), path, strict=False))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_decoding_finds_the_best_well_formed_sequence(seed: int, count: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(count, 5))
    paths = [path for path in itertools.product(range(5), repeat=count) if allowed(path)]
    best = max(paths, key=lambda path: sum(logits[row, tag] for row, tag in enumerate(path)))
    assert tuple(best_tags(logits)) == best


def test_dropped_words_continue_the_entity_around_them() -> None:
    nan = [np.nan] * 3
    sure = {"O": [9.0, 0, 0], "B": [0, 9.0, 0], "I": [0, 0, 9.0]}
    logits = np.array([nan, sure["B"], nan, nan, sure["I"], nan, sure["O"], nan])
    assert best_tags(logits).tolist() == [0, 1, 2, 2, 2, 0, 0, 0]
    words = [(index * 2, index * 2 + 1) for index in range(8)]
    spans, scores = entities(words, logits, ["X"])
    assert spans == [Span(2, 9, "X")]
    assert scores[0] == pytest.approx(softmax(np.array([9.0, 0, 0]))[0])
    assert best_tags(np.full((3, 3), np.nan)).tolist() == [0, 0, 0]
    assert entities([], np.empty((0, 3)), ["X"]) == ([], [])


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.data())
def test_certain_logits_give_the_snapped_gold_spans_back(text: str, data: st.DataObject) -> None:
    """Tags of words, windows and decoding are each other's inverse, whatever the text and where spans begin."""
    ends = st.integers(0, len(text))
    drawn = data.draw(st.lists(st.tuples(ends, ends, st.sampled_from("XY")), max_size=4))
    spans = [Span(start, end, label) for start, end, label in drawn if text[start:end].strip()]
    item = document(text, spans)
    tags = tags_of(["X", "Y"])
    gold = [tags.index(tag) for tag in spans_to_tags(item.words, item.spans)]
    logits = np.eye(len(tags))[gold] * 9 if gold else np.empty((0, len(tags)))
    found, _ = entities(item.words, logits, ["X", "Y"])
    assert found == snap(item.words, item.spans)
    assert all(text[span.start : span.end].strip() for span in found)


def test_words_of_byte_level_tokenizers_keep_the_blank_before_them() -> None:
    """RoBERTa and ModernBERT hold "Ġfever", not "fever", for a word of running text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    text = "The patient, 52yo, had fever - no pain."
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text, "the fever had no pain"] * 50, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    recipe = make_recipe("full", overrides={"max_length": 90})
    item = document(text)
    config = CONFIGS["roberta"]()
    config.vocab_size = len(fast)
    window = Encoder(fast, config, recipe, KINDS[1]).encode([item]).windows[0][0]
    assert window.ids.tolist() == fast(text)["input_ids"]
    assert "Ġfever" in fast.convert_ids_to_tokens(window.ids)
    assert window.words.tolist() == list(range(len(item.words)))
    assert Frame.of(fast) == Frame((0,), (2,), (2, 2), (2,))


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_each_word_is_cut_as_in_a_list_of_words(texts: list[str]) -> None:
    items = [document(text) for text in texts]
    found = list(tokenise(TOKENIZER.backend_tokenizer, items, by_word=True))
    for item, (ids, owners, second) in zip(items, found, strict=True):
        assert owners is not None or not len(ids)
        assert second is None
        whole = TOKENIZER([item.text[start:end] for start, end in item.words] or [""], is_split_into_words=True)
        assert ids.tolist() == whole["input_ids"][1:-1]
        assert (owners if owners is not None else np.empty(0)).tolist() == whole.word_ids()[1:-1]


def _cached(folder: Path) -> list[Path]:
    return sorted((folder / tokens.FOLDER).glob("*"))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_cut_once_for_a_task(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [document(text) for text in ("no fever", "", "abc \u200b pain " * 30, "x")]
    items[0].text_pair = "pain" if kind == KINDS[0] else None
    one = encoder(kind)
    first = one.encode(items, cache=tmp_path)
    (path,) = _cached(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(tokens, "_by_text", None)
    monkeypatch.setattr(tokens, "_by_word", None)
    again = encoder(kind, max_length=16).encode(items, cache=tmp_path)  # windows are cut anew, pieces are not
    assert (again.pieces == first.pieces).all() and (again.covered == first.covered).all()
    for mine, theirs in zip(again.windows, first.windows, strict=True):
        assert [(w.document, w.ids.tolist(), w.second_from, w.columns.tolist(), w.words.tolist()) for w in mine] == [
            (w.document, w.ids.tolist(), w.second_from, w.columns.tolist(), w.words.tolist()) for w in theirs
        ]
    assert len(encoder(kind, max_length=9, overlap=2).encode(items, cache=tmp_path).windows[2]) > len(first.windows[2])


@pytest.mark.parametrize("change", ["text", "pair", "words", "order", "tokenizer"])
def test_other_texts_have_other_pieces(change: str, tmp_path: Path) -> None:
    items = [document("no fever"), document("pain")]
    kind = KINDS[1] if change == "words" else KINDS[0]
    one = encoder(kind)
    one.encode(items, cache=tmp_path)
    if change == "text":
        items[1].text = "pains"
    elif change == "pair":
        items[1].text_pair = ""
    elif change == "words":
        items[1].words = [(0, 2), (2, 4)]
    elif change == "order":
        items.reverse()
    else:
        other = tokenizer()
        other.add_tokens(["pain"])
        one = Encoder(other, CONFIGS["bert"](), make_recipe("full", overrides={"max_length": 16, "overlap": 4}), kind)
    found = one.encode(items, cache=tmp_path)
    assert len(_cached(tmp_path)) == 2
    plain = one.encode(items)
    assert [w.ids.tolist() for own in found.windows for w in own] == [
        w.ids.tolist() for own in plain.windows for w in own
    ]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", "cut", "long"])
def test_a_damaged_file_of_pieces_is_made_anew(damage: bytes | str, tmp_path: Path) -> None:
    items = [document("no fever"), document("pain " * 40)]
    encoder(KINDS[0]).encode(items, cache=tmp_path)
    (path,) = _cached(tmp_path)
    whole = path.read_bytes()
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        array = np.load(path)
        np.save(path, array[:-1] if damage == "cut" else np.append(array, array))
    assert encoder(KINDS[0]).encode(items, cache=tmp_path).pieces.tolist() == [2, 40]
    assert path.read_bytes() == whole


def test_without_a_place_to_keep_pieces_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [document("no fever")]
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "missing", tmp_path / "file"):
        assert encoder(KINDS[0]).encode(items, cache=place).pieces.tolist() == [2]
    monkeypatch.setenv(tokens.SWITCH, "0")
    encoder(KINDS[0]).encode(items, cache=tmp_path)
    assert not (tmp_path / tokens.FOLDER).exists() and not (tmp_path / "missing").exists()


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [[document(f"{letter} " * 50)] for letter in "abcd"]
    paths = []
    for age, items in enumerate(texts[:3]):
        encoder(KINDS[0]).encode(items, cache=tmp_path)
        (new,) = set(_cached(tmp_path)) - set(paths)
        os.utime(new, (age, age))
        paths.append(new)
    encoder(KINDS[0]).encode(texts[0], cache=tmp_path)  # the oldest is used again
    monkeypatch.setattr(tokens, "_MOST_BYTES", 3 * paths[0].stat().st_size)
    encoder(KINDS[0]).encode(texts[3], cache=tmp_path)
    assert paths[1] not in _cached(tmp_path) and {paths[0], paths[2]} < set(_cached(tmp_path))
    assert len(_cached(tmp_path)) == 3
    monkeypatch.setattr(tokens, "_MOST_BYTES", 10)
    encoder(KINDS[0]).encode([document("too large for any room")], cache=tmp_path)
    assert len(_cached(tmp_path)) == 3
