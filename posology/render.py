"""What commands print for people."""

from __future__ import annotations

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_WIDEST = 20


def show(command: str, result: Any) -> None:
    """Prints a command's result on stdout."""
    console = Console(width=None if sys.stdout.isatty() else 180)
    if command == "doctor":
        from posology.doctor import lines

        for line in lines(result):
            console.print(line, markup=False, highlight=False)
    elif command == "bench":
        _show_bench(console, result)
    elif isinstance(result, list):
        console.print(_table(result))
    elif isinstance(result, dict) and "metrics" in result:
        _show_scores(console, result)
    elif isinstance(result, dict):
        for key, value in result.items():
            if not isinstance(value, dict | list):
                console.print(f"{key}: {value}", markup=False, highlight=False)


def _show_scores(console: Console, result: dict[str, Any]) -> None:
    table = Table("metric", "value", "95 % interval", box=box.SIMPLE)
    for name, entry in result["metrics"].items():
        low, high = entry.get("low"), entry.get("high")
        value = "undefined" if entry["value"] is None else f"{entry['value']:.4f}"
        table.add_row(name, value, "" if low is None else f"{low:.4f} to {high:.4f}")
    console.print(table)
    labels = Table("label", "precision", "recall", "f1", "support", box=box.SIMPLE)
    ranked = sorted(result["per_label"].items(), key=lambda item: -item[1]["support"])
    for label, entry in ranked[:_WIDEST]:
        labels.add_row(
            escape(label), *(f"{entry[key]:.3f}" for key in ("precision", "recall", "f1")), str(entry["support"])
        )
    console.print(labels)
    if len(ranked) > _WIDEST:
        console.print(f"({len(ranked) - _WIDEST} rarer labels: --json shows them)", highlight=False)
    if "parameters" in result:
        parameters = result["parameters"]
        kind = "trainable" if parameters["total"] > parameters["method"] else "fitted"
        console.print(
            f"{parameters['method']:,} {kind} parameters and {parameters['head']:,} of the head, "
            f"of {parameters['total']:,}; {result['adapter_bytes'] / 1e6:.2f} MB; "
            f"{result['seconds']:.0f} s of training; {result['coverage']['test']:.1%} of the test text read",
            highlight=False,
        )
    elif "coverage" in result:
        console.print(
            f"{result['documents']:,} documents; {result['coverage']:.1%} of their text read", highlight=False
        )
    console.print(result["artifact"], markup=False, highlight=False)


def _show_company(console: Console, result: dict[str, Any]) -> None:
    setting, ratio = result["setting"], result["ratio"]
    table = Table("", "examples/s of all runs", "s for a step of all", "mean loss", box=box.SIMPLE)
    for name, title in {"company": "in company", "one_by_one": "one after the other"}.items():
        side = result[name]
        table.add_row(title, _spread(side["examples_per_second"]), _spread(side["seconds"]), f"{side['loss']:.3f}")
    console.print(table)
    console.print(
        f"{len(setting['ranks'])} runs in company are {_spread(ratio)} times faster; median (min to max) of "
        f"{setting['repeats']} rounds of {setting['steps']} steps; {setting['threads']} threads",
        highlight=False,
    )


def _show_bench(console: Console, result: dict[str, Any]) -> None:
    if "company" in result:
        _show_company(console, result)
        return
    table = Table("", "examples/s", "tokens/s", "GFLOP/s", "of the peak", "peak memory", "ours is", box=box.SIMPLE)
    sides = {"ours": "ours", "peer_as_paper": "peer, as the paper", "peer_best": "peer, at its best"}
    for name, title in sides.items():
        if (side := result.get(name)) is None:
            continue
        ratio, bytes_ = result["ratios"].get(name), side["peak_memory_bytes"]
        table.add_row(
            title,
            *(_spread(side[key]) for key in ("examples_per_second", "tokens_per_second", "gflops")),
            f"{side['share_of_peak']:.0%} ({side['precision']})",
            "" if bytes_ is None else f"{bytes_ / 1e6:,.0f} MB",
            "" if ratio is None else f"{_spread(ratio)} times faster",
        )
    console.print(table)
    peaks = ", ".join(f"{value:,.0f} in {name}" for name, value in result["matrix_peak_gflops"].items())
    setting = result["setting"]
    console.print(
        f"median (min to max) of {setting['repeats']} rounds over the same {setting['documents']:,} documents and "
        f"{setting['tokens']:,} tokens; matrix peak {peaks} GFLOP/s; {setting['device']}, {setting['threads']} threads",
        highlight=False,
    )
    for name, title in sides.items():
        if (same := result.get(name, {}).get("same_labels")) is not None:
            console.print(f"{title}: {same:.2%} of its labels are the same as ours", highlight=False)
        if scores := result.get(name, {}).get("quality"):
            console.print(
                f"{title}: {scores['metric']} {scores['validation']:.4f} on validation, {scores['test']:.4f} on test, "
                f"after {scores['training_seconds']:.0f} s of training",
                highlight=False,
            )


def _spread(values: dict[str, float]) -> str:
    digits = 2 if values["median"] < 10 else 0
    median, low, high = (f"{values[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return "; ".join(f"{key}: {entry}" for key, entry in value.items())
    return "" if value is None else str(value)
