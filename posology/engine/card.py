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


def model_card(record: dict[str, Any]) -> str:
    """Markdown that says what the model is for, what it was made of and how good it is. Holds no note text.

    Args:
        record: the content of `posology.json`.
    """
    from posology.engine.methods import METHODS

    task, backbone, parameters = record["task"], record["backbone"], record["parameters"]
    kind = {"sequence-classification": "SequenceClassification", "token-classification": "TokenClassification"}
    outputs = len(record["labels"]) if record["kind"] == "sequence-classification" else 2 * len(record["labels"]) + 1
    layers = f", num_hidden_layers={backbone['layers']}" if backbone["layers"] else ""
    loading = _LOADING[METHODS[record["method"]].storage].format(
        kind=kind[record["kind"]], outputs=outputs, layers=layers
    )
    lines = [
        f"# {task['name']}: {record['method']} on {backbone['name']}",
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
        "Validation chose the checkpoint; test was scored once. Intervals are bootstrap over groups (patients where "
        "the data say so).",
        "",
        "## How it was made",
        "",
        f"- Data: `{task['name']}`, protocol `{task['protocol']}`, fingerprint `{task['fingerprint'][:16]}`; "
        f"{record['training']['documents']} training documents, {record['coverage']['train']:.1%} of their text read "
        f"(test: {record['coverage']['test']:.1%})."
        if record["coverage"].get("test") is not None
        else f"- Data: `{task['name']}`, protocol `{task['protocol']}`; training was interrupted before the test.",
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
        "## Limits",
        "",
        "- Trained and tested on one source of text; check it on your own before you rely on it.",
        "- Scores are not calibrated probabilities unless a calibration is recorded in `posology.json`.",
        "- Not a medical device; not for decisions about a patient without a person who can answer for them.",
    ]
    return "\n".join(lines) + "\n"


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
