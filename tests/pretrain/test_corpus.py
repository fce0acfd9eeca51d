"""Text of every form, and its pieces on disk."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import stat
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.tabular import Columns
from posology.engine.checkpoint import folder_of as checkpoint_of
from posology.errors import UserError
from posology.pretrain.corpus import Corpus, blocks, documents
from posology.pretrain.excluded import Evaluation
from posology.pretrain.masking import Masker
from posology.pretrain.perplexity import held_out_windows
from posology.pretrain.store import Reading, Store, cuts, folder_of, open_store
from posology.pretrain.vocabulary import WordCounts, coverage, extend, grow, new_words
from tests.engine.tiny import tokenizer

TEXTS = ["No fever, no pain.", 'She said "the pain\nis gone".', "Metformin 500 mg"]


def write(folder: Path, form: str) -> tuple[Path, Columns]:
    """The texts in one of the forms that are read."""
    rows = [{"row": number, "body": text, "who": f"p{number // 2}"} for number, text in enumerate(TEXTS)]
    frame, columns = pl.DataFrame(rows), Columns(text="BODY", group="who")
    if form == "folder":
        for number, text in enumerate(TEXTS):
            (folder / f"{number}.txt").write_text(text)
        (folder / "empty.txt").write_text(" \n")
        return folder, Columns()
    if form == "noteevents":
        header = "ROW_ID,SUBJECT_ID,HADM_ID,CATEGORY,ISERROR,TEXT"
        quoted = [text.replace('"', '""') for text in TEXTS]
        lines = [f'{number},{number // 2},,"Nursing",,"{text}"' for number, text in enumerate(quoted)]
        lines += ['8,1,,"Nursing",1,"filed by mistake"', '9,1,,"Nursing",,']
        (folder / "NOTEEVENTS.csv.gz").write_bytes(gzip.compress("\n".join([header, *lines, ""]).encode()))
        return folder, Columns()
    path = folder / f"notes.{form}"
    if form == "parquet":
        frame.write_parquet(path)
    elif form.startswith("jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if form.endswith("gz") else content)
    else:
        path.write_text(frame.write_csv(separator="\t" if form == "tsv" else ","))
    return path, columns


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "csv", "tsv", "parquet", "folder", "noteevents"])
def test_every_form_gives_the_same_texts(form: str, tmp_path: Path) -> None:
    path, columns = write(tmp_path, form)
    corpus = Corpus([path], columns)
    for _ in range(2):  # it may be read again
        found = list(corpus)
        assert [document.text for document in found] == TEXTS
    patients = {"folder": ["", "", ""], "noteevents": ["0", "0", "1"]}.get(form, ["p0", "p0", "p1"])
    assert [document.group for document in found] == patients
    dropped = {"folder": {"dropped_empty": 1}, "noteevents": {"dropped_empty": 1, "dropped_error": 1}}
    assert dict(corpus.counts) == dropped.get(form, {})
    assert [document.text for document in documents(path, columns)] == TEXTS
    assert corpus.bytes > 0 and corpus.stamp() == Corpus([path], columns).stamp()
    if form == "jsonl":
        ways: list[dict[str, Any]] = [{}, {"encoding": "latin-1"}, {"quoting": False}]
        assert len({json.dumps(Corpus([path], columns, **way).stamp()) for way in ways}) == 3


def test_several_sources_are_read_in_turn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    corpus = Corpus([tmp_path / "b.jsonl", tmp_path / "a.jsonl"])
    assert [document.text for document in corpus] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.csv", None, "does not exist"),
        ("notes.docx", "x", "ending '.docx'"),
        ("notes.csv", "a,b\n1,2\n", "no column is named text"),
        ("notes.jsonl", "", "has no rows"),
        ("notes", "", "no .txt files"),
        ("notes.txt", "x", "one text file, which would be one document"),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, content: str | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "notes":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=problem):
        Corpus([path])


def test_blocks_hold_everything_once(tmp_path: Path) -> None:
    path, columns = write(tmp_path, "jsonl")
    sizes: list[int] = []
    found = list(blocks(documents(path, columns), 20, sizes.append))
    assert [[document.text for document in block] for block in found] == [TEXTS[:2], TEXTS[2:]]
    assert sum(sizes) == sum(map(len, TEXTS))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(5, 40))
@settings(max_examples=100, deadline=None)
def test_documents_are_cut_between_words(sizes: list[int], length: int) -> None:
    starts = np.zeros(sum(sizes), bool)
    starts[np.cumsum([0, *sizes[:-1]])] = True
    borders = cuts(starts, length)
    assert borders[0][0] == 0 and borders[-1][1] == len(starts)
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(borders))
    assert all(0 < end - begin <= length for begin, end in borders)
    for (before, _), (begin, _) in itertools.pairwise(borders):
        assert starts[begin] or not starts[before + 1 : begin + 1].any()  # only words longer than a text are cut


def make_store(tmp_path: Path, texts: list[str], **options: Any) -> Store:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text, "who": text[0]}) + "\n" for text in texts))
    evaluation = options.pop("evaluation", None)
    corpus = Corpus([path], Columns(group=options.pop("group", None)))
    return open_store(
        corpus, tmp_path / "out", tokenizer(), Reading(**{"length": 30, "held_out": 0.3} | options), evaluation
    )


def everything(store: Store) -> list[list[int]]:
    """Ids of all texts, sorted."""
    parts = (store.training, store.held)
    return sorted(part.read(number)[0].tolist() for part in parts for number in range(len(part)))


def test_what_is_stored_is_what_the_tokenizer_gives(tmp_path: Path) -> None:
    texts = [f"patient {number} has fever" for number in range(40)]
    store = make_store(tmp_path, texts)
    backend = tokenizer().backend_tokenizer
    wanted = [backend.encode(text, add_special_tokens=False) for text in texts]
    assert everything(store) == sorted(encoding.ids for encoding in wanted)
    facts = store.facts
    assert facts["training"]["documents"] + facts["held"]["documents"] == facts["documents"] == 40
    assert 4 < facts["held"]["documents"] < 20
    ids, starts, _ = store.training.read(0)
    (same,) = [encoding for encoding in wanted if encoding.ids == ids.tolist()][:1]
    assert np.flatnonzero(starts).tolist() == [
        place for place, word in enumerate(same.word_ids) if place == 0 or word != same.word_ids[place - 1]
    ]
    folder = folder_of(tmp_path / "out")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    store.remove()
    assert not folder.exists()


def test_texts_of_one_document_know_it(tmp_path: Path) -> None:
    store = make_store(tmp_path, [f"{letter} fever " * 40 for letter in "abcdefghijkl"])
    owners = [store.training.read(number)[2] for number in range(len(store.training))]
    assert owners == sorted(owners) and len(owners) == 3 * store.facts["training"]["documents"]


def test_a_store_is_used_again_while_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"note {number}" for number in range(30)]
    first = make_store(tmp_path, texts)
    before = (first.folder / "facts.json").stat().st_mtime_ns
    path = tmp_path / "corpus.jsonl"
    reading = Reading(length=30, held_out=0.3)
    with pytest.raises(UserError, match="another process"):
        open_store(Corpus([path]), tmp_path / "out", tokenizer(), reading, None)
    first.close()
    again = open_store(Corpus([path]), tmp_path / "out", tokenizer(), reading, None)
    assert (again.folder / "facts.json").stat().st_mtime_ns == before
    again.close()
    fresh = open_store(Corpus([path]), tmp_path / "out", tokenizer(), reading, None, fresh=True)
    assert (again.folder / "facts.json").stat().st_mtime_ns != before and fresh.facts == first.facts
    fresh.close()
    other = open_store(Corpus([path]), tmp_path / "out", tokenizer(), Reading(length=29, held_out=0.5), None)
    assert other.facts["content"] != first.facts["content"] and other.facts["fingerprint"] == first.facts["fingerprint"]
    other.close()
    (again.folder / "facts.json").write_text("{")  # killed in the middle
    changed = open_store(Corpus([path]), tmp_path / "out", tokenizer(), reading, None)
    assert changed.facts == first.facts
    changed.remove()
    assert not changed.folder.exists()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_store_goes_with_the_work_unless_that_can_go_on(tmp_path: Path, checkpoint: bool) -> None:
    with make_store(tmp_path, ["one note", "two notes", "three notes and more"] * 9) as store:
        pass
    assert not store.folder.exists()
    if checkpoint:
        state = checkpoint_of(tmp_path / "out") / "state.safetensors"
        state.parent.mkdir()
        state.touch()
    with pytest.raises(ValueError, match="x"), make_store(tmp_path, ["one note", "two notes", "three"] * 9):
        raise ValueError("x")
    assert store.folder.exists() is checkpoint


def test_half_a_character_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "broken \\ud83d here"}\n')
    with pytest.raises(UserError, match=r"notes\.jsonl:2: .* half of one"):
        list(Corpus([path]))


def test_the_patients_of_one_source_count_beside_another_without(tmp_path: Path) -> None:
    who, no_one = tmp_path / "who.jsonl", tmp_path / "texts"
    who.write_text(
        "".join(json.dumps({"text": f"{n} note of {p}", "who": p}) + "\n" for n in range(20) for p in "abcdefgh")
    )
    no_one.mkdir()
    for number in range(20):
        (no_one / f"{number}.txt").write_text(f"text {number}")
    columns = Columns(text="text", group="who")
    store = open_store(Corpus([who, no_one], columns), tmp_path / "out", tokenizer(), Reading(30, 0.4), None)
    last = {
        name: {int(part.read(number)[0][-1]) for number in range(len(part))}
        for name, part in (("training", store.training), ("held", store.held))
    }
    letters = {tokenizer()(letter, add_special_tokens=False)["input_ids"][0] for letter in "abcdefgh"}
    assert letters & last["training"] and letters & last["held"] and not letters & last["training"] & last["held"]


def test_a_patient_is_trained_on_or_held_out(tmp_path: Path) -> None:
    texts = [f"{letter} note {number}" for number in range(20) for letter in "abcdefgh"]
    store = make_store(tmp_path, texts, group="who")
    first = [{int(part.read(number)[0][0]) for number in range(len(part))} for part in (store.training, store.held)]
    assert first[0] and first[1] and not first[0] & first[1]


def test_perplexity_is_of_documents_drawn_whole(tmp_path: Path) -> None:
    """Long ones no more likely than short ones, and all texts of each, up to a number of pieces."""
    draw = random.Random(0)
    lengths = [600 if number % 10 == 0 else 12 for number in range(400)]
    texts = [" ".join(draw.choices(["no", "patient", "fever", "abc"], k=length)) for length in lengths]
    store = make_store(tmp_path, texts, held_out=0.9)
    borders = store.held.documents()
    assert len(borders) == store.facts["held"]["documents"] + 1 and borders[-1] == len(store.held)
    sizes = np.diff(borders)
    found = held_out_windows(store.held, Masker.of(tokenizer(), 0.15, 0), 6_000)
    pieces = sum(len(window.ids) - 2 for own in found for window in own)
    assert 6_000 <= pieces < 7_000
    numbers = {int(begin): int(size) for begin, size in zip(borders, sizes, strict=False)}
    assert all(len(own) == numbers[own[0].document] for own in found)  # each whole
    long = sum(len(own) > 1 for own in found) / len(found)
    assert long == pytest.approx(0.1, abs=0.06) and len(found) > 50
    assert len(held_out_windows(store.held, Masker.of(tokenizer(), 0.15, 0))) == store.facts["held"]["documents"]


def test_evaluation_documents_are_left_out(tmp_path: Path) -> None:
    texts = [f"patient {number} {'has fever and pain ' * 4}{number}" for number in range(30)]
    store = make_store(tmp_path, texts, evaluation=Evaluation([texts[3], texts[7].upper(), "some other note"]))
    facts = store.facts
    assert facts["excluded"]["exact"] == 2
    assert facts["evaluation"]["documents"] == 3 and facts["evaluation"]["found"] >= 2
    assert facts["training"]["documents"] + facts["held"]["documents"] == 30 - sum(facts["excluded"].values())


def test_too_small_a_corpus_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none is left to measure perplexity on"):
        make_store(tmp_path, ["one note"], held_out=1e-9)
    assert not folder_of(tmp_path / "out").exists()


# --- vocabulary -------------------------------------------------------------------------------------------------------


def counted(texts: list[str]) -> WordCounts:
    counts = WordCounts(lower=True)
    counts.add(texts)
    return counts


def test_coverage_is_by_word() -> None:
    counts = counted(["The fever, THE pain", "abc 12 the"])
    found = coverage(counts, tokenizer(), with_text=True)
    assert found["words"] == 6 and found["distinct"] == 4
    assert found["pieces_per_word"] == pytest.approx((5 * 1 + 3) / 6)
    assert found["whole"] == pytest.approx(5 / 6) and found["shattered"] == 0
    assert found["worst"] == [{"term": "abc", "pieces": 3, "occurrences": 1}]
    assert "abc" not in json.dumps(coverage(counts, tokenizer(), with_text=False))


def test_rare_words_are_forgotten_before_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posology.pretrain.vocabulary._MOST_WORDS", 100)
    counts = WordCounts(lower=True)
    for part in range(20):
        counts.add([f"often {' '.join(f'x{part}y{number}' for number in range(60))}"] * 2)
    assert len(counts.counts) <= 160 and counts.counts["often"].occurrences == 40


def test_new_words_are_those_that_save_most_and_stand_in_many_documents() -> None:
    texts = ["metformin abc abc"] * 12 + ["dyspnea " * 50] * 3
    found = new_words(counted(texts), tokenizer(), 5)
    assert found == ["metformin", "abc"]
    assert new_words(counted(texts), tokenizer(), 1) == ["metformin"]
    with pytest.raises(UserError, match="10 documents or more"):
        new_words(counted(["dyspnea"]), tokenizer(), 5)


@pytest.mark.parametrize(
    "architecture", ["bert", "roberta", "distilbert", "mobilebert", "electra", "albert", "modernbert"]
)
def test_a_new_word_starts_as_the_mean_of_its_pieces(architecture: str) -> None:
    from tests.pretrain.test_mlm import make

    own, model = tokenizer(), make(architecture)
    old = model.get_input_embeddings().weight.detach().clone()
    backend = own.backend_tokenizer
    pieces = backend.encode("metformin", add_special_tokens=False).ids
    size = len(own)
    words = extend(own, ["metformin", "dyspnea"])
    assert list(words) == [size, size + 1] and words[size] == pieces
    assert backend.encode("Metformin, xmetformin", add_special_tokens=False).ids[0] == size
    assert backend.encode("xmetformin", add_special_tokens=False).tokens[-1] != "metformin"
    grow(model, words, 150)
    new = model.get_input_embeddings().weight
    assert len(new) == 150 and model.config.vocab_size == 150
    assert (new[size] - old[pieces].mean(0)).abs().max() < 1e-6 and (new[: len(old)][:size] == old[:size]).all()
    if (bias := getattr(model.get_output_embeddings(), "bias", None)) is not None:
        assert len(bias) == 150 and abs((bias[size] - bias[pieces].mean()).item()) < 1e-6
