"""De-identification: only what was found changes, and the same command on files, stopped or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import posology
from posology.corpus.document import Document, Span
from posology.corpus.tags import words_of
from posology.engine import inputs
from posology.engine.decode import tags_of
from posology.engine.model import Answers, Model
from posology.engine.shared import Readers
from posology.errors import Interrupted, UserError
from posology.ship import recall
from posology.ship.redact import Found, Redacted, Redactor
from posology.ship.redaction import redact
from posology.ship.surrogates import Surrogates
from posology.tasks.prepared import PreparedTask, write_prepared

LABELS = ("PATIENT", "DATE", "GENE")
NOTES = [
    "Harlan Quillmore was seen on 03/04/2015 for pain.",
    "QUILLMORE, HARLAN: no fever since March 4 2015 (BRCA1).",
    "Nothing to be said here.",
]


class Lexical(Model):
    """Tags words of a list; how sure it is can be set for each."""

    def __init__(self, known: dict[str, tuple[str, float]]):
        self.labels, self.text_pair, self.units = LABELS, False, ("word",)
        self._known = known

    @property
    def kind(self) -> str:
        return "token-classification"

    def answer(self, documents: Any, description: str = "", *, unit: str = "word") -> Answers:
        return Answers(documents, [self._logits(document) for document in documents], 1.0)

    def _logits(self, document: Document) -> np.ndarray:
        tags = tags_of(self.labels)
        logits = np.zeros((len(document.words), len(tags)), np.float32)
        logits[:, 0] = 3
        before = ""
        for row, (start, end) in enumerate(document.words):
            label, lead = self._known.get(document.text[start:end].casefold(), ("", 0.0))
            if label:
                logits[row, tags.index(f"{'I' if before == label else 'B'}-{label}")] = 3 + lead
            before = label
        return logits


KNOWN = {
    "harlan": ("PATIENT", 2.0),
    "quillmore": ("PATIENT", -1.0),
    "brca": ("GENE", 1.0),
    **{word: ("DATE", 1.0) for word in ("03", "/", "04", "2015", "march", "4")},
}


def documents() -> list[Document]:
    return [Document(str(row), text, group="p") for row, text in enumerate(NOTES)]


def test_styles() -> None:
    model = Lexical(KNOWN)
    tags, asterisks = (Redactor(model, style=style).redact(documents())[0] for style in ("tags", "asterisks"))  # type: ignore[arg-type]
    assert tags.text == "[PATIENT] Quillmore was seen on [DATE] for pain."
    assert asterisks.text == "****** Quillmore was seen on ********** for pain."
    assert tags.counts == {"PATIENT": 1, "DATE": 1} and tags.as_tags == {}
    assert [span[:3] for span in tags.spans] == [(0, 6, "PATIENT"), (29, 39, "DATE")]
    assert tags.offsets == [(0, 6, 0, 9), (29, 39, 32, 38)]


def test_an_offset_finds_more_and_scores_stay_what_they_were() -> None:
    few, many = (Redactor(Lexical(KNOWN), recall_offset=offset).redact(documents()) for offset in (0.0, 1.5))
    assert [(span.start, span.end) for span in many[0].spans if span.label == "PATIENT"] == [(0, 16)]
    assert few[0].spans[1].score == pytest.approx(many[0].spans[1].score)
    assert few[0].spans[0].score > many[0].spans[0].score > 0.4


def test_surrogates_agree_within_a_patient() -> None:
    redactor = Redactor(Lexical(KNOWN), style="surrogates", recall_offset=1.5, key=b"k" * 16)
    one, two, none = redactor.redact(documents())
    first, last = one.text.split()[:2]
    assert two.text.startswith(f"{last}, {first}".upper())
    assert one.text.endswith(" for pain.") and "2015" not in one.text
    assert two.as_tags == {"GENE": 1} and "[GENE]1" in two.text
    assert none.text == NOTES[2] and none.spans == []
    again = Redactor(Lexical(KNOWN), style="surrogates", recall_offset=1.5, key=b"k" * 16).redact(documents())
    other = Redactor(Lexical(KNOWN), style="surrogates", recall_offset=1.5).redact(documents())
    assert [each.text for each in again] == [one.text, two.text, none.text] != [each.text for each in other]


@settings(deadline=None, max_examples=200)
@given(
    st.text(min_size=1, max_size=60),
    st.lists(st.integers(0, 60), max_size=8),
    st.sampled_from(["tags", "asterisks", "surrogates"]),
    st.lists(st.sampled_from(["PATIENT", "DATE", "GENE", "AGE", "PHONE", "CITY"]), min_size=4, max_size=4),
)
def test_every_other_character_is_unchanged(text: str, cuts: list[int], style: Any, labels: list[str]) -> None:
    borders = sorted({min(cut, len(text)) for cut in cuts})
    spans = [
        Found(start, end, label, 0.5)
        for (start, end), label in zip(zip(borders[::2], borders[1::2], strict=False), labels, strict=False)
    ]
    found = Redactor(Lexical({}), style=style, key=b"k" * 16).replace(Document("1", text), spans)
    read = written = 0
    for span, (start, end, new_start, new_end) in zip(spans, found.offsets, strict=True):
        assert (start, end) == span[:2]
        assert found.text[written:new_start] == text[read:start]
        if style == "asterisks":
            assert new_end - new_start == end - start
        elif style == "tags":
            assert found.text[new_start:new_end] == f"[{span.label}]"
        read, written = end, new_end
    assert found.text[written:] == text[read:]
    assert sum(found.counts.values()) == len(spans)


@pytest.mark.parametrize("spans", [[(0, 3), (2, 5)], [(3, 3)]])
def test_spans_must_be_in_order(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="overlap"):
        Redactor(Lexical({})).replace(documents()[0], [Found(*span, "DATE", 1.0) for span in spans])


def test_what_is_not_read_is_not_given_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Lexical, "answer", lambda self, documents, description: Answers(documents, [np.zeros((1, 7))] * 3, 0.9)
    )
    with pytest.raises(UserError, match=r"90\.0% of the text was read"):
        Redactor(Lexical({})).redact(documents())


def labelled(count: int = 40) -> list[Document]:
    """Documents with one name each, of which the model is less and less sure."""
    found = []
    for row in range(count):
        text = f"Patient name{'x' * (row % 7)} {chr(97 + row % 26)}{chr(97 + row // 26)}q had pain"
        (start, end) = words_of(text)[2]
        found.append(Document(str(row), text, words=words_of(text), spans=[Span(start, end, "PATIENT")]))
    return found


def test_the_least_offset_that_reaches_a_recall_is_found() -> None:
    gold = labelled()
    names = [document.text[slice(*document.words[2])] for document in gold]
    model = Lexical({name: ("PATIENT", 1.0 - row / 10) for row, name in enumerate(names)} | {"pain": ("DATE", -2.0)})
    known = recall.Labelled.of(model, gold, model.answer(gold).logits)
    assert recall.price(known, 0.0)["word"]["recall"]["value"] == pytest.approx(10 / 40)
    for target in (0.5, 0.98, 1.0):
        offset = recall.fit(known, target)
        price = recall.price(known, offset)
        assert price["word"]["recall"]["value"] >= target
        assert recall.price(known, offset - 0.02)["word"]["recall"]["value"] < target
    assert price["word"]["precision"]["value"] == pytest.approx(0.5)  # every "pain" too
    assert price["word"]["precision"]["low"] <= 0.5 <= price["word"]["precision"]["high"]
    assert price["by_category"]["NAME"]["gold"] == 40 and price["by_category"]["DATE"]["recall"] is None
    assert price["by_category"]["DATE"]["precision"]["value"] == 0.0
    assert recall.fit(known, 0.2) == 0.0  # nothing is made stricter
    with pytest.raises(UserError, match="no share"):
        recall.fit(known, 1.5)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> PreparedTask:
    """Where "fever" is a patient's name and dates are numbers."""
    splits = {}
    for split, count in (("train", 30), ("validation", 10), ("test", 5)):
        found = []
        for row in range(count):
            text = f"{row} the name is Roe on 3/{row % 28 + 1} and no more"
            start = text.index("Roe")
            date = text.index("3/")
            end = text.index(" and")
            spans = [Span(start, start + 3, "PATIENT"), Span(date, end, "DATE")]
            found.append(Document(f"{split}{row}", text, words=words_of(text), spans=spans))
        splits[split] = found
    folder = tmp_path_factory.mktemp("names") / "task"
    return write_prepared(
        folder, name="names", kind="token-classification", labels=["PATIENT", "DATE"], metric="entity_f1", splits=splits
    )


@pytest.fixture(scope="module")
def artifact(names: PreparedTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "names"
    posology.train(names.folder, "", "dictionary", folder)
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"n": row, "patient": f"p{row % 3}", "text": f"{row}: Roe came on 3/5"}) for row in range(40)]
    lines[7], lines[30] = '{"n": 7, "text": 8, "patient": "p1"}', "{"
    path.write_text("\n".join(lines))
    return path


def test_files_are_redacted_with_an_audit_and_without_text_in_it(artifact: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = redact(artifact, table, out=out, id="n", group="patient", style="surrogates", offsets=True)
    assert (result["documents"], result["rejected"]) == (38, 2)
    found = rows(out)
    assert [row["id"] for row in found] == [str(row) for row in range(40) if row not in (7, 30)]
    assert not any("Roe" in row["text"] for row in found) and all(" came on " in row["text"] for row in found)
    by_patient = {row["text"].split()[1] for row in found if int(row["id"]) % 3 == 0}
    assert len(by_patient) == 1
    audit = json.loads((tmp_path / "out.jsonl.audit.json").read_text())
    assert audit["identifiers"]["PATIENT"] == 38 and audit["settings"]["key"] == "random"
    assert "Roe" not in json.dumps(audit) and "came" not in json.dumps(audit)
    assert [(row["row"], row["id"]) for row in rows(tmp_path / "out.jsonl.rejected.jsonl")] == [(8, "7"), (31, None)]
    for row, moved in zip(found, rows(tmp_path / "out.jsonl.offsets.jsonl"), strict=True):
        first = moved["spans"][0]
        assert moved["id"] == row["id"] and row["text"][: first["new_start"]] == f"{row['id']}: "[: first["start"]]
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o600 for name in ("out.jsonl", "out.jsonl.audit.json"))
    assert not list(tmp_path.glob(".*"))


def test_a_folder_gives_a_folder_and_a_key_gives_the_same_surrogates(artifact: Path, tmp_path: Path) -> None:
    notes, key = tmp_path / "notes", tmp_path / "key"
    notes.mkdir()
    key.write_text("ab" * 20)
    for row in range(3):
        (notes / f"n{row}.txt").write_bytes(b"Roe\r\ncame on 3/5\n")
    for out in ("one", "two"):
        redact(artifact, notes, out=tmp_path / out, style="surrogates", key_file=key)
    texts = [[(tmp_path / out / f"n{row}.txt").read_bytes() for row in range(3)] for out in ("one", "two")]
    assert texts[0] == texts[1] and all(b"\r\ncame on " in text and b"Roe" not in text for text in texts[0])
    with pytest.raises(UserError, match="exists"):
        redact(artifact, notes, out=tmp_path / "one")
    redact(artifact, notes, out=tmp_path / "one", overwrite=True)
    assert b"[PATIENT]" in (tmp_path / "one" / "n0.txt").read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="no audit beside it"):
        redact(artifact, notes, out=tmp_path / "mine", overwrite=True)


def test_a_stopped_job_goes_on_with_its_key(
    artifact: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_BLOCK_DOCUMENTS", 9)
    answer, calls = Readers.answer, []

    def failing(self: Readers, documents: Any, advance: Any) -> Any:
        calls.append(len(documents))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, documents, advance)

    monkeypatch.setattr(Readers, "answer", failing)
    options: dict[str, Any] = {"out": tmp_path / "out.jsonl", "id": "n", "style": "surrogates"}
    with pytest.raises(Interrupted, match="17 documents are done"):
        redact(artifact, table, group="patient", **options)
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(UserError, match="made of the options that is no longer the same"):
        redact(artifact, table, **options)
    result = redact(artifact, table, group="patient", **options)
    assert result["documents"] == 38 and len(rows(tmp_path / "out.jsonl")) == 38
    names = {row["text"].split()[1] for row in rows(tmp_path / "out.jsonl") if int(row["id"]) % 3 == 0}
    assert len(names) == 1


def test_recall_is_reached_on_validation_and_its_price_written_down(
    artifact: Path, names: PreparedTask, table: Path, tmp_path: Path
) -> None:
    result = redact(artifact, table, out=tmp_path / "out.jsonl", recall=0.98, data=names.folder)
    assert result["recall"]["value"] >= 0.98 and 0 < result["precision"]["value"] <= 1
    audit = json.loads((tmp_path / "out.jsonl.audit.json").read_text())
    assert audit["validation"]["table"][0]["target"] is None
    assert audit["settings"]["recall_offset"] >= 0
    with pytest.raises(UserError, match="go together"):
        redact(artifact, table, out=tmp_path / "two.jsonl", recall=0.98)


def test_what_cannot_be_is_refused_before_any_work(artifact: Path, table: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.key"
    short.write_text("secret")
    with pytest.raises(UserError, match="has 6 bytes"):
        redact(artifact, table, out=tmp_path / "out.jsonl", key_file=short)
    with pytest.raises(UserError, match="no name of a table"):
        redact(artifact, table, out=tmp_path / "out")
    with pytest.raises(UserError, match="there is no style"):
        Redactor(Lexical({}), style="invisible")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="less than the model"):
        Redactor(Lexical({}), recall_offset=-1)
    assert isinstance(Redactor(Lexical({})).redact(documents())[0], Redacted)
    assert Surrogates(b"k").replace("DATE", "3/5", "p")
