"""The model card that lies in every artifact as README.md: for the people who are to decide whether to use it.

Facts come from `posology.json` alone; what the program cannot know is said to be missing, so that somebody fills it in.
"""

from __future__ import annotations

from typing import Any


def model_card(record: dict[str, Any]) -> str:
    """Markdown with the hub's front matter: what the model is for, what it was made of, how good it is, and its limits.

    It holds no text of documents and no folder of this machine.

    Args:
        record: the content of `posology.json`.
    """
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    from posology.engine.baselines import BASELINES
    from posology.engine.card import data, loading, making, results, text, tripod

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string(files(__name__).joinpath("card.md.j2").read_text(encoding="utf-8"))
    return template.render(
        record=record,
        title=_title(record),
        front=_front_matter(record),
        baseline=record["method"] in BASELINES,
        tagging=record["kind"] == "token-classification",
        labels=_labels(record["labels"]),
        warnings=[*results.warnings(record), *data.warnings(record)],
        data=data,
        loading=loading,
        making=making,
        results=results,
        text=text,
        tripod=tripod,
    )


def _title(record: dict[str, Any]) -> str:
    from posology.engine.card.text import plain

    on = f" on {record['backbone']['name']}" if record["backbone"]["sha256"] or record["backbone"]["parameters"] else ""
    return plain(f"{record['task']['name']}: {record['method']}{on}")


_SHOWN_LABELS = 60
_TAGS = {"sequence-classification": "text-classification", "token-classification": "token-classification"}
_METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "weighted_f1": "f1",
    "entity_f1": "f1",
    "entity_precision": "precision",
    "entity_recall": "recall",
    "auroc": "roc_auc",
    "brier": "brier_score",
}
"""The hub's identifiers of metrics."""


def _labels(labels: list[str]) -> str:
    from posology.engine.card.text import code

    more = f" and {len(labels) - _SHOWN_LABELS} more (see `posology.json`)" if len(labels) > _SHOWN_LABELS else ""
    return ", ".join(map(code, labels[:_SHOWN_LABELS])) + more


def _front_matter(record: dict[str, Any]) -> str:
    """What the Hugging Face hub reads of a card."""
    import yaml

    from posology.engine.card.loading import library

    name, relation = library(record)
    task, kind, hub_id = record["task"], record["kind"], record["backbone"]["hub_id"]
    front: dict[str, Any] = {"library_name": name, "pipeline_tag": _TAGS[kind]}
    if hub_id:
        front |= {"base_model": hub_id, "base_model_relation": relation}
    front["tags"] = ["posology", "clinical", record["method"]]
    scores = (record["test"] or {}).get("metrics", {})
    known = [metric for metric in scores if metric in _METRICS and scores[metric]["value"] is not None]
    if known:
        front["metrics"] = list(dict.fromkeys(_METRICS[metric] for metric in known))
        values = [
            {"type": _METRICS[metric], "name": metric, "value": round(scores[metric]["value"], 4)} for metric in known
        ]
        result = {
            "task": {"type": _TAGS[kind]},
            "dataset": {"name": task["name"], "type": task["name"], "split": "test"},
            "metrics": values,
        }
        front["model-index"] = [{"name": f"{task['name']}: {record['method']}", "results": [result]}]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()
