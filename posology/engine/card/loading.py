"""How an artifact is loaded without Posology, or in Python: the code on its card."""

from __future__ import annotations

from typing import Any

_AUTO = {"sequence-classification": "SequenceClassification", "token-classification": "TokenClassification"}
_LOADING = {
    "model": """\
from transformers import AutoModelFor{kind}, AutoTokenizer

model = AutoModelFor{kind}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")""",
    "peft": """\
from peft import PeftModel
from transformers import AutoModelFor{kind}, AutoTokenizer

base = AutoModelFor{kind}.from_pretrained("BACKBONE", num_labels={outputs}{layers})
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("BACKBONE")""",
    "weights": """\
from safetensors.torch import load_file
from transformers import AutoModelFor{kind}, AutoTokenizer

model = AutoModelFor{kind}.from_pretrained("BACKBONE", num_labels={outputs}{layers})
model.load_state_dict(load_file("FOLDER/tuned.safetensors"), strict=False)
tokenizer = AutoTokenizer.from_pretrained("BACKBONE")""",
}
_BASELINE_USE = {
    "tf-idf": """\
import json
from safetensors.numpy import load_file
from sklearn.feature_extraction.text import TfidfVectorizer

numbers = load_file("FOLDER/baseline.safetensors")
columns = {{feature: column for column, feature in enumerate(json.load(open("FOLDER/vocabulary.json")))}}
vectorizer = TfidfVectorizer(vocabulary=columns, ngram_range=(1, {ngrams}), sublinear_tf=True)
vectorizer.idf_ = numbers["idf"]
scores = vectorizer.transform(texts) @ numbers["coefficients"].T + numbers["intercepts"]  # their softmax is the answer""",
    "random-forest": """\
import posology

forest = posology.load("FOLDER")  # the arrays in baseline.safetensors are those of `forest_arrays` in posology.engine.forest""",
    "dictionary": """\
import posology

tagger = posology.load("FOLDER")
tags, shares = tagger.tag([word.casefold() for word in words])  # the order of tags: O, then B- and I- of each label""",
}
_BASELINE_RULE = {
    "tf-idf": "logistic regression on tf-idf of sequences of up to {ngrams} words (lower case, logarithmic term frequency), "
    "C={C:g}, class weights {class_weights}",
    "random-forest": "{trees} trees on tf-idf of sequences of up to {ngrams} words (lower case, logarithmic term "
    "frequency), at least {min_leaf} documents in a leaf, class weights {class_weights}",
    "dictionary": "of case-folded words, the longest sequence that is an entity of one type in more than half of its "
    "places in the training documents, else the tag that a word had most often there",
}


def code(record: dict[str, Any]) -> str:
    """Python that loads the artifact. FOLDER stands for it, and BACKBONE for a backbone that has no hub id."""
    method = record["method"]
    if method in _BASELINE_USE:
        return _BASELINE_USE[method].format(**record["recipe"])
    from posology.engine.methods import METHODS

    backbone, kind = record["backbone"], record["kind"]
    outputs = len(record["labels"]) if kind == "sequence-classification" else 2 * len(record["labels"]) + 1
    layers = f", num_hidden_layers={backbone['layers']}" if backbone["layers"] else ""
    text = _LOADING[METHODS[method].storage].format(kind=_AUTO[kind], outputs=outputs, layers=layers)
    return text.replace("BACKBONE", backbone["hub_id"] or "BACKBONE")


def rule(record: dict[str, Any]) -> str:
    """What a method does, in a sentence."""
    method = record["method"]
    if method in _BASELINE_RULE:
        return _BASELINE_RULE[method].format(**record["recipe"])
    from posology.engine.methods import METHODS

    return METHODS[method].description


def library(record: dict[str, Any]) -> tuple[str, str | None]:
    """The library whose own call loads the artifact, and what it is to its backbone, in the words of the hub."""
    from posology.engine.methods import METHODS

    storage = METHODS[record["method"]].storage if record["method"] in METHODS else ""
    known = {"model": ("transformers", "finetune"), "peft": ("peft", "adapter"), "weights": ("posology", "finetune")}
    return known.get(storage, ("posology", None))
