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
    elif command == "calibrate":
        _show_calibrated(console, result)
    elif command == "study" and isinstance(result, dict):
        _show_study(console, result)
    elif command == "distil" and "losses" in result:
        _show_distilled(console, result)
    elif command == "report":
        _show_report(console, result)
    elif command == "redact":
        _show_redacted(console, result)
    elif command == "pretrain":
        _show_pretrained(console, result)
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
        _show_calibration(console, {result["split"]: result["calibration"]})
        if result["threshold"] is not None:
            _show_threshold(console, result["threshold"], {result["split"]: result["threshold"]["metrics"]})
    console.print(result["artifact"], markup=False, highlight=False)


def _show_distilled(console: Console, result: dict[str, Any]) -> None:
    table = Table("difference to the teacher", "before", "after", box=box.SIMPLE)
    for name, before in result["losses"]["before"].items():
        table.add_row(name, f"{before:.4f}", f"{result['losses']['after'][name]:.4f}")
    console.print(table)
    console.print(
        f"{result['parameters']:,} parameters of {result['teacher_parameters']:,}; {result['steps']:,} steps in "
        f"{result['seconds']:.0f} s; {sum(result['excluded'].values()):,} evaluation documents left out",
        highlight=False,
    )
    console.print(result["out"], markup=False, highlight=False)


def _show_calibrated(console: Console, result: dict[str, Any]) -> None:
    calibration, threshold = result["calibration"], result["threshold"]
    if calibration["refused"] is not None:
        console.print(f"temperature 1: {calibration['refused']}", markup=False, highlight=False)
    else:
        console.print(f"temperature {result['temperature']:.3f}", highlight=False)
    _show_calibration(console, {"validation": calibration, "test": result["test"]})
    if threshold is not None:
        _show_threshold(console, threshold, {split: threshold[split] for split in ("validation", "expected", "test")})
    console.print(result["artifact"], markup=False, highlight=False)


def _show_calibration(console: Console, splits: dict[str, dict[str, Any] | None]) -> None:
    """How well probabilities fit, before the temperature and after it."""
    table = Table("probabilities", "", "ECE", "adaptive ECE", "Brier", "NLL", box=box.SIMPLE)
    for split, found in splits.items():
        for name, title in {"before": "as trained", "after": "calibrated"}.items():
            if found is None:
                continue
            scores = found[name]
            values = (scores[key] for key in ("ece", "adaptive_ece", "brier", "nll"))
            table.add_row(split, title, *("undefined" if value is None else f"{value:.4f}" for value in values))
    console.print(table)


def _show_threshold(console: Console, threshold: dict[str, Any], splits: dict[str, dict[str, Any] | None]) -> None:
    """What a threshold reaches."""
    goal = "".join(f", for {name.replace('_', ' ')} {value:g}" for name, value in threshold.get("goal", {}).items())
    console.print(
        f"{threshold['positive']} from a probability of {threshold['probability']:.4f}{goal}",
        markup=False,
        highlight=False,
    )
    found = {split: values for split, values in splits.items() if values is not None}
    table = Table("", *found, box=box.SIMPLE)
    for name in next(iter(found.values())):
        table.add_row(name, *(_interval(values[name]) for values in found.values()))
    console.print(table)


def _interval(entry: dict[str, Any]) -> str:
    if "value" not in entry:
        return "undefined" if entry["low"] is None else f"{entry['low']:.3f} to {entry['high']:.3f}"
    if entry["value"] is None:
        return "undefined"
    interval = "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
    return f"{entry['value']:.3f}{interval}"


def _show_report(console: Console, result: dict[str, Any]) -> None:
    for task, verdict in result["verdicts"].items():
        console.print(f"{task}", style="bold", markup=False, highlight=False)
        for sentence in verdict["sentences"]:
            console.print(f"  {sentence}", markup=False, highlight=False)
    console.print(
        f"{result['runs']:,} runs, {result['tasks']} tasks; {len(result['tables'])} files of tables, "
        f"{len(result['figures'])} of figures",
        highlight=False,
    )
    console.print(result["page"], markup=False, highlight=False)


def _show_pretrained(console: Console, result: dict[str, Any]) -> None:
    """Held-out perplexity, what was read, and how words are cut."""
    held, coverage, excluded = result["held_out"], result["coverage"], result["excluded"]
    table = Table("held-out perplexity", "of all hidden pieces (95 %)", "median of documents (95 %)", box=box.SIMPLE)
    for name in ("before", "with_new_head", "after"):
        if name in held:
            table.add_row(
                name.replace("_", " "), _interval(held[name]["token_weighted"]), _interval(held[name]["median"])
            )
    console.print(table)
    documents = result["documents"]
    console.print(
        f"{documents['training']:,} of {documents['all']:,} documents trained on, {documents['held_out']:,} held out; "
        f"{excluded['exact']:,} equal to evaluation documents and {excluded['near']:,} near ones left out"
        + ("" if result["evaluation"] is not None else " (none were named: --exclude)"),
        highlight=False,
    )
    console.print(
        f"{result['steps']:,} steps, {result['tokens']:,} pieces, {result['seconds']:,.0f} s; "
        f"{coverage['pieces_per_word']:.2f} pieces a word, {coverage['whole']:.1%} of the words whole, "
        f"{coverage['shattered']:.1%} in four or more",
        highlight=False,
    )
    if coverage.get("worst"):
        console.print(_table(coverage["worst"]))
    console.print(result["out"], markup=False, highlight=False)


def _show_redacted(console: Console, result: dict[str, Any]) -> None:
    counts = Table("replaced", "", box=box.SIMPLE)
    for label, count in sorted(result["identifiers"].items(), key=lambda item: -item[1]):
        counts.add_row(escape(label), f"{count:,}")
    console.print(counts)
    for name in ("recall", "precision"):
        if name in result:
            console.print(f"{name} of words on validation: {_interval(result[name])}", highlight=False)
    left_out = f", {result['rejected']:,} rows rejected" if result["rejected"] else ""
    console.print(
        f"{result['documents']:,} documents{left_out}; {result['documents_per_second']:,.1f} a second", highlight=False
    )
    console.print(f"{result['out']}, {result['audit']}", markup=False, highlight=False)


_RUN = {"key": "run", "task": "", "backbone": "", "method": "", "seed": "", "limits": "", "state": "", "score": "",
        "trained": "parameters", "seconds": ""}  # fmt: skip


def _show_study(console: Console, result: dict[str, Any]) -> None:
    """A plan, the state of a study, or one run."""
    if "cell" in result:
        _show_run(console, result)
        return
    for name, count in result.get("parts", {}).items():
        console.print(f"{name}: " + ", ".join(f"{part} {runs}" for part, runs in count.items()), highlight=False)
    for line in result.get("left_out", []):
        console.print(f"left out: {line}", markup=False, highlight=False)
    if rows := result.get("runs") if isinstance(result.get("runs"), list) else None:
        console.print(_table([_run_cells(row) for row in rows]))
    for name in ("under_way", "failed_because"):
        if result.get(name):
            console.print(_table(result[name]))
    for name, value in result.items():
        if value is not None and not isinstance(value, dict | list):
            shown = value
            if name == "memory":
                shown = f"{value / 1e6:,.0f} MB"
            elif isinstance(value, float):
                shown = f"{value:,.1f}" if value >= 10 else f"{value:.2g}"
            console.print(f"{name.replace('_', ' ')}: {shown}", markup=False, highlight=False)


def _run_cells(row: dict[str, Any]) -> dict[str, Any]:
    score = "" if row["value"] is None else f"{row['metric']} {row['value']:.3f}"
    if row["low"] is not None:
        score += f" ({row['low']:.3f} to {row['high']:.3f})"
    limits = [f"{name}={value}" for name, value in row["overrides"].items()]
    limits += [f"{row[name]:g} {unit}" for name, unit in (("shots", "shots"), ("max_seconds", "s")) if row[name]]
    values = {"key": row["key"][:8], "limits": " ".join(limits), "score": score, "trained": row["trainable_parameters"]}
    values["seconds"] = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    return {title or name: values.get(name, row.get(name)) for name, title in _RUN.items()}


def _show_run(console: Console, run: dict[str, Any]) -> None:
    console.print(f"run {run['key']}: {run['state']}", markup=False, highlight=False)
    for name, value in run["cell"].items():
        if value not in (None, {}):
            console.print(f"  {name}: {value}", markup=False, highlight=False)
    if run["problem"]:
        console.print(f"problem: {run['problem']}", markup=False, highlight=False)
    if run["evaluations"]:
        columns = ("epoch", "step", "seconds", "loss", "score")
        console.print(_table([{name: round(each[name], 4) for name in columns} for each in run["evaluations"]]))
    if run["result"] is not None:
        _show_scores(console, run["result"])


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
