"""Tables as Markdown, LaTeX and CSV: one type, three writers; the leaderboard and the comparisons as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from posology.report import comparing
from posology.report.results import Configuration, Difference, Results, TaskResults
from posology.report.sentences import money, seconds
from posology.report.text import UNKNOWN, metric_label

Mark = Literal["best", "peft", "both"]


@dataclass(frozen=True, slots=True)
class Table:
    """A table as text.

    Attributes:
        name: of its files, without ending.
        title: above it.
        columns: headings.
        rows: cells, as many as there are headings.
        marks: by row and column: `best` is bold, `peft` (the best of the parameter-efficient methods) underlined, `both`
            both.
        notes: sentences below it.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: Mapping[tuple[int, int], Mark] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.name}: a row of {len(row)} cells under {len(self.columns)} headings")


def markdown(table: Table) -> str:
    """GitHub's Markdown; underlining is `<u>`, as Markdown has none."""
    wrapped = {"best": "**{}**", "peft": "<u>{}</u>", "both": "<u>**{}**</u>"}
    numbers = _numeric(table)
    lines = [f"# {table.title}", "", _markdown_row(map(_markdown, table.columns))]
    lines.append(_markdown_row("--:" if number else "---" for number in numbers))
    for position, row in enumerate(table.rows):
        cells = []
        for column, cell in enumerate(row):
            mark = table.marks.get((position, column))
            cells.append(wrapped[mark].format(_markdown(cell)) if mark else _markdown(cell))
        lines.append(_markdown_row(cells))
    return "\n".join(lines) + "".join(f"\n\n{_markdown(note)}" for note in table.notes) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    for character in "\\|*_<>`[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def latex(table: Table) -> str:
    """A `longtable` with booktabs' rules, to be input into a document with the packages booktabs and longtable."""
    wrapped = {"best": r"\textbf{{{}}}", "peft": r"\underline{{{}}}", "both": r"\underline{{\textbf{{{}}}}}"}
    lines = [
        "% needs \\usepackage{booktabs,longtable}",
        r"\begin{longtable}{" + "".join("r" if number else "l" for number in _numeric(table)) + "}",
        r"\caption{" + _latex(table.title) + r"}\label{tab:" + table.name + r"}\\",
        r"\toprule",
        " & ".join(map(_latex, table.columns)) + r" \\",
        r"\midrule",
        r"\endhead",
    ]
    for position, row in enumerate(table.rows):
        cells = []
        for column, cell in enumerate(row):
            mark = table.marks.get((position, column))
            cells.append(wrapped[mark].format(_latex(cell)) if mark else _latex(cell))
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{longtable}"]
    lines += [r"\noindent{\footnotesize " + _latex(note) + r"\par}" for note in table.notes]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "[": "{[}", "]": "{]}", UNKNOWN: "--",
}  # fmt: skip  # a bracket that begins a row would be taken for the optional argument of the line break before it


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def latex_document(tables: Sequence[Table]) -> str:
    """A document that inputs the files of these tables, and compiles as it is."""
    inputs = "\n".join(f"\\input{{{table.name}.tex}}\n\\clearpage" for table in tables)
    return (
        "\\documentclass[a4paper]{article}\n"
        "\\usepackage[utf8]{inputenc}\n\\usepackage[T1]{fontenc}\n"
        "\\usepackage[margin=15mm,landscape]{geometry}\n\\usepackage{booktabs,longtable}\n"
        "\\begin{document}\n\\footnotesize\n\\setlength{\\tabcolsep}{3pt}\n"
        f"{inputs}\n\\end{{document}}\n"
    )


def as_csv(table: Table) -> str:
    """Comma-separated values under one line of headings; what is not known is empty. Marks and notes are left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([["" if cell == UNKNOWN else cell for cell in row] for row in table.rows])
    return text.getvalue()


def _numeric(table: Table) -> list[bool]:
    """For each column whether its cells begin as numbers do."""
    return [
        any(_is_number(row[column]) for row in table.rows)
        and all(row[column] in ("", UNKNOWN) or _is_number(row[column]) for row in table.rows)
        for column in range(len(table.columns))
    ]


def _is_number(cell: str) -> bool:
    return cell.lstrip("+-")[:1].isdigit()


WRITERS: dict[str, Callable[[Table], str]] = {"md": markdown, "tex": latex, "csv": as_csv}


def write_tables(results: Results, out: Path) -> list[Path]:
    """Writes every table in every form into a folder that exists, and `tables.tex`, which inputs them all.

    Returns:
        The files.
    """
    tables = all_tables(results)
    paths = []
    for table in tables:
        for ending, write in WRITERS.items():
            paths.append(out / f"{table.name}.{ending}")
            paths[-1].write_text(write(table), encoding="utf-8")
    paths.append(out / "tables.tex")
    paths[-1].write_text(latex_document(tables), encoding="utf-8")
    return paths


def all_tables(results: Results) -> list[Table]:
    """The leaderboard, the comparisons, and the tables of the paper for which there is something to show."""
    from posology.report import published

    tables = [leaderboard(results), comparisons(results), *published.tables(results)]
    return [table for table in tables if table.rows]


# --- our own ------------------------------------------------------------------------------------------------------


def leaderboard(results: Results) -> Table:
    """Every configuration, by task, the best first."""
    columns = (
        "Task", "Rank", "Configuration", "Domain", "Backbone parameters", "Trainable parameters", "Seeds", "Metric",
        "Score", "Low", "High", "Median", "SD", "Training (s)", "Cost", "Currency", "Stored bytes", "Beside the best",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    marks: dict[tuple[int, int], Mark] = {}
    for task in results.tasks:
        peft = next((each.name for each in task.configurations if is_peft(each) and each.mean.value is not None), None)
        standing = standings(task)
        for rank, each in enumerate(task.configurations, start=1):
            is_best, is_best_peft = each.name == task.best, each.name == peft
            if is_best or is_best_peft:
                marks[len(rows), 8] = "both" if is_best and is_best_peft else "best" if is_best else "peft"
            run, paid = each.first, money(each)
            rows.append((
                task.task, str(rank) if each.mean.value is not None else UNKNOWN, each.name, run.domain or UNKNOWN,
                str(run.backbone_parameters), str(run.trainable_parameters), str(len(each.runs)),
                metric_label(task.metric), fixed(each.mean.value), fixed(each.mean.low), fixed(each.mean.high),
                fixed(each.median), fixed(each.sd), f"{seconds(each):.1f}", UNKNOWN if paid is None else f"{paid:.6f}",
                run.currency or UNKNOWN, str(run.adapter_bytes), standing[each.name],
            ))  # fmt: skip
    notes = (
        "Score: mean over seeds with its 95 % interval, on test. Best of a task in bold, best parameter-efficient method "
        "underlined. Beside the best: what the paired comparison, or else the intervals, allow to be said.",
    )
    return Table("leaderboard", "Leaderboard", columns, tuple(rows), marks, notes)


def standings(task: TaskResults) -> dict[str, str]:
    """For each configuration `best`, `worse`, `not shown to be worse`, `not compared` or `no score`."""
    if task.best is None:
        return dict.fromkeys((each.name for each in task.configurations), "no score")
    best = task.named(task.best)
    by_pair: dict[frozenset[str], Difference] = {
        frozenset((each.first, each.second)): each for each in task.differences
    }
    found = {}
    for each in task.configurations:
        difference = by_pair.get(frozenset((best.name, each.name)))
        if each.name == best.name:
            found[each.name] = "best"
        elif each.mean.value is None:
            found[each.name] = "no score"
        elif difference is not None:
            worse = comparing.shown(difference, best, each)
            found[each.name] = "worse" if worse else "not shown to be worse"
        else:
            found[each.name] = "not compared" if comparing.overlap(each.mean, best.mean) else "worse"
    return found


def comparisons(results: Results) -> Table:
    """Every pair that was compared."""
    columns = ("Task", "First", "Second", "Difference", "Low", "High", "p", "p corrected", "In words")
    rows = [
        (task.task, each.first, each.second, *map(fixed, (each.value, each.low, each.high, each.p, each.corrected)),
         each.sentence)
        for task in results.tasks
        for each in task.differences
    ]  # fmt: skip
    notes = (
        "Difference: first less second, on the same test documents, with its 95 % interval. p: two-sided; corrected by "
        "Holm's method for all comparisons of the task.",
    )
    return Table("comparisons", "Comparisons on the same documents", columns, tuple(rows), {}, notes)


def is_peft(configuration: Configuration) -> bool:
    """Whether a backbone was adapted by a parameter-efficient method: neither whole, nor by its head alone."""
    return configuration.first.backbone is not None and configuration.first.method not in ("full", "head")


def fixed(value: float | None, digits: int = 3) -> str:
    """Three decimals; a dash where it is not known."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"
