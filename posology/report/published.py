"""The paper's tables from our own results, with its values beside ours where the task is the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from posology import catalog
from posology.report.comparing import mean_validation
from posology.report.results import Configuration, Results, Run, TaskResults
from posology.report.sentences import seconds
from posology.report.tables import Mark, Table, is_peft
from posology.report.text import UNKNOWN, figures_text, metric_label

_METRICS = {"f1_macro": "macro_f1", "f1_micro": "micro_f1", "f1": "entity_f1", "auroc": "auroc"}
"""What the paper's tables call metrics; of entities, its micro-F1 is ours of entities."""
_METHOD_NAMES = {"lora": "LoRA", "ia3": "IA3", "full": "Full", "dora": "DoRA", "rslora": "rsLoRA"}
_FIELDS = {
    "r": "rank", "alpha": "alpha", "dropout": "adapter_dropout", "learning rate": "learning_rate",
    "target modules": "targets", "layers": "top_layers",
}  # fmt: skip
_SHOWN = (
    "learning_rate", "epochs", "batch_size", "patience", "max_length", "long_text", "rank", "alpha", "adapter_dropout",
    "targets", "top_layers", "virtual_tokens",
)  # fmt: skip
_DOMAINS = ("general", "biomedical", "clinical")
_DOCUMENTS = 100_000
_LISTED = 6
_PAPER_SCORES = (
    "The paper gives the median (SD) of three runs' best score on validation; ours are on test, by the checkpoint that "
    "validation chose."
)
_CHOSEN = "Where a method was tried with several recipes, the one that validation chose is shown."


class _Published(NamedTuple):
    """A score of the paper's."""

    metric: str
    text: str


def tables(results: Results) -> list[Table]:
    """Tables 1 to 4, C.5 and C.6; those without rows have nothing to show."""
    return [
        architectures(),
        datasets(results),
        scores(results),
        costs(results),
        hyper_parameters(results),
        domains(results),
    ]


# --- Table 1 ------------------------------------------------------------------------------------------------------


def architectures() -> Table:
    """Table 1: parameters, memory of the weights and operations of the paper's architectures, from their shapes."""
    from posology.measure.paper_convention import table1

    columns = (
        "Architecture",
        "Parameters (M)",
        "Paper",
        "Weights (GiB)",
        "Paper",
        "Multiply-accumulates",
        "Paper",
        "Note",
    )
    rows = []
    for row in table1():
        paper = row["paper"]
        rows.append((
            row["architecture"], f"{row['parameters'] / 1e6:.2f}", f"{paper['parameters'] / 1e6:.2f}",
            f"{row['vram']:.3f}", f"{paper['vram']:.3g}", f"{row['flops']:.2e}", f"{paper['flops']:.2e}",
            row["note"] or UNKNOWN,
        ))  # fmt: skip
    notes = (
        "From configurations alone, by the paper's conventions: memory of the weights only, and multiply-accumulates of "
        "one forward pass over eight tokens.",
    )
    return Table("table1_architectures", "Table 1: architectures", columns, tuple(rows), {}, notes)


# --- Table 2 ------------------------------------------------------------------------------------------------------


def datasets(results: Results) -> Table:
    """Table 2: the tasks and how many documents they have."""
    paper = {row["dataset"]: row for row in catalog.paper_table("table2_datasets")}
    kinds = {"sequence-classification": "Seq. CLS", "token-classification": "NER"}
    rows = []
    for task in results.tasks:
        if not task.counts:
            continue
        entry = paper.get(_dataset(task.published) or "") if task.published else None
        beside = ("classes", "train", "eval")
        rows.append((
            task.task, task.source or UNKNOWN, task.protocol or UNKNOWN, kinds[task.kind],
            str(task.tags or len(task.labels)), *(f"{task.counts[split]:,}" for split in ("train", "validation", "test")),
            *(UNKNOWN if entry is None else f"{int(entry[name]):,}" for name in beside),
        ))  # fmt: skip
    columns = ("Dataset", "Source", "Protocol", "Task type", "Classes", "Train", "Validation", "Test", "Paper: classes",
               "Paper: train", "Paper: evaluation")  # fmt: skip
    notes = ("Classes of the paper's entity tasks are counted as it does: B- and I- of every type, and O.",)
    return Table("table2_datasets", "Table 2: datasets", columns, tuple(rows), {}, notes)


def _dataset(published: str) -> str | None:
    from posology.tasks.clinical import TASKS

    task = TASKS.get("mimic-triage" if published == "icd9-triage" else published)
    return task.published if task is not None else None


# --- Tables 3 and C.6 ---------------------------------------------------------------------------------------------


def scores(results: Results) -> Table:
    """Table 3: median (SD) over seeds of every model and method on every task."""
    paper = {
        (row["task"], row["model"], row["method"]): _Published(
            _metric(row["metric"], row["task"]), f"{row['median']} ({row['sd']})"
        )
        for row in catalog.paper_table("table3_peft")
    }
    return _grid(
        results,
        "table3_methods",
        "Table 3: models and methods, median (SD) over seeds",
        paper,
        lambda run: True,
        (_PAPER_SCORES,),
    )


def domains(results: Results) -> Table:
    """Table C.6: backbones by the domain of their pretraining, fully fine-tuned and by LoRA."""
    paper = {
        (row["task"], row["model"], row["method"]): _Published(_metric(row["metric"], row["task"]), row["value"])
        for row in catalog.paper_table("tableC6_domain")
    }
    notes = (f"The paper gives the best score on validation of one run. {_domains_found(results)}",)
    return _grid(
        results,
        "tableC6_domains",
        "Table C.6: domains of pretraining",
        paper,
        lambda run: run.domain is not None and run.method in ("full", "lora"),
        notes,
        domain=True,
    )


def _metric(name: str, task: str) -> str:
    return "entity_f1" if task.endswith("-ner") else _METRICS[name]


def _domains_found(results: Results) -> str:
    found = {run.domain for task in results.tasks for each in task.configurations for run in each.runs} - {None}
    missing = [domain for domain in _DOMAINS if domain not in found]
    return f"No backbone of the {' or '.join(missing)} domain was run." if missing else ""


def _grid(
    results: Results,
    name: str,
    title: str,
    paper: dict[tuple[str, str, str], _Published],
    wanted: Callable[[Run], bool],
    notes: Sequence[str],
    *,
    domain: bool = False,
) -> Table:
    """Models and methods by tasks; the best of each task marked, the paper's values in a column of their own."""
    columns = ["Model", "Domain", "Method"] if domain else ["Model", "Method"]
    heads = len(columns)
    cells: dict[tuple[str, ...], dict[int, str]] = {}
    marks: dict[tuple[tuple[str, ...], int], Mark] = {}
    order: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for task in results.tasks:
        chosen = {key: each for key, each in _chosen(task).items() if wanted(each.first)}
        if not chosen:
            continue
        entries = {(model, method): _paper(paper, task, each) for (model, method), each in chosen.items()}
        metric = next((entry.metric for entry in entries.values() if entry), task.metric)
        here = len(columns)
        columns.append(f"{task.task} ({', '.join([metric_label(metric), *_limits(chosen)])})")
        if any(entries.values()):
            columns.append("Paper")
        medians: dict[tuple[str, ...], tuple[float, bool]] = {}
        for (model, method), each in chosen.items():
            key = (model, each.first.domain or UNKNOWN, _method(method)) if domain else (model, _method(method))
            median, text = _median(each, metric)
            own = cells.setdefault(key, {})
            own[here] = text
            order.setdefault(key, _order(each.first))
            if entry := entries[model, method]:
                own[here + 1] = entry.text
            if median is not None:
                medians[key] = (median, is_peft(each))
        _mark(medians, here, marks)
    keys = sorted(cells, key=lambda key: order[key])
    rows = tuple((*key, *(cells[key].get(column, UNKNOWN) for column in range(heads, len(columns)))) for key in keys)
    placed = {(keys.index(key), column): mark for (key, column), mark in marks.items()}
    legend = f"Best of a task in bold, best parameter-efficient method underlined. {_CHOSEN}"
    beside = notes if "Paper" in columns else ("The paper's values are not shown: none of these is one of its tasks on "
                                               "the original data, whole.",)  # fmt: skip
    return Table(name, title, tuple(columns), rows, placed, (legend, *filter(None, beside)))


def _mark(
    medians: dict[tuple[str, ...], tuple[float, bool]], column: int, marks: dict[tuple[tuple[str, ...], int], Mark]
) -> None:
    """Marks the best, ties included, as they are printed."""
    best = max((round(value, 3) for value, _ in medians.values()), default=None)
    peft = max((round(value, 3) for value, own in medians.values() if own), default=None)
    for key, (value, own) in medians.items():
        is_best, is_best_peft = round(value, 3) == best, own and round(value, 3) == peft
        if is_best or is_best_peft:
            marks[key, column] = "both" if is_best and is_best_peft else "best" if is_best else "peft"


def _chosen(task: TaskResults) -> dict[tuple[str, str], Configuration]:
    """One configuration for each model and method, all under the same limits: none if possible, else those that leave
    the most time and documents."""
    scored = [each for each in task.configurations if each.mean.value is not None and not each.first.ended_early]
    if not scored:
        return {}
    limits = {(each.first.shots, each.first.max_seconds) for each in scored}
    shots, most = min(
        limits, key=lambda own: (own[1] is not None, own[0] is not None, -(own[1] or 0.0), -(own[0] or 0))
    )
    found: dict[tuple[str, str], Configuration] = {}
    for each in scored:
        run = each.first
        if (run.shots, run.max_seconds) != (shots, most):
            continue
        key = (run.backbone or "no language model", run.method)
        before = found.get(key)
        if before is None or (mean_validation(each) or 0.0) > (mean_validation(before) or 0.0):
            found[key] = each
    return found


def _limits(chosen: dict[tuple[str, str], Configuration]) -> list[str]:
    run = next(iter(chosen.values())).first
    found = [f"{run.shots} shots"] if run.shots is not None else []
    return [*found, f"{run.max_seconds:g} s"] if run.max_seconds is not None else found


def _median(configuration: Configuration, metric: str) -> tuple[float | None, str]:
    values = [run.scores[metric].value for run in configuration.runs if metric in run.scores]
    known = [value for value in values if value is not None]
    if not known:
        return None, UNKNOWN
    median = float(np.median(known))
    sd = f" ({np.std(known, ddof=1):.3f})" if len(known) > 1 else ""
    return median, f"{median:.3f}{sd}"


def _paper(
    paper: dict[tuple[str, str, str], _Published], task: TaskResults, configuration: Configuration
) -> _Published | None:
    if task.published is None or configuration.first.backbone is None:
        return None
    return paper.get((task.published, paper_model(configuration.first.backbone) or "", configuration.first.method))


def paper_model(backbone: str) -> str | None:
    """What the paper calls a backbone; None where it has not got it, or for the first layers of one alone."""
    entry = catalog.find(backbone)
    return entry.paper_name if entry is not None else None


def _order(run: Run) -> tuple[Any, ...]:
    """Large models first, baselines last; variants of one architecture by domain; full fine-tuning first."""
    domain = _DOMAINS.index(run.domain) if run.domain in _DOMAINS else len(_DOMAINS)
    entry = catalog.find(re.sub(r":\d+$", "", run.backbone or ""))
    size = run.backbone_parameters
    if entry is not None:  # variants of one architecture differ in their vocabulary
        shape = entry.config
        width = shape.get("embedding_size") or shape.get("hidden_size") or shape.get("dim") or 0
        size -= width * entry.vocabulary
    return (-size, domain, run.backbone or "", run.method != "full", run.method)


def _method(method: str) -> str:
    return _METHOD_NAMES.get(method, method)


# --- Table 4 ------------------------------------------------------------------------------------------------------


def costs(results: Results) -> Table:
    """Table 4: hours of training and of prediction for 100,000 documents, and money for both."""
    paper = {(row["model"], row["method"]): row for row in catalog.paper_table("table4_cost")}
    rows = []
    currency, with_paper = "", False
    for task in results.tasks:
        for each in sorted(_chosen(task).values(), key=lambda each: _order(each.first)):
            run = each.first
            currency = currency or run.currency or ""
            hours, predicting = seconds(each) / 3600, _prediction_hours(each.runs)
            rate = run.cost / run.seconds * 3600 if run.cost is not None and run.seconds else None
            total = None if rate is None or predicting is None else rate * (hours + predicting)
            entry = None
            if task.published == "mimic-mp" and run.backbone is not None:
                entry = paper.get((paper_model(run.backbone) or "", run.method))
            with_paper = with_paper or entry is not None
            beside = ("train_hours", "inference_hours_100k", "total_gbp")
            rows.append((
                task.task, run.backbone or "no language model", _method(run.method), figures_text(hours),
                figures_text(predicting), figures_text(None if rate is None else rate * hours), figures_text(total),
                *(UNKNOWN if entry is None else entry[name] for name in beside),
            ))  # fmt: skip
    columns = ["Task", "Model", "Method", "Training (h)", f"Inference of {_DOCUMENTS:,} documents (h)",
               f"Training ({currency})", f"Total ({currency})"]  # fmt: skip
    if with_paper:
        columns += ["Paper: training (h)", "Paper: inference (h)", "Paper: total (GBP)"]
    kept = tuple(row[: len(columns)] for row in rows)
    notes = [f"Training without evaluations, mean over seeds. {_CHOSEN}"]
    if any(row[4] == UNKNOWN for row in kept):
        notes.append("A dash: prediction was not measured in these runs.")
    if any(row[4] != UNKNOWN for row in kept):
        notes.append("Inference is foretold from the measured pace, for documents as long as those of training.")
    if with_paper:
        notes.append("The paper's hours are of other machines (one NVIDIA RTX 3090) and ten epochs.")
    return Table("table4_costs", "Table 4: time and money", tuple(columns), kept, {}, tuple(notes))


def _prediction_hours(runs: Iterable[Run]) -> float | None:
    hours = [
        _DOCUMENTS * run.tokens_per_document / run.measures["prediction_tokens_per_second"] / 3600
        for run in runs
        if run.tokens_per_document and run.measures.get("prediction_tokens_per_second")
    ]
    return float(np.mean(hours)) if hours else None


# --- Table C.5 ----------------------------------------------------------------------------------------------------


def hyper_parameters(results: Results) -> Table:
    """Table C.5: the hyper-parameters that were used, by method, the paper's beside them."""
    from posology.study.grid import fields_of

    used: dict[str, dict[str, dict[str, Any]]] = {}  # values by their text, by field, by method
    for task in results.tasks:
        for each in task.configurations:
            run = each.first
            fields = fields_of(run.method)
            for name, value in run.recipe.items():
                if name in fields:
                    used.setdefault(run.method, {}).setdefault(name, {}).setdefault(repr(value), value)
    paper = _paper_hyper_parameters()
    rows = []
    for method, own in used.items():
        for name, values in own.items():
            if len(values) == 1 and name not in _SHOWN:
                continue
            rows.append(
                (_method(method), name, _listed(name, list(values.values())), paper.get((method, name), UNKNOWN))
            )
    columns = ("Method", "Hyper-parameter", "Value", "Paper")
    notes = (
        "Over all runs of a method; a range where there are many values. Others are as the recipe has them, and the same "
        "for all runs.",
    )
    return Table("tableC5_hyperparameters", "Table C.5: hyper-parameters", columns, tuple(rows), {}, notes)


def _paper_hyper_parameters() -> dict[tuple[str, str], str]:
    found, method = {}, ""
    for row in catalog.paper_table("tableC5_hyperparameters"):
        method = row["method"].replace(" ", "").lower() or method
        found[method, _FIELDS[row["hyperparameter"]]] = row["value"].strip("[]")
    return found


def _listed(name: str, values: Sequence[Any]) -> str:
    if name == "top_layers":
        values = ["all" if value is None else value for value in values]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values) and len(values) > _LISTED:
        return f"{min(numbers):.3g} to {max(numbers):.3g} ({len(values)} values)"
    ordered = sorted(numbers) if len(numbers) == len(values) else values
    return "; ".join(map(_value, ordered))


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
