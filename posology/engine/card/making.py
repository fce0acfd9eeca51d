"""The part of a card about how an artifact was made: method, hardware, time, settings, versions."""

from __future__ import annotations

from typing import Any

from posology.catalog import backbones
from posology.engine.baselines import BASELINES
from posology.engine.card.loading import rule
from posology.engine.card.text import code, duration, plain, table
from posology.engine.methods import METHODS

_ENDS = {
    "epochs": "after all epochs",
    "seconds": "when its time was up",
    "patience": "when validation no longer improved",
    "pruned": "by a search in which others were ahead",
    "interrupted": "by an interruption",
    "finished": "when all settings had been tried",
}
_MEASURED = {
    "training_flops": ("arithmetic of training", "{:.3g} floating point operations"),
    "latency_p50_ms": ("time for one document, median", "{:.1f} ms"),
    "latency_p95_ms": ("time for one document, 95th percentile", "{:.1f} ms"),
    "prediction_tokens_per_second": ("prediction", "{:,.0f} tokens/s"),
    "energy_joules": ("energy of training", "{:,.0f} J"),
}


def made(record: dict[str, Any]) -> list[str]:
    """Sentences on method, weights, training and machine."""
    return _baseline(record) if record["method"] in BASELINES else _adapted(record)


def _adapted(record: dict[str, Any]) -> list[str]:
    backbone, parameters = record["backbone"], record["parameters"]
    hub = f" ({backbone['hub_id']})" if backbone["hub_id"] else ""
    first = f", its first {backbone['layers']} layers" if backbone["layers"] else ""
    licence = licence_of(record)
    return [
        f"Backbone: {code(backbone['name'])}{hub}{first}, weights SHA-256 `{(backbone['sha256'] or '')[:16]}`"
        + (f", licence {plain(licence)} as its page declares." if licence else "."),
        f"Method: {code(record['method'])} ({rule(record)}); {parameters['method']:,} trainable parameters and "
        f"{parameters['head']:,} of the head, of {parameters['total']:,}.",
        _trained(record),
        _machine(record),
    ]


def _baseline(record: dict[str, Any]) -> list[str]:
    method, training = record["method"], record["training"]
    tried = len(training["evaluations"])
    return [
        f"Method: {code(method)}, a baseline without a backbone: {rule(record)}; "
        f"{record['parameters']['method']:,} {BASELINES[method].entries}.",
        *([f"Validation chose among {tried} settings."] if tried > 1 else []),
        *(["The two texts of a pair are joined by the word `_pair_`."] if record["text_pair"] else []),
        _trained(record),
        _machine(record),
    ]


def _trained(record: dict[str, Any]) -> str:
    training, budget = record["training"], record.get("budget") or {}
    ended = _ENDS.get(training["stopped"], training["stopped"])
    asked = [f"{budget['shots']} documents per class"] if budget.get("shots") else []
    asked += [f"at most {duration(budget['max_seconds'])}"] if budget.get("max_seconds") else []
    limits = f" Limits asked for: {', '.join(asked)}." if asked else ""
    spent = training.get("evaluation_seconds") or 0.0
    return (
        f"Training: {duration(training['seconds'])} and {duration(spent)} of evaluations; it ended {ended}; seed "
        f"{record['seed']}.{limits}"
    )


def _machine(record: dict[str, Any]) -> str:
    machine, versions = record.get("machine"), record["versions"]
    where = (
        f"{plain(machine['processor'])}, {versions['threads']} threads" if machine else f"{versions['threads']} threads"
    )
    if machine and machine["gpu"]:
        where = f"{plain(machine['gpu'])}; {where}"
    precision = f" Arithmetic: {record['precision']}." if "precision" in record else ""
    return f"Machine: {where}.{precision}"


def measured(record: dict[str, Any]) -> str:
    """The table of size, time, energy and the like."""
    training = record["training"]
    whole = record["method"] in BASELINES or METHODS[record["method"]].storage == "model"
    size = f"{record['adapter_bytes'] / 1e6:.2f} MB" if "adapter_bytes" in record else "not known"
    rows = [("size on disk" if whole else "size on disk, beside the backbone", size)]
    for name, unit in (("examples_per_second", "documents/s"), ("tokens_per_second", "tokens/s")):
        if training.get(name):
            rows.append(("speed of training", f"{training[name]:,.0f} {unit}"))
    found = record.get("measures") or {}
    rows += [(title, form.format(found[name])) for name, (title, form) in _MEASURED.items() if name in found]
    if "energy_joules" not in found:
        rows.append(("energy", "not measured"))
    rows.append(("money", "depends on the price of a machine hour: `posology study prices` lists some"))
    return table(("", ""), rows)


def settings(record: dict[str, Any]) -> str:
    """The table of the recipe."""
    return table(("setting", "value"), ((code(name), code(value)) for name, value in record["recipe"].items()))


def versions(record: dict[str, Any]) -> str:
    """What results depend on, in a line."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items() if name != "threads")


def licence_of(record: dict[str, Any]) -> str | None:
    """What the backbone's page declares; None where the catalogue does not know it."""
    known = backbones().get(record["backbone"]["name"].partition(":")[0])
    return known.licence if known is not None and known.hub_id == record["backbone"]["hub_id"] else None
