from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from posology.corpus.document import Document, Span
from posology.errors import UserError
from posology.evaluation.metrics import entity_counts, entity_metrics
from posology.tasks.leaks import find_leaks
from posology.tasks.prepared import SPLITS, PreparedTask
from posology.tasks.synthetic import ENTITY_TYPES, Lexicon, write_demo_tasks

SMALL = {"train": 60, "validation": 20, "test": 40}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreparedTask]:
    paths = write_demo_tasks(tmp_path_factory.mktemp("demo"))
    return {name: PreparedTask.open(path) for name, path in paths.items()}


@pytest.fixture(scope="module")
def documents(tasks: dict[str, PreparedTask]) -> dict[str, dict[str, list[Document]]]:
    return {name: {split: task.documents(split) for split in SPLITS} for name, task in tasks.items()}


def test_tasks_are_what_was_asked_for(tasks: dict[str, PreparedTask]) -> None:
    assert (tasks["triage"].kind, tasks["findings"].kind) == ("sequence-classification", "token-classification")
    assert (tasks["triage"].metric, tasks["findings"].metric) == ("macro_f1", "entity_f1")
    assert tasks["findings"].labels == ENTITY_TYPES
    assert all(task.counts == {"train": 600, "validation": 150, "test": 400} for task in tasks.values())


def test_a_seed_gives_the_same_texts_in_every_process(tmp_path: Path) -> None:
    def fingerprints(name: str, seed: int, hash_seed: str) -> list[str]:
        code = (
            "import json, sys; from pathlib import Path\n"
            "from posology.tasks.synthetic import write_demo_tasks; from posology.tasks.prepared import PreparedTask\n"
            f"paths = write_demo_tasks(Path(sys.argv[1]), seed={seed}, **{SMALL})\n"
            "print(json.dumps([repr(PreparedTask.open(path).documents('test')) for path in paths.values()]))"
        )
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True,
                             check=True, env={"PYTHONHASHSEED": hash_seed, "PATH": ""})  # fmt: skip
        return [re.sub(r"place='[^']*'", "", text) for text in json.loads(run.stdout)]

    first = fingerprints("first", 7, "1")
    assert first == fingerprints("second", 7, "2")
    assert all(one != other for one, other in zip(first, fingerprints("third", 8, "1"), strict=True))


def test_a_second_task_in_one_process_is_not_influenced_by_the_first(tmp_path: Path) -> None:
    paths = [write_demo_tasks(tmp_path / name, **SMALL) for name in ("one", "two")]
    for name in ("triage", "findings"):
        assert len({PreparedTask.open(path[name]).fingerprint for path in paths}) == 1


@pytest.mark.parametrize("name", ["triage", "findings"])
def test_no_patient_and_no_text_is_in_two_splits(documents: dict[str, dict[str, list[Document]]], name: str) -> None:
    splits = documents[name]
    assert find_leaks(splits) == {}
    texts = [document.text for split in SPLITS for document in splits[split]]
    assert len(set(texts)) == len(texts)
    groups = Counter(document.group for document in splits["train"])
    assert max(groups.values()) > 1


def test_mentions_are_whole_words_and_phrases_are_filled_in(documents: dict[str, dict[str, list[Document]]]) -> None:
    labels: Counter[str] = Counter()
    for split in SPLITS:
        for document in documents["findings"][split]:
            starts, ends = {start for start, _ in document.words}, {end for _, end in document.words}
            for span in document.spans:
                assert span.start in starts
                assert span.end in ends
                assert document.text[span.start : span.end].strip() == document.text[span.start : span.end]
            labels.update(span.label for span in document.spans)
        for name in documents:
            assert not any(re.search(r"[{}\[\]|]|  | [.,;]", document.text) for document in documents[name][split])
    assert set(labels) == set(ENTITY_TYPES)
    assert min(labels.values()) / sum(labels.values()) > 0.15


def test_classes_are_imbalanced_and_every_split_has_all(tasks, documents) -> None:
    for split in SPLITS:
        counts = Counter(document.label for document in documents["triage"][split])
        assert set(counts) == set(tasks["triage"].labels)
    counts = Counter(document.label for document in documents["triage"]["train"])
    assert (max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)) == ("cardiology", "nephrology")
    assert 2 < max(counts.values()) / min(counts.values()) < 6


def test_lengths_suit_quick_training(documents: dict[str, dict[str, list[Document]]]) -> None:
    lengths = {name: [len(document.text.split()) for document in splits["train"]] for name, splits in documents.items()}
    assert 50 <= statistics.mean(lengths["triage"]) <= 90
    assert 12 <= statistics.mean(lengths["findings"]) <= 25
    assert max(lengths["triage"]) <= 130
    assert max(lengths["findings"]) <= 45


def test_a_bag_of_words_is_well_below_perfect_on_triage(documents: dict[str, dict[str, list[Document]]]) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline

    train, test = documents["triage"]["train"], documents["triage"]["test"]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=100, class_weight="balanced", max_iter=2000),
    )
    model.fit([document.text for document in train], [document.label for document in train])
    predicted = model.predict([document.text for document in test])
    assert 0.70 <= f1_score([document.label for document in test], predicted, average="macro") <= 0.85


def test_a_dictionary_is_well_below_perfect_on_findings(documents: dict[str, dict[str, list[Document]]]) -> None:
    train, test = documents["findings"]["train"], documents["findings"]["test"]
    tag = dictionary_tagger(train)
    counts = np.array([entity_counts(document.spans, tag(document), ENTITY_TYPES) for document in test])
    assert 0.55 <= entity_metrics(counts)["entity_f1"] <= 0.8
    # On what it was made from it is nearly perfect in recall: what it lacks is context and unseen names.
    counts = np.array([entity_counts(document.spans, tag(document), ENTITY_TYPES) for document in train])
    assert entity_metrics(counts)["entity_recall"] > 0.85


def dictionary_tagger(train: list[Document]):
    """Marks every longest mention seen in training with its most frequent type."""
    senses: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for document in train:
        for span in document.spans:
            words = tuple(
                document.text[start:end].lower() for start, end in document.words if span.start <= start < span.end
            )
            senses[words][span.label] += 1
    longest = max(map(len, senses))

    def tag(document: Document) -> list[Span]:
        words, spans, place = [document.text[start:end].lower() for start, end in document.words], [], 0
        while place < len(words):
            sizes = range(min(longest, len(words) - place), 0, -1)
            size = next((size for size in sizes if tuple(words[place : place + size]) in senses), 0)
            if size:
                label = senses[tuple(words[place : place + size])].most_common(1)[0][0]
                spans.append(Span(document.words[place][0], document.words[place + size - 1][1], label))
            place += size or 1
        return spans

    return tag


def test_some_wordings_are_only_in_the_test_split(documents: dict[str, dict[str, list[Document]]]) -> None:
    held_out = {words.lower() for words in Lexicon.load().held_out(7)}
    mentions = {
        split: [
            document.text[span.start : span.end].lower()
            for document in documents["findings"][split]
            for span in document.spans
        ]
        for split in SPLITS
    }
    assert held_out
    assert not held_out & {*mentions["train"], *mentions["validation"]}
    assert sum(words in held_out for words in mentions["test"]) / len(mentions["test"]) > 0.05


def test_the_same_words_are_mentions_of_two_types_and_none(documents: dict[str, dict[str, list[Document]]]) -> None:
    train = documents["findings"]["train"]
    types = defaultdict(set)
    for document in train:
        for span in document.spans:
            types[document.text[span.start : span.end].lower()].add(span.label)
    assert {word for word, labels in types.items() if len(labels) > 1} >= {"oxygen", "pt"}
    inside = 0
    for document in train:
        if match := re.search(r"(\w+) (?:clinic|nurse|ward|unit|leaflet)\b", document.text):
            inside += not any(span.start <= match.start() < span.end for span in document.spans)
    assert inside > 20


def test_conditions_refer_to_what_the_lexicon_has() -> None:
    lexicon = Lexicon.load()
    for condition in lexicon.conditions:
        assert condition.department in lexicon.departments
        assert set(condition.symptoms) <= set(lexicon.symptoms)
        assert all((condition.names, condition.findings, condition.tests, condition.drugs))
    assert set(lexicon.normal) == set(lexicon.departments)
    assert sum(lexicon.departments.values()) == pytest.approx(1)


def test_an_existing_task_is_kept_unless_told_and_empty_splits_are_refused(tmp_path: Path) -> None:
    write_demo_tasks(tmp_path, **SMALL)
    with pytest.raises(UserError, match="--overwrite"):
        write_demo_tasks(tmp_path, **SMALL)
    write_demo_tasks(tmp_path, **SMALL, overwrite=True)
    with pytest.raises(UserError, match="at least one"):
        write_demo_tasks(tmp_path / "other", train=0)
    assert not (tmp_path / "other").exists()
