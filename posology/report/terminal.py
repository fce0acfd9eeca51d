"""A comparison as plain text for a terminal."""

from __future__ import annotations

import io

from posology.report.results import Results
from posology.report.sentences import seconds
from posology.report.tables import standings
from posology.report.text import bytes_text, decimal_text, metric_label, score_text

_MARKS = {"best": "*", "not shown to be worse": "=", "not compared": "?"}


def comparison_table(results: Results, rows: int = 20) -> str:
    """One table for each task, the best configuration first.

    `*` marks the best of a task, `=` those that are not shown to be worse, `?` those that were not compared with it and
    might not be.

    Args:
        results: of a ledger.
        rows: of each table, at most.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), width=120, color_system=None, force_terminal=False)
    for task in results.tasks:
        table = Table(box=box.SIMPLE_HEAD, title=Text(task.task), title_justify="left", title_style="")
        table.add_column("")
        table.add_column("configuration", overflow="fold")
        score = f"{metric_label(task.metric)} (95 % interval)"
        for heading in (score, "trainable parameters", "seconds", "stored"):
            table.add_column(heading, justify="right")
        standing = standings(task)
        for each in task.configurations[:rows]:
            run = each.first
            cells = (_MARKS.get(standing[each.name], ""), each.name, score_text(each.mean),
                     f"{run.trainable_parameters:,}", decimal_text(seconds(each)), bytes_text(run.adapter_bytes))  # fmt: skip
            table.add_row(*map(Text, cells))
        console.print(table)
        if (more := len(task.configurations) - rows) > 0:
            console.print(f"... and {more} more", highlight=False)
    console.print("* best of its task   = not shown to be worse   ? not compared with it", highlight=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
