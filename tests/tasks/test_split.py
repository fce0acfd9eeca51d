from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus.document import Document, Span
from posology.errors import UserError
from posology.tasks.leaks import count_conflicts, find_leaks, handle_leaks
from posology.tasks.prepared import SPLITS
from posology.tasks.split import apply_lists, complete, split_of_file, split_of_name


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("train-00000-of-00002", "train"), ("train1", "train"),
        ("dev", "validation"), ("devel", "validation"), ("valid", "validation"), ("validation", "validation"),
        ("val_2", "validation"), ("test", "test"), ("testing", "test"), ("TEST2", "test"),
        ("trainer", None), ("mytest", None), ("test.old", None), ("notes", None), ("", None), ("1", None),
    ],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_of_name(name) == split
    assert split_of_file(Path(f"{name}.csv.gz")) == split


def _documents(number: int, group_size: int = 1) -> list[Document]:
    shares = "aaaaaaaaaabbbbbbccc" + "d"
    return [Document(f"n{i}", f"note {i}", f"g{i // group_size}", label=shares[i % 20]) for i in range(number)]


def _sizes(splits: dict[str, list[Document]]) -> list[int]:
    return [len(splits[split]) for split in SPLITS]


@pytest.mark.parametrize("group_size", [1, 4])
def test_seventy_ten_twenty_by_group_and_class(group_size: int) -> None:
    documents = _documents(400, group_size)
    splits, notes = complete(documents, seed=1, place="p")
    assert sum(_sizes(splits)) == 400
    assert all(abs(size - wanted) <= 12 for size, wanted in zip(_sizes(splits), [280, 40, 80], strict=True))
    assert find_leaks(splits) == {}
    for label, share in {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}.items():
        for split in SPLITS:
            found = Counter(document.label for document in splits[split])[label] / len(splits[split])
            assert abs(found - share) < 0.06, (label, split)
    assert notes == {
        "given": [], "made": {"validation": 1, "test": 2}, "seed": 1, "method": notes["method"],
        "copies_kept_together": True, "documents_moved_to_train": 0,
    }  # fmt: skip


def test_copies_stay_together_unless_they_are_everywhere() -> None:
    documents = [Document(f"d{i}", f"text {i // 2}", f"g{i}", label="ab"[i % 2]) for i in range(60)]
    splits, notes = complete(documents, seed=1, place="p")
    assert notes["copies_kept_together"]
    assert find_leaks(splits) == {}
    for document in documents[:40]:
        document.group = "one patient with most of the notes"
    assert complete(documents, seed=1, place="p")[1]["copies_kept_together"]
    for document in documents[:40]:
        document.group = document.id
    documents += [Document(f"e{i}", "Results:", f"g{i}", label="a") for i in range(60)]
    splits, notes = complete(documents, seed=1, place="p")
    assert not notes["copies_kept_together"]
    assert {found["groups"] for found in find_leaks(splits).values()} == {0}
    assert _sizes(splits) == [84, 12, 24]


def test_the_seed_decides() -> None:
    ids = [
        [document.id for document in complete(_documents(100), seed=seed, place="p")[0]["test"]] for seed in (1, 1, 2)
    ]
    assert ids[0] == ids[1] != ids[2]


def test_only_what_is_missing_is_made() -> None:
    documents = _documents(110)
    for document in documents[:100]:
        document.split = "train"
    for document in documents[100:]:
        document.split = "test"
    splits, notes = complete(documents, seed=1, place="p")
    assert splits["test"] == documents[100:]
    assert _sizes(splits) == [90, 10, 10]
    assert (notes["given"], notes["made"]) == (["train", "test"], {"validation": 1})


def test_test_without_train_is_refused() -> None:
    document = Document("a", "x", label="y", split="test")
    with pytest.raises(UserError, match=r"^p: no training split is given.*--train"):
        complete([document], seed=1, place="p")


def test_too_few_groups() -> None:
    documents = [Document(f"n{i}", f"t {i}", f"g{i % 2}", label="ab"[i % 2]) for i in range(50)]
    with pytest.raises(UserError, match="there are 2 groups of documents, too few to make 3 splits"):
        complete(documents, seed=1, place="p")


@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9), st.sampled_from("abc")), min_size=3, max_size=40),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_made_splits_never_leak_and_train_knows_every_label(rows: list[tuple[int, int, str]], seed: int) -> None:
    documents = [Document(f"d{i}", f"text {t}", f"g{g}", label=label) for i, (g, t, label) in enumerate(rows)]
    try:
        splits, notes = complete(documents, seed=seed, place="p")
    except UserError as error:
        assert "too few to make 3 splits" in str(error)  # noqa: PT017 few linked groups are the user's to mend
        return
    assert sorted(document.id for split in SPLITS for document in splits[split]) == sorted(d.id for d in documents)
    for found in find_leaks(splits).values():
        assert found["groups"] == 0
        assert not (notes["copies_kept_together"] and found["texts"])
    assert {document.label for document in splits["train"]} == {document.label for document in documents}


def test_a_rare_entity_type_stays_in_training() -> None:
    documents = [
        Document(f"n{i}", f"note {i}", spans=[Span(0, 4, "Rare" if i == 5 else "Common")], words=[(0, 4)])
        for i in range(40)
    ]
    for seed in range(6):
        splits, _ = complete(documents, seed=seed, place="p")
        assert any(span.label == "Rare" for document in splits["train"] for span in document.spans)
        assert all(_sizes(splits))


def _lists(folder: Path, **content: str) -> Path:
    folder.mkdir()
    for name, text in content.items():
        suffix = ".csv" if "," in text else ".txt"
        (folder / (name + suffix)).write_text(text)
    return folder


def test_lists_of_ids_and_of_groups(tmp_path: Path) -> None:
    documents = _documents(6, group_size=2)
    notes = apply_lists(documents, _lists(tmp_path / "ids", train="n0\nn1\n\nn2\n", dev="n3", test="n4\nn5\nn9\n"))
    assert [document.split for document in documents] == ["train"] * 3 + ["validation"] + ["test"] * 2
    assert notes == {"lists_of": "id", "listed_but_absent": 1}
    lists = _lists(tmp_path / "groups", train="subject,x\ng0,1\n", validation="subject,x\ng2,1\n", test="g1\n")
    assert apply_lists(documents, lists) == {"lists_of": "group", "listed_but_absent": 0}
    assert [document.split for document in documents] == ["train"] * 2 + ["test"] * 2 + ["validation"] * 2


def test_bad_lists(tmp_path: Path) -> None:
    documents = _documents(4)
    with pytest.raises(UserError, match=r"train\.txt:2: 'n1' is also at .*test\.txt:1, in another split"):
        apply_lists(documents, _lists(tmp_path / "both", test="n1\n", train="n0\nn1\n"))
    with pytest.raises(UserError, match=r"2 of 4 documents are in no list, the first has id 'n1'"):
        apply_lists(documents, _lists(tmp_path / "none", test="n3\n", train="n0\n"))
    with pytest.raises(UserError, match="has no id lists"):
        apply_lists(documents, _lists(tmp_path / "empty"))
    with pytest.raises(UserError, match="there is no such folder"):
        apply_lists(documents, tmp_path / "nowhere")


def _leaking() -> dict[str, list[Document]]:
    return {
        "train": [Document("1", "Chest pain."), Document("2", "x", "p"), Document("3", "only"), Document("8", "...")],
        "validation": [Document("4", "chest  PAIN"), Document("5", "y", "p")],
        "test": [Document("6", "Chest-pain!"), Document("7", "z", "q"), Document("9", "!!!")],
    }


def test_leaks_are_counted_for_each_pair_of_splits() -> None:
    assert find_leaks(_leaking()) == {
        "train, validation": {"texts": 1, "groups": 1},
        "train, test": {"texts": 1, "groups": 0},
        "validation, test": {"texts": 1, "groups": 0},
    }


def test_leaks_are_refused_allowed_or_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UserError, match=r"train, validation: 1 documents with the same text and 1 .*same group"
    ) as caught:
        handle_leaks(_leaking(), "refuse", "p")
    assert "--leaks drop" in caught.value.mend
    assert "--leaks allow" in caught.value.mend
    assert "hest" not in str(caught.value)
    kept, notes = handle_leaks(_leaking(), "allow", "p")
    assert (_sizes(kept), notes["leak_rule"], len(notes["leaks"])) == ([4, 2, 3], "allow", 3)
    assert "kept" in capsys.readouterr().err
    kept, notes = handle_leaks(_leaking(), "drop", "p")
    assert [[document.id for document in kept[split]] for split in SPLITS] == [["3", "8"], ["5"], ["6", "7", "9"]]
    assert notes["dropped_leaks"] == {"train": 2, "validation": 1, "test": 0}
    assert find_leaks(kept) == {}


def test_the_same_text_with_another_label_is_counted() -> None:
    documents = [
        Document(str(i), text, label=label) for i, (text, label) in enumerate([("A b", "x"), ("a B!", "y"), ("c", "x")])
    ]
    assert count_conflicts(documents) == 2
