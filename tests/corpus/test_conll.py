from __future__ import annotations

import gzip
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posology.corpus import conll
from posology.corpus.document import Document, Span
from posology.errors import UserError

# Tokens may hold anything but what ends a token: combining marks, U+2028, no-break spaces, quotes ...
ANY_TOKEN = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), min_size=1, max_size=6).filter(
    lambda token: token.strip(" \t") and not token.startswith(("-DOCSTART-", "###", "\ufeff"))
)
SPACELESS = ANY_TOKEN.filter(lambda token: " " not in token)


def _read(path: Path, **options: object) -> list[Document]:
    scheme = options.pop("scheme", None)
    mend = options.pop("mend", False)
    counts = options.pop("counts", None)
    return list(
        conll.documents(
            list(conll.read_sentences(path, name=path.stem, **options)), scheme=scheme, mend=mend, counts=counts
        )  # type: ignore[arg-type]
    )


def _sentences(tokens: st.SearchStrategy[str]) -> st.SearchStrategy[list[list[tuple[str, str]]]]:
    tagged = st.lists(st.tuples(tokens, st.sampled_from(["O", "B-X", "B-Y", "I"])), min_size=1, max_size=7)
    return st.lists(tagged, min_size=1, max_size=5)


def _valid(sentence: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """With I standing for "continue what came before"."""
    made: list[tuple[str, str]] = []
    for token, tag in sentence:
        last = made[-1][1] if made else "O"
        made.append((token, tag if tag != "I" else "O" if last == "O" else "I" + last[1:]))
    return made


Sentences = list[list[tuple[str, str]]]


def _written_and_read(sentences: Sentences, separator: str, end: str) -> Sentences:
    """Tokens and tags of sentences after a file and our spans."""
    blocks = [end.join(f"{token}{separator}{tag}" for token, tag in sentence) for sentence in sentences]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "notes.tsv"
        path.write_bytes((end * 2).join(blocks).encode() + end.encode())
        documents = _read(path)
    found = []
    for document in documents:
        starts = {start: index for index, (start, _) in enumerate(document.words)}
        ends = {end: index for index, (_, end) in enumerate(document.words)}
        tags = ["O"] * len(document.words)
        for span in document.spans:
            first, last = starts[span.start], ends[span.end]
            tags[first : last + 1] = [f"B-{span.label}"] + [f"I-{span.label}"] * (last - first)
        found.append([(document.text[start:end], tag) for (start, end), tag in zip(document.words, tags, strict=True)])
    return found


@given(_sentences(ANY_TOKEN), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=150, deadline=None)
def test_round_trip_with_tabs(sentences: list[list[tuple[str, str]]], end: str) -> None:
    sentences = [_valid(sentence) for sentence in sentences]
    assert _written_and_read(sentences, "\t", end) == sentences


@given(_sentences(SPACELESS), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=100, deadline=None)
def test_round_trip_with_spaces(sentences: list[list[tuple[str, str]]], end: str) -> None:
    sentences = [_valid(sentence) for sentence in sentences]
    assert _written_and_read(sentences, " ", end) == sentences


def test_conll_2003_layout(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(
        "-DOCSTART- -X- -X- O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\nGerman JJ I-NP I-MISC\n\n"
        "Peter NNP I-NP I-PER\nBlackburn NNP I-NP I-PER\nAnn NNP I-NP B-PER\n\n-DOCSTART- -X- -X- O\n\nOK UH O O\n"
    )
    first, second, third = _read(path)
    assert first.text == "EU rejects German"
    assert first.spans == [Span(0, 2, "ORG"), Span(11, 17, "MISC")]
    assert second.spans == [Span(0, 15, "PER"), Span(16, 19, "PER")]
    assert first.group == second.group != third.group
    assert (first.place, second.place) == (f"{path}:3", f"{path}:7")
    assert [document.id for document in (first, second, third)] == ["train-1", "train-2", "train-3"]


def test_other_columns_gzip_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "train.conll.gz"
    path.write_bytes(gzip.compress("\ufeffU-X\t1\tchest pain\nO\t2\t.\n".encode()))
    (document,) = _read(path, token_column=2, tag_column=0)
    assert document.text == "chest pain ."
    assert document.words == [(0, 10), (11, 12)]
    assert document.spans == [Span(0, 10, "X")]


def test_repair_reads_a_dangling_inside_as_a_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("a\tB-X\nb\tO\nc\tI-X\nd\tI-X\n")
    with pytest.raises(UserError, match=rf"^{path}:3: .*--repair"):
        _read(path)
    with pytest.raises(UserError, match=rf"^{path}:3: "):
        _read(path, scheme="iob2")
    counts: Counter[str] = Counter()
    (document,) = _read(path, mend=True, counts=counts)
    assert document.spans == [Span(0, 1, "X"), Span(4, 7, "X")]
    assert counts == {"repaired_tags": 1}
    (document,) = _read(path, scheme="iob1")
    assert document.spans == [Span(0, 1, "X"), Span(4, 7, "X")]
