"""What TRIPOD+AI asks of a report on a prediction model (Collins et al. 2024, BMJ 385:e078378), as far as it is known.

Items are named in our own words, under the checklist's numbers.
"""

from __future__ import annotations

from typing import Any

from posology.engine.baselines import BASELINES
from posology.engine.card import making
from posology.engine.card.text import UNKNOWN, code, number, plain, share, table


def checklist(record: dict[str, Any]) -> str:
    """The table: number, item, and the fact or that it has to be filled in."""
    rows = [
        ("3a, 3b", "clinical question, population, users", UNKNOWN),
        ("5a", "source of data", _source(record)),
        ("5b", "dates of the data", UNKNOWN),
        ("6a", "setting: hospitals, wards, countries", UNKNOWN),
        ("6b", "eligibility: who was left out and why", _eligibility(record)),
        ("6c", "treatments that patients had", UNKNOWN),
        ("7", "preparation of the data", _preparation(record)),
        ("8a", "outcome", _outcome(record)),
        ("8b, 8c", "who set the labels, and blinded to what", UNKNOWN),
        ("9a-9c", "predictors", _predictors(record)),
        ("10", "sample size, and why it is enough", _size(record)),
        (
            "11",
            "missing data",
            "documents without text or label are refused or counted above; why they are missing: " + UNKNOWN,
        ),
        ("12a-12c", "analysis: how data were used, model", _analysis(record)),
        ("12e", "measures of performance", "the table under Results; intervals are 95 %, over groups"),
        ("13", "class imbalance", _imbalance(record)),
        (
            "14",
            "fairness: performance by group of patients",
            "not scored by sex, age, ethnicity or the like: " + UNKNOWN,
        ),
        ("15", "output of the model", _output(record)),
        ("16", "differences between training and test data", "the same source" + _protocol(record)),
        ("17, 18a-18c, 19", "ethics, funding, conflicts, registration, patients' part", UNKNOWN),
        ("18d", "availability of the data", UNKNOWN),
        ("18e, 18f", "availability of code and model", _availability(record)),
        ("20a, 20b", "flow and characteristics of participants", "flow: under Data; characteristics: " + UNKNOWN),
        ("22", "full specification of the model", "this folder, with the backbone named under How it was made"),
        ("23a", "performance with uncertainty", _performance(record)),
        ("23b", "heterogeneity between hospitals", "one source of data: not known"),
        (
            "24",
            "updating of the model",
            "none since training" + (", but for calibration" if record.get("calibration") else ""),
        ),
        ("26", "limitations", "under Limits, as far as numbers show them"),
        ("27a-27c", "use in care, and what users must know", UNKNOWN),
    ]
    return table(("item", "TRIPOD+AI asks for", "here"), rows)


def _source(record: dict[str, Any]) -> str:
    data = record["task"].get("data") or {}
    made_up = " **generated, not real**;" if data.get("synthetic") else ""
    form = f" read from {code(data['format'])};" if data.get("format") else ""
    return f"task {code(record['task']['name'])};{form}{made_up} design of its collection: {UNKNOWN}"


def _eligibility(record: dict[str, Any]) -> str:
    data = record["task"].get("data") or {}
    counted = "counted under Data" if data.get("flow") or data.get("documents") else "not recorded"
    return f"{counted}; criteria of the source itself: {UNKNOWN}"


def _preparation(record: dict[str, Any]) -> str:
    read = record["coverage"].get("test")
    said = "text as it is" + ("" if record["method"] in BASELINES else ", cut into the backbone's pieces")
    return said + (f"; {share(read)} of the test text is read" if read is not None else "")


def _outcome(record: dict[str, Any]) -> str:
    count = len(record["labels"])
    what = f"one of {count} labels" if record["kind"] == "sequence-classification" else f"entities of {count} types"
    return f"{what}, named above; their definition: {UNKNOWN}"


def _predictors(record: dict[str, Any]) -> str:
    texts = "two texts" if record.get("text_pair") else "the text"
    return f"{texts} of a document and nothing else; when it was written with regard to the outcome: {UNKNOWN}"


def _size(record: dict[str, Any]) -> str:
    training, test = record["training"]["documents"], record["test"]
    tested = f", {test['documents']:,} test documents of {test['groups']:,} groups" if test else ""
    return f"{training:,} training documents{tested}; no calculation was made beforehand that the program knows of"


def _analysis(record: dict[str, Any]) -> str:
    chosen = "settings" if record["method"] in BASELINES else "the checkpoint"
    return (
        f"{code(record['method'])}; fitted on training, {chosen} chosen by {code(record['task']['metric'])} on validation, "
        "scored once on test"
    )


def _imbalance(record: dict[str, Any]) -> str:
    weights = record["recipe"].get("class_weights")
    return "nothing was done about it" if weights in (None, "none") else f"class weights {plain(weights)}"


def _output(record: dict[str, Any]) -> str:
    found = record.get("calibration") or {}
    calibrated = "calibrated" if found and not found.get("refused") else "uncalibrated"
    what = f"a label and {calibrated} probabilities"
    if record["kind"] != "sequence-classification":
        what = f"spans of characters with a type and an {calibrated} score".replace("an calibrated", "a calibrated")
    point = record.get("threshold")
    return what + (f"; threshold {point['probability']:.4f} for {code(point['positive'])}" if point else "")


def _protocol(record: dict[str, Any]) -> str:
    overlap = (record["task"].get("data") or {}).get("group_overlap")
    return ", and patients (or records) in both" if overlap else ", split by the groups that the data name"


def _availability(record: dict[str, Any]) -> str:
    licence = making.licence_of(record)
    declared = f"backbone's licence: {plain(licence)}; " if licence else ""
    return f"Posology is free software (Apache-2.0); {declared}licence of this artifact: {UNKNOWN}"


def _performance(record: dict[str, Any]) -> str:
    if record["test"] is None:
        return "not scored on test"
    name = record["task"]["metric"]
    entry = record["test"]["metrics"].get(name, {})
    low = f", {number(entry['low'])} to {number(entry['high'])}" if entry.get("low") is not None else ""
    return f"{code(name)} {number(entry.get('value'))}{low}; further ones under Results"
