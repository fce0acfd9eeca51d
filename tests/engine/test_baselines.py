"""Methods without a backbone: the same road as any other, and the same answers as the libraries that fit them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import posology
from posology.corpus.document import Document, Span
from posology.corpus.tags import tags_to_spans, words_of
from posology.engine import artifact, baselines, methods
from posology.engine.bag_of_words import BagFitter, ForestSettings, TfIdfSettings, texts
from posology.engine.baselines import BASELINES
from posology.engine.decode import entities, softmax, tags_of
from posology.engine.dictionary import DictionaryTagger
from posology.engine.forest import forest_arrays, forest_probabilities
from posology.errors import Interrupted, UserError
from posology.tasks.prepared import PreparedTask, write_prepared
from tests.data import corpus
from tests.engine.tiny import KINDS

FEW_TREES = {"random-forest": {"trees": 20}}


def run(task: PreparedTask, method: str, out: Path, **options: Any) -> dict[str, Any]:
    overrides = FEW_TREES.get(method, {}) | options.pop("overrides", {})
    return posology.train(task.folder, None, method, out, overrides=overrides, **options)


# --- the same road as every method ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BASELINES)
def test_it_trains_saves_loads_and_answers_the_same(
    method: str, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = classification if BASELINES[method].kind == KINDS[0] else tagging
    saved = []
    keep = artifact.save_baseline
    monkeypatch.setattr(
        artifact, "save_baseline", lambda out, model, *a, **k: (saved.append(model), keep(out, model, *a, **k))
    )
    result = run(task, method, tmp_path / "run")
    assert result["metrics"][task.metric]["value"] > 0.95  # one word decides
    assert result["metrics"][task.metric]["low"] <= result["metrics"][task.metric]["value"]
    assert set(result["per_label"]) == set(task.labels)
    assert result["seconds"] > 0 and result["training"]["examples_per_second"] > 0
    assert (result["backbone"], result["backbone_parameters"]) == ("none", 0)
    assert result["coverage"] == {"train": 1.0, "validation": 1.0, "test": 1.0}
    loaded = posology.load(tmp_path / "run")
    documents = task.documents("test")
    for before, after in zip(saved[0].answer(documents).logits, loaded.answer(documents).logits, strict=True):
        np.testing.assert_array_equal(before, after)
    assert loaded.entries == saved[0].entries == result["trainable_parameters"] > 0
    assert posology.evaluate(tmp_path / "run", task.folder)["metrics"] == result["metrics"]
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "run").iterdir()}
    assert set(sizes) == {"posology.json", "README.md", "baseline.safetensors", "vocabulary.json", "test.parquet"}
    assert result["adapter_bytes"] == sizes["baseline.safetensors"] + sizes["vocabulary.json"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "without a backbone" in card and "keep it as you keep" in card and str(tmp_path) not in card
    assert not re.search(r"\b(abc|d1)\b", card), "words of the documents"


@pytest.mark.parametrize("method", BASELINES)
def test_it_predicts_for_a_file(
    method: str, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    task = classification if BASELINES[method].kind == KINDS[0] else tagging
    run(task, method, tmp_path / "run")
    (tmp_path / "in.csv").write_text("id,text\na,no abc the fever\nb,PAIN patient\n")
    result = posology.predict(tmp_path / "run", tmp_path / "in.csv", tmp_path / "out.jsonl", id="id")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    if task.kind == KINDS[0]:
        assert [row["label"] for row in rows] == ["fever", "pain"]
        assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-9 for row in rows)
    else:
        found = [[(span["start"], span["end"], span["label"]) for span in row["spans"]] for row in rows]
        assert found == [[(11, 16, "Finding")], [(0, 4, "Finding")]]
        assert all(0.9 < span["score"] < 1 for row in rows for span in row["spans"])
    assert result["documents"] == 2 and result["coverage"] == 1.0


def test_shots_and_seed_are_those_of_every_method(classification: PreparedTask, tmp_path: Path) -> None:
    from posology.engine.run import few

    result = run(classification, "tf-idf", tmp_path / "run", shots=4, seed=3, overrides={"min_documents": 1})
    assert result["training"]["documents"] == 8
    chosen = few(classification.documents("train"), 4, 3)
    words = set(json.loads((tmp_path / "run" / "vocabulary.json").read_text()))
    assert words == set(TfidfVectorizer(ngram_range=(1, 2)).fit(texts(chosen)).get_feature_names_out())
    runs = [run(classification, "random-forest", tmp_path / str(n), seed=n // 2) for n in range(3)]
    numbers = [(tmp_path / str(n) / "baseline.safetensors").read_bytes() for n in range(3)]
    assert numbers[0] == numbers[1] != numbers[2]
    assert runs[0]["metrics"] == runs[1]["metrics"]


def test_validation_chooses_what_is_open_and_nothing_else(classification: PreparedTask, tmp_path: Path) -> None:
    result = run(classification, "tf-idf", tmp_path / "open")
    tried = result["training"]["evaluations"]
    assert len({(each["C"], each["class_weights"]) for each in tried}) == len(tried) == 8
    recipe = artifact.read_record(tmp_path / "open")["recipe"]
    best = max(tried, key=lambda each: each["score"])  # the first of equals
    assert (recipe["C"], recipe["class_weights"]) == (best["C"], best["class_weights"])
    assert result["validation"][classification.metric] == best["score"]
    given = run(classification, "tf-idf", tmp_path / "given", overrides={"C": "2", "class_weights": "balanced"})
    assert len(given["training"]["evaluations"]) == 1
    assert artifact.read_record(tmp_path / "given")["recipe"]["C"] == 2.0


def test_no_further_setting_is_tried_after_the_budget(classification: PreparedTask, tmp_path: Path) -> None:
    result = run(classification, "tf-idf", tmp_path / "run", max_seconds=1e-6)
    assert result["training"]["stopped"] == "seconds" and len(result["training"]["evaluations"]) == 1


@pytest.mark.parametrize("fits", [0, 2])
def test_interrupted_it_keeps_the_best_so_far(
    fits: int, classification: PreparedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = BagFitter.fit, []

    def fit(self: Any, settings: Any) -> Any:
        if len(calls) == fits:
            raise KeyboardInterrupt
        calls.append(settings)
        return original(self, settings)

    monkeypatch.setattr(BagFitter, "fit", fit)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(classification, "tf-idf", tmp_path / "run")
    if not fits:
        assert not isinstance(caught.value, Interrupted) and not list(tmp_path.iterdir())
        return
    assert "not scored on test" in str(caught.value)
    record = artifact.read_record(tmp_path / "run")
    assert record["test"] is None and record["training"]["stopped"] == "interrupted"
    assert posology.evaluate(tmp_path / "run", classification.folder)["documents"] == 24


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("tf-idf", {"overrides": {"learning_rate": "1e-3"}}, "tf-idf has no 'learning_rate'; it has ngrams"),
        ("tf-idf", {"overrides": {"trees": 3}}, "tf-idf has no 'trees'"),
        ("tf-idf", {"overrides": {"C": "0"}}, "C='0'"),
        ("random-forest", {"overrides": {"tree": 3}}, "Did you mean 'trees'"),
        ("tf-idf", {"overrides": {"min_documents": 1000}}, "--set min_documents=1"),
        ("dictionary", {"overrides": {"C": 1}}, "is for token-classification, and the task is sequence"),
        ("tf-idf", {"recipe": "paper"}, "the study has no baselines"),
        ("tf-idf", {"shots": 0}, "--shots"),
        ("tf-idf", {"max_seconds": 0}, "--max-seconds"),
        ("lora", {}, "lora adapts a backbone, and none is named"),
        ("tfidf", {}, "there is no method 'tfidf'; there are full.*tf-idf, random-forest, dictionary"),
    ],
)
def test_what_makes_no_sense_is_refused(
    method: str, options: dict[str, Any], says: str, classification: PreparedTask, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        run(classification, method, tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())


def test_a_dictionary_has_nothing_to_set_and_classifies_nothing(tagging: PreparedTask, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to set, and 'C' was given"):
        run(tagging, "dictionary", tmp_path / "run", overrides={"C": 1})
    with pytest.raises(UserError, match="Take dictionary"):
        run(tagging, "tf-idf", tmp_path / "run")


def test_damaged_artifacts_are_one_clear_sentence(classification: PreparedTask, tmp_path: Path) -> None:
    run(classification, "tf-idf", tmp_path / "run")

    def damaged(name: str, change: Any) -> None:
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        change(tmp_path / "copy" / name)
        with pytest.raises(UserError, match=r"copy: its numbers or its vocabulary cannot be loaded|is damaged"):
            posology.evaluate(tmp_path / "copy", classification.folder)
        shutil.rmtree(tmp_path / "copy")

    damaged("vocabulary.json", lambda path: path.write_text(json.dumps(json.loads(path.read_text())[1:])))
    damaged("vocabulary.json", lambda path: path.write_text("["))
    damaged("vocabulary.json", Path.unlink)
    damaged("baseline.safetensors", lambda path: path.write_bytes(path.read_bytes()[:50]))
    damaged("posology.json", lambda path: path.write_text(path.read_text().replace('"ngrams"', '"grams"')))


def test_methods_lists_them() -> None:
    rows = {row["method"]: row for row in methods.listing()}
    assert list(rows) == [*methods.METHODS, *BASELINES]
    assert len({tuple(row) for row in rows.values()}) == 1
    assert rows["dictionary"]["refused"] == {KINDS[0]: "another kind of task"}


# --- the same numbers as scikit-learn ---------------------------------------------------------------------------------


def notes(labels: list[str], count: int, seed: int, pairs: bool = False) -> list[Document]:
    draw = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(40)]
    found = []
    for number in range(count):
        label = labels[number % len(labels)]
        drawn = [*draw.choice(words, 12), *draw.choice(words[labels.index(label) :: len(labels)], 6)]
        second = " ".join(draw.choice(words, 3)) if pairs else None
        found.append(Document(str(number), " ".join(draw.permutation(drawn)), label=label, text_pair=second))
    return found


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c"]])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_logistic_regression_answers_as_scikit_learn(labels: list[str], pairs: bool, weights: str) -> None:
    training, test = notes(labels, 60, 0, pairs)[:-7], notes(labels, 20, 1, pairs)
    fitter = BagFitter(training, test, tuple(labels), TfIdfSettings(C=10, class_weights=weights), 0)
    model = fitter.fit(fitter.candidates[0])
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    reference = LogisticRegression(C=10, class_weight=None if weights == "none" else weights, max_iter=1000)
    joined = [f"{each.text} _pair_ {each.text_pair}" if pairs else each.text for each in training]
    reference.fit(vectoriser.fit_transform(joined), [each.label for each in training])
    assert ("_pair_" in vectoriser.vocabulary_) == pairs == model.text_pair
    joined = [f"{each.text} _pair_ {each.text_pair}" if pairs else each.text for each in test]
    ours = softmax(np.stack(model.answer(test).logits))
    np.testing.assert_allclose(ours, reference.predict_proba(vectoriser.transform(joined)), atol=1e-6)
    assert fitter.validate(model) == model.score(test, model.answer(test).logits)


@pytest.mark.parametrize("met", [["a", "c"], ["a", "c", "d"]])
@pytest.mark.parametrize("settings", [TfIdfSettings(C=1), ForestSettings(trees=5, min_leaf=1)])
def test_a_class_that_training_lacks_is_never_predicted(met: list[str], settings: Any) -> None:
    training = notes(met, 40, 0)
    fitter = BagFitter(training, training, ("a", "b", "c", "d"), settings, 0)
    model = fitter.fit(fitter.candidates[0])
    probabilities = softmax(np.stack(model.answer(training).logits))
    assert probabilities[:, 1].max() == 0 and np.isfinite(probabilities).all()
    assert {model.labels[index] for index in probabilities.argmax(axis=1)} == set(met)
    with pytest.raises(UserError, match="all of one class"):
        BagFitter(notes(["a"], 9, 0), training, ("a", "b"), settings, 0)


@pytest.mark.parametrize("weights", [None, "balanced"])
@pytest.mark.parametrize(("labels", "leaf"), [(2, 1), (5, 3)])
def test_a_forest_of_arrays_answers_as_scikit_learn(weights: str | None, labels: int, leaf: int) -> None:
    draw = np.random.default_rng(0)
    features = sparse.random(700, 50, 0.2, "csr", rng=draw)
    classes = np.where(features[:, :5].toarray().sum(axis=1) > 0.5, labels - 1, draw.integers(0, labels, 700))
    forest = RandomForestClassifier(30, min_samples_leaf=leaf, class_weight=weights, random_state=0)
    forest.fit(features[:400], classes[:400])
    arrays = forest_arrays(forest, labels)
    np.testing.assert_allclose(forest_probabilities(arrays, features), forest.predict_proba(features), atol=1e-6)
    assert len(arrays["feature"]) == sum(tree.tree_.node_count for tree in forest.estimators_)


def test_the_code_on_the_card_gives_the_same_answers(classification: PreparedTask, tmp_path: Path) -> None:
    run(classification, "tf-idf", tmp_path / "run")
    card = (tmp_path / "run" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path / "run"))
    documents = classification.documents("test")
    names: dict[str, Any] = {"texts": [document.text for document in documents]}
    exec(code, names)
    ours = posology.load(tmp_path / "run").answer(documents).logits
    np.testing.assert_allclose(softmax(names["scores"]), softmax(np.stack(ours)), atol=1e-9)


# --- the dictionary ---------------------------------------------------------------------------------------------------


def tagged(text: str, *mentions: tuple[str, str]) -> Document:
    """A text with mentions `(words, label)`, found one after the other."""
    document, position = Document(text, text, words=words_of(text)), 0
    for mention, label in mentions:
        start = text.index(mention, position)
        position = start + len(mention)
        document.spans.append(Span(start, position, label))
    return document


def found(model: DictionaryTagger, text: str) -> list[tuple[str, str]]:
    document = tagged(text)
    ((spans, _),) = model.spans([document], model.answer([document]).logits)
    return [(text[span.start : span.end], span.label) for span in spans]


def test_the_dictionary_by_hand() -> None:
    model = DictionaryTagger.fit(
        [
            tagged("chronic heart failure and renal failure", ("chronic heart failure", "P"), ("renal failure", "P")),
            tagged("Heart failure treated , cold", ("Heart failure", "P"), ("treated", "T")),
            tagged("cold hands , cold ; a cold", ("cold", "P")),
            tagged("failure to thrive , heart biopsy", ("heart biopsy", "T")),
            tagged("acute failure", ("acute failure", "P")),
        ],
        ("P", "T"),
    )
    # "heart failure" occurs twice, once as an entity of its own: not more often than not. "cold": once in four.
    assert set(model._mentions) == {
        ("chronic", "heart", "failure"), ("renal", "failure"), ("treated",), ("heart", "biopsy"), ("acute", "failure"),
    }  # fmt: skip
    # "heart" was I-P, B-P and B-T: the first of equals; "failure" I-P four times and O once.
    assert {word: tags_of(("P", "T"))[tag] for word, (tag, _) in model._words.items()} == {
        "chronic": "B-P", "heart": "B-P", "failure": "I-P", "renal": "B-P", "treated": "B-T", "biopsy": "I-T",
        "acute": "B-P",
    }  # fmt: skip
    assert found(model, "CHRONIC Heart Failure") == [("CHRONIC Heart Failure", "P")]
    assert found(model, "a heart failure today") == [("heart failure", "P")]  # word by word
    assert found(model, "failure today") == [("failure", "P")]  # an I- that continues nothing begins one
    assert found(model, "heart biopsy failure") == [("heart biopsy", "T"), ("failure", "P")]
    assert found(model, "renal failure failure") == [("renal failure failure", "P")]
    assert found(model, "cold hands , biopsies") == []
    assert model._mentions[("chronic", "heart", "failure")][1] == 2 / 3  # one of one, plus one of two
    assert model._words["failure"][1] == (4 + 1) / (5 + 2)


WORDS = st.lists(st.sampled_from(["a", "B", "b", "c", "d"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(WORDS, st.data()), min_size=1, max_size=5), WORDS)
@settings(max_examples=150, deadline=None)
def test_its_mentions_are_those_a_plain_search_finds_and_its_answers_are_its_tags(
    drawn: list[tuple[list[str], st.DataObject]], new: list[str]
) -> None:
    training = []
    for number, (words, data) in enumerate(drawn):
        tags = data.draw(st.lists(st.sampled_from(tags_of(("P", "T"))), min_size=len(words), max_size=len(words)))
        text = " ".join(words)
        document = Document(str(number), text, words=words_of(text))
        document.spans = tags_to_spans(document.words, tags)
        training.append(document)
    model = DictionaryTagger.fit(training, ("P", "T"))
    folded = [document.text.casefold() for document in training]
    for key in {each.text[span.start : span.end].casefold() for each in training for span in each.spans}:
        places = [
            (n, at)
            for n, text in enumerate(folded)
            for at in range(len(text))
            if text.startswith(key, at) and at % 2 == 0
        ]
        types = [
            [span.label for span in training[n].spans if (span.start, span.end) == (at, at + len(key))]
            for n, at in places
        ]
        counts = {label: types.count([label]) for label in ("P", "T")}
        kept = [label for label, count in counts.items() if 2 * count > len(places)]
        entry = model._mentions.get(tuple(key.split()))
        assert ([("P", "T")[entry[0]]] if entry else []) == kept
    text = " ".join(new)
    document = Document("new", text, words=words_of(text))
    tags, shares = model.tag([word.casefold() for word in new])
    (logits,) = model.answer([document]).logits
    np.testing.assert_array_equal(logits.argmax(axis=1), tags)
    np.testing.assert_allclose(softmax(logits)[np.arange(len(new)), tags], shares)
    names = [tags_of(("P", "T"))[tag] for tag in tags]
    assert entities(document.words, logits, ("P", "T"))[0] == tags_to_spans(document.words, names)
    assert all(tag[0] != "I" or before[1:] == tag[1:] for before, tag in zip(["O", *names], names, strict=False))


# --- real corpora -----------------------------------------------------------------------------------------------------


def test_clinical_notes_by_specialty(tmp_path: Path) -> None:
    """The corpus's README has accuracy .911 and macro-F1 .876 for C=10."""
    source = corpus("mtsamples") / "specialty11"
    posology.prepare("classification", source, tmp_path / "task", text="text", label="label", id="note_id")
    result = posology.train(tmp_path / "task", None, "tf-idf", tmp_path / "run", overrides={"C": 10})
    assert result["metrics"]["accuracy"]["value"] > 0.89 and result["metrics"]["macro_f1"]["value"] > 0.86


def test_diseases(tmp_path: Path) -> None:
    posology.prepare("entities", corpus("ncbi-disease"), tmp_path / "task", leaks="allow")
    result = posology.train(tmp_path / "task", None, "dictionary", tmp_path / "run")
    assert 0.5 < result["metrics"]["entity_f1"]["value"] < 0.75


def test_a_split_of_pairs_is_read_whole(tmp_path: Path) -> None:
    splits = {
        split: notes(["a", "b"], 12, seed, pairs=True) for seed, split in enumerate(("train", "validation", "test"))
    }
    for split, documents in splits.items():
        for document in documents:
            document.id = document.group = f"{split}{document.id}"
    task = write_prepared(tmp_path / "task", name="pairs", kind=KINDS[0], labels=["a", "b"], splits=splits)
    run(task, "tf-idf", tmp_path / "run")
    assert posology.load(tmp_path / "run").text_pair
    assert "`_pair_`" in (tmp_path / "run" / "README.md").read_text()
    (tmp_path / "in.csv").write_text("text\nw1\n")
    with pytest.raises(UserError, match="was trained on pairs"):
        posology.predict(tmp_path / "run", tmp_path / "in.csv", tmp_path / "out.csv")


def test_the_registry_names_what_its_fitters_take() -> None:
    for name, entry in BASELINES.items():
        assert baselines.make_settings(name, entry.kind) == entry.settings()
