"""The comparison of runs as one self-contained HTML page, and as a table for the terminal."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from posology.files import staged_file
from posology.report.chart import Markers, chart
from posology.report.runs import (
    RunRow,
    bytes_text,
    compare,
    count_text,
    decimal_text,
    duration_text,
    headline,
    metric_label,
    score_text,
)

__all__ = ["RunRow", "comparison_table", "write_page"]

_VERSIONS_OF = ("posology", "torch", "transformers", "peft")


def write_page(path: Path, title: str, runs: list[RunRow], notes: list[str]) -> Path:
    """Writes one HTML file that shows the runs and refers to nothing outside itself.

    The page holds a verdict and a chart for each task, a table of all runs that can be sorted and filtered,
    and the same rows as JSON in the element `#posology-data`, to which table rows and chart points refer by
    `data-run`. Table and charts are there without scripts; a Content-Security-Policy lets only this page's
    own style and script run and forbids every request.

    Args:
        path: the file to write, replaced if it exists; only its owner can read it.
        title: what was compared.
        runs: at least one run; those of one task and metric are compared with each other.
        notes: sentences about how the runs came about, shown below the table. No note text belongs here.

    Returns:
        `path`.

    Raises:
        ValueError: there is no run to show.
        UserError: the file cannot be written.
    """
    if not runs:
        raise ValueError("a page needs at least one run")
    page = _render(title, runs, notes)
    with staged_file(Path(path)) as staging:
        staging.write_text(page, encoding="utf-8")
    return Path(path)


def _render(title: str, runs: Sequence[RunRow], notes: Sequence[str]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count_text, "decimal": decimal_text, "duration": duration_text, "metric": metric_label, "size": bytes_text,
    }  # fmt: skip
    # The policy names the hashes of exactly these two texts, so they go into the page unchanged.
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(
        style=Markup(style), script=Markup(script), policy=policy, notes=notes, **_content(title, runs)
    )


def _content(title: str, runs: Sequence[RunRow]) -> dict[str, Any]:
    comparisons = compare(runs)
    ordered = [run for comparison in comparisons for run in comparison.rows]
    markers = Markers(ordered)
    sections, start = [], 0
    for comparison in comparisons:
        indices = range(start, start + len(comparison.rows))
        start += len(comparison.rows)
        sections.append({"comparison": comparison, "sentences": headline(comparison),
                         "chart": chart(comparison, markers, indices)})  # fmt: skip
    today, versions = date.today(), _versions()
    rows = [
        {"run": run, "comparison": comparison, "marker": markers(run.method, run.backbone)}
        for comparison in comparisons
        for run in comparison.rows
    ]
    data = {"title": title, "date": today.isoformat(), "versions": versions, "runs": [_plain(run) for run in ordered]}
    return {
        "title": title,
        "date": f"{today.day} {today:%B %Y}",
        "versions": versions,
        "sections": sections,
        "rows": rows,
        "markers": markers,
        "extra_columns": list(dict.fromkeys(name for run in ordered for name in run.extra)),
        "data": data,
    }


def _plain(run: RunRow) -> dict[str, Any]:
    """The run as JSON can hold it: what is not a number becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(run).items()
    }


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _versions() -> dict[str, str]:
    versions = {"Python": platform.python_version()}
    for name in _VERSIONS_OF:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def comparison_table(runs: Sequence[RunRow]) -> str:
    """The comparison as plain text for a terminal: one table for each task, best run first.

    `*` marks the best run of a task, `=` those whose 95 % intervals overlap that of the best.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), width=120, color_system=None, force_terminal=False)
    for comparison in compare(runs):
        table = Table(box=box.SIMPLE_HEAD, title=Text(comparison.task), title_justify="left", title_style="")
        table.add_column("")
        for heading in ("method", "backbone"):
            table.add_column(heading, overflow="fold")
        score = f"{metric_label(comparison.metric)} (95 % interval)"
        for heading in (score, "trainable parameters", "seconds", "adapter size"):
            table.add_column(heading, justify="right")
        for run in comparison.rows:
            mark = "*" if run is comparison.best else "=" if run in comparison.level else ""
            cells = (mark, run.method, run.backbone, score_text(run), f"{run.trainable_parameters:,}",
                     decimal_text(run.seconds), bytes_text(run.adapter_bytes))  # fmt: skip
            table.add_row(*map(Text, cells))
        console.print(table)
    console.print("* best of its task   = its interval overlaps that of the best", highlight=False)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
