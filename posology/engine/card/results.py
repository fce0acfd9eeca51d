"""The part of a card about results: scores with intervals, by label, calibration, and the decision threshold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posology.engine.card.text import code, interval, number, plain, share, table

_FEW_GROUPS = 30
_FEW_CASES = 10
_GLOSSES = {
    "accuracy": "share of documents with the right label",
    "macro_f1": "F1 of each label, all labels counting the same, however rare",
    "micro_f1": "F1 over all decisions; with one label for each document the same as accuracy",
    "weighted_f1": "F1 of each label, weighted by how often it occurs",
    "auroc": "how well the right label is ranked above the others: 0.5 is chance, 1 perfect",
    "auroc_ovo": "the same, each pair of labels compared on its own",
    "average_precision": "area under the curve of precision against recall",
    "brier": "squared error of the probabilities: lower is better",
    "expected_calibration_error": "how far probabilities are from what happens: lower is better",
    "entity_f1": "balance of the next two; an entity counts if start, end and type are all right",
    "entity_precision": "share of the marked entities that are right",
    "entity_recall": "share of the true entities that were found",
    "entity_macro_f1": "F1 of each type, all types counting the same",
}
_REACHED = {
    "sensitivity": "share of positive documents that it finds",
    "specificity": "share of negative documents that it leaves alone",
    "ppv": "share of those it calls positive that are",
    "npv": "share of those it calls negative that are",
    "flagged": "share of all documents that it calls positive",
}
_CALIBRATION = {"ece": "expected calibration error", "brier": "Brier score", "nll": "negative log-likelihood"}


def headline(record: dict[str, Any]) -> str:
    """The result in one sentence."""
    test = record["test"]
    if test is None:
        return "**Not scored on test: training was interrupted.** Do not use it before `posology evaluate`."
    name = record["task"]["metric"]
    entry = test["metrics"].get(name, {})
    low = f" (95 % interval {number(entry['low'])} to {number(entry['high'])})" if entry.get("low") is not None else ""
    return (
        f"**{name} {number(entry.get('value'))}{low}** on {test['documents']:,} test documents of {test['groups']:,} "
        f"groups. {name} is: {_GLOSSES.get(name, 'see docs/measures.md')}."
    )


def scores(record: dict[str, Any]) -> str:
    """The table of all metrics on validation and test."""
    validation = record["validation"] or {}
    test = (record["test"] or {}).get("metrics", {})
    rows = []
    for name in test or validation:
        entry, known = test.get(name, {}), validation.get(name)
        low = f"{entry['low']:.4f} to {entry['high']:.4f}" if entry.get("low") is not None else ""
        value = number(entry.get("value"), 4) if entry else ""
        rows.append((code(name), number(known, 4) if name in validation else "", value, low, _GLOSSES.get(name, "")))
    return table(("metric", "validation", "test", "95 % interval", "what it says"), rows)


def counted(record: dict[str, Any]) -> str:
    """How entities were counted, where it is not by word and strictly."""
    scoring = record.get("scoring")
    if scoring is None or scoring["rule"] == "strict":
        return ""
    pieces = scoring["unit"] == "piece"
    return (
        f" Entities are counted over {'pieces of words' if pieces else 'words'} as the script conlleval does (an I- that "
        "continues nothing begins one), "
        + (
            "each piece having the tag of its word, and pieces beyond the window are not scored: the published way, whose "
            "scores depend on the tokenizer. Predictions give a word the answer for its first piece."
            if pieces
            else "not over pieces as for backbones on this task: a dictionary has no tokenizer. Compare with care."
        )
    )


def by_label(record: dict[str, Any]) -> str:
    """The table of labels on test."""
    rows = []
    for label, entry in (record["test"] or {}).get("per_label", {}).items():
        f1 = {"value": entry["f1"], "low": entry.get("f1_low"), "high": entry.get("f1_high")}
        rows.append(
            (code(label), number(entry["precision"]), number(entry["recall"]), interval(f1), f"{entry['support']:,}")
        )
    return table(("label", "precision", "recall", "F1 (95 % interval)", "in test"), rows)


def always(record: dict[str, Any]) -> str:
    """What a model would reach that always gives the same answer: what accuracy has to be compared with."""
    found = _commonest(record)
    return (
        f"For comparison: always answering {code(found[0])} would be right in {share(found[1])} of test."
        if found
        else ""
    )


def _commonest(record: dict[str, Any]) -> tuple[str, float] | None:
    if record["test"] is None or record["kind"] != "sequence-classification":
        return None
    support = {label: entry["support"] for label, entry in record["test"]["per_label"].items()}
    label = max(support, key=support.__getitem__)
    return label, support[label] / sum(support.values())


def calibration(record: dict[str, Any]) -> tuple[str, str]:
    """A sentence on how probabilities were calibrated, and the table of before and after."""
    found = record.get("calibration")
    if not found:
        return "Not calibrated: do not read its scores as probabilities.", ""
    rows = [
        (title, *(number(found[part].get(name)) for part in ("before", "after") if part in found))
        for name, title in _CALIBRATION.items()
        if name in found.get("before", {})
    ]
    on = (
        f"on {found['count']:,} {found['unit']}s of {found.get('split', 'validation')}"
        if "unit" in found
        else "on validation"
    )
    if found.get("refused"):
        return f"Not calibrated ({plain(found['refused'])}): do not read its scores as probabilities.", ""
    said = (
        f"Scores are divided by a temperature of {record['temperature']:.3f}, fitted {on}. It changes no answer, only how "
        "sure the model says it is. Lower is better; validation chose the temperature, so look at test above too."
    )
    return said, table((f"{on.removeprefix('on ')}", "as trained", "calibrated"), rows)


def threshold(record: dict[str, Any]) -> tuple[str, str]:
    """A sentence on when the model says yes, and the table of what that reaches."""
    found = record.get("threshold")
    if not found:
        if record["kind"] != "sequence-classification":
            return "Each word gets its most probable tag; there is no threshold.", ""
        chosen = "the most probable label"
        own = (
            "; `posology calibrate` sets a threshold for a wanted sensitivity or cost"
            if len(record["labels"]) == 2
            else ""
        )
        return f"The answer is {chosen}; no threshold was set{own}.", ""
    goal = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in found.get("goal", {}).items())
    chosen = f", chosen on validation for {goal}" if goal else ""
    said = (
        f"The answer is {code(found['positive'])} from a probability of {found['probability']:.4f}{chosen}. It reaches:"
    )
    parts = {split: found[split] for split in ("validation", "test") if found.get(split)}
    rows = [
        (name, *(interval(reached[name]) for reached in parts.values()), meaning)
        for name, meaning in _REACHED.items()
        if all(name in reached for reached in parts.values())
    ]
    return said, table(("", *parts, "what it says"), rows) if parts else ""


def warnings(record: dict[str, Any]) -> Iterator[str]:
    """What the results themselves warn of."""
    test = record["test"]
    if test is None:
        return
    if test["groups"] < _FEW_GROUPS:
        yield (
            f"Test holds only {test['groups']:,} groups (patients or records): scores and intervals are rough, and say "
            "little of others."
        )
    accuracy = test["metrics"].get("accuracy", {}).get("value")
    if (common := _commonest(record)) and accuracy is not None and accuracy <= common[1]:
        yield f"It is right no more often ({share(accuracy)}) than always answering {code(common[0])} ({share(common[1])})."
    per_label = test["per_label"]
    if rare := [label for label, entry in per_label.items() if entry["support"] < _FEW_CASES]:
        yield f"Fewer than {_FEW_CASES} cases in test, so that little is known of them: {_listed(rare)}."
    if missed := [label for label, entry in per_label.items() if entry["support"] and not entry["recall"]]:
        yield f"Never found in test, although they occur: {_listed(missed)}."
    if (read := record["coverage"].get("test")) is not None and read < 1:
        yield f"Only {share(read)} of the test text was read; what lies beyond the limit is not seen."


def _listed(labels: list[str], most: int = 20) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(map(code, labels[:most])) + more
