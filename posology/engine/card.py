"""The model card that lies in every artifact as README.md."""

from __future__ import annotations

from typing import Any

_LOADING = {
    "model": "AutoModelFor{kind}.from_pretrained(FOLDER)",
    "peft": "PeftModel.from_pretrained(AutoModelFor{kind}.from_pretrained(BACKBONE, num_labels={outputs}{layers}), FOLDER)",
    "weights": (
        "model = AutoModelFor{kind}.from_pretrained(BACKBONE, num_labels={outputs}{layers}); "
        "model.load_state_dict(safetensors.torch.load_file('FOLDER/tuned.safetensors'), strict=False)"
    ),
}


_POOLING = (
    "The head reads the mean over all real tokens in place of the first position, which holds little of the text after "
    "the first layers of a backbone. transformers does not know this: put the mean into position 0 of the last hidden "
    "state (`Adapted.read_mean` in `posology/engine/methods.py` is such a hook) to get the same logits there.",
    "",
)


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


def model_card(record: dict[str, Any]) -> str:
    """Markdown that says what the model is for, what it was made of and how good it is. Holds no note text.

    Args:
        record: the content of `posology.json`.
    """
    from posology.engine.baselines import BASELINES

    baseline = record["method"] in BASELINES
    task = record["task"]
    on = "" if baseline else f" on {record['backbone']['name']}"
    lines = [
        f"# {task['name']}: {record['method']}{on}",
        "",
        f"Made by Posology {record['versions']['posology']}. {record['kind'].replace('-', ' ').capitalize()}; labels: "
        f"{', '.join(record['labels'])}.",
        "",
        "## Results",
        "",
        "| metric | validation | test | 95 % interval |",
        "|---|---|---|---|",
        *_rows(record),
        "",
        f"Validation chose the {'settings' if baseline else 'checkpoint'}; test was scored once. Intervals are bootstrap over "
        "groups (patients where the data say so)." + _counted(record),
        "",
        "## How it was made",
        "",
        f"- Data: `{task['name']}`, protocol `{task['protocol']}`, fingerprint `{task['fingerprint'][:16]}`; "
        f"{record['training']['documents']} training documents, {record['coverage']['train']:.1%} of their text read "
        f"(test: {record['coverage']['test']:.1%})."
        if record["coverage"].get("test") is not None
        else f"- Data: `{task['name']}`, protocol `{task['protocol']}`; training was interrupted before the test.",
        *(_baseline(record) if baseline else _adapted(record)),
        "## Limits",
        "",
        "- Trained and tested on one source of text; check it on your own before you rely on it.",
        "- Scores are not calibrated probabilities unless a calibration is recorded in `posology.json`.",
        "- Not a medical device; not for decisions about a patient without a person who can answer for them.",
    ]
    if baseline:
        lines.append(
            "- `vocabulary.json` holds words of the training documents as they are: keep it as you keep these."
        )
    return "\n".join(lines) + "\n"


def _adapted(record: dict[str, Any]) -> list[str]:
    """How an adapted backbone was made, and how to use it."""
    from posology.engine.methods import METHODS

    backbone, parameters = record["backbone"], record["parameters"]
    kind = {"sequence-classification": "SequenceClassification", "token-classification": "TokenClassification"}
    outputs = len(record["labels"]) if record["kind"] == "sequence-classification" else 2 * len(record["labels"]) + 1
    layers = f", num_hidden_layers={backbone['layers']}" if backbone["layers"] else ""
    loading = _LOADING[METHODS[record["method"]].storage].format(
        kind=kind[record["kind"]], outputs=outputs, layers=layers
    )
    return [
        f"- Backbone: `{backbone['name']}`{' (' + backbone['hub_id'] + ')' if backbone['hub_id'] else ''}, weights "
        f"SHA-256 `{(backbone['sha256'] or '')[:16]}`.",
        f"- Method: `{record['method']}`, {parameters['method']:,} trainable parameters and {parameters['head']:,} of "
        f"the head, of {parameters['total']:,}.",
        f"- Training: {record['training']['seconds']:.0f} s, ended by {record['training']['stopped']}; seed "
        f"{record['seed']}; {record['precision']}.",
        "",
        "## Use",
        "",
        "`posology predict FOLDER INPUT --out FILE`, or without Posology:",
        "",
        f"```python\n{loading}\n```",
        "",
        *_POOLING * (record["pooling"] == "mean"),
    ]


def _baseline(record: dict[str, Any]) -> list[str]:
    """How a baseline was made, and how to use it."""
    from posology.engine.baselines import BASELINES

    method, recipe, training = record["method"], record["recipe"], record["training"]
    tried = len(training["evaluations"])
    return [
        f"- Method: `{method}`, a baseline without a backbone: {_BASELINE_RULE[method].format(**recipe)}; "
        f"{record['parameters']['method']:,} {BASELINES[method].entries}.",
        *([f"- Validation chose among {tried} settings."] if tried > 1 else []),
        *(["- The two texts of a pair are joined by the word `_pair_`."] if record["text_pair"] else []),
        f"- Fitting: {training['seconds']:.1f} s; seed {record['seed']}; scikit-learn "
        f"{record['versions']['scikit-learn']}.",
        "",
        "## Use",
        "",
        "`posology predict FOLDER INPUT --out FILE`, or in Python:",
        "",
        f"```python\n{_BASELINE_USE[method].format(**recipe)}\n```",
        "",
    ]


def _counted(record: dict[str, Any]) -> str:
    """How entities were counted, where it is not by word and strictly."""
    scoring = record.get("scoring")
    if scoring is None or scoring["rule"] == "strict":
        return ""
    return (
        f" Entities are counted over {'pieces of words' if scoring['unit'] == 'piece' else 'words'} as the script conlleval "
        "does (an I- that continues nothing begins one), "
        + (
            "each piece having the tag of its word, and pieces beyond the window are not scored: the published way, whose "
            "scores depend on the tokenizer. Predictions give a word the answer for its first piece."
            if scoring["unit"] == "piece"
            else "not over pieces as for backbones on this task: a dictionary has no tokenizer. Compare with care."
        )
    )


def _rows(record: dict[str, Any]) -> list[str]:
    validation = record["validation"] or {}
    test = (record["test"] or {}).get("metrics", {})
    rows = []
    for name in test or validation:
        entry = test.get(name, {})
        known = validation.get(name)
        interval = f"{entry['low']:.4f} to {entry['high']:.4f}" if entry.get("low") is not None else ""
        value = f"{entry['value']:.4f}" if entry.get("value") is not None else ""
        rows.append(f"| {name} | {f'{known:.4f}' if known is not None else ''} | {value} | {interval} |")
    return rows
