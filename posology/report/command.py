"""`posology report`: a folder of tables and figures and a page, from a ledger."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from posology import console
from posology.files import check_free, staged_folder, write_json
from posology.report.results import Results

MARKER = "report.json"


def report(
    ledger: Path,
    *,
    out: Path,
    study: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    title: str | None = None,
    price: str = "own-server",
    prices: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write tables (Markdown, LaTeX, CSV), figures (SVG, PDF) and one offline HTML page about the runs of a ledger.

    Every score has its interval, configurations are compared in pairs on the same documents, and what that allows to be
    said is said in sentences. Nothing written holds text of documents. The ledger may be in use by a study.

    Args:
        ledger: the file.
        out: the folder to write; must be new or empty.
        study: names of studies in the ledger; all by default.
        title: of the report.
        price: of the machine, by its name in prices.yaml (`posology study prices` lists them).
        prices: a file of your own in the form of prices.yaml.
        overwrite: replace `out`, where it is a report.

    Returns:
        `out`, `page`, `tables`, `figures` (paths), `runs`, `tasks` (numbers), and `verdicts`: for each task what may be
        said.
    """
    from posology.report.reading import read

    check_free(Path(out), marker=MARKER, overwrite=overwrite)
    return write_report(read(ledger, studies=study, price=price, prices=prices, title=title), out, overwrite=overwrite)


def write_report(results: Results, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes the folder of a report, all of it or nothing, for its owner only; arguments and result as of `report`.

    Raises:
        UserError: the folder is in the way or cannot be written.
    """
    from posology.report.figures import write_figures
    from posology.report.page import write_page
    from posology.report.tables import write_tables

    out = Path(out)
    with staged_folder(out, marker=MARKER, overwrite=overwrite) as staging, console.progress("writing", 3) as advance:
        (staging / "tables").mkdir()
        tables = [path.relative_to(staging) for path in write_tables(results, staging / "tables")]
        advance()
        (staging / "figures").mkdir()
        figures = [path.relative_to(staging) for path in write_figures(results, staging / "figures")]
        advance()
        page = write_page(staging / "index.html", results).relative_to(staging)
        advance()
        (staging / "README.md").write_text(_readme(results, tables, figures), encoding="utf-8")
        verdicts = {
            task.task: {"best": task.best, "cheapest": task.cheapest, "sentences": task.sentences}
            for task in results.tasks
        }
        write_json(staging / MARKER, {"title": results.title, "verdicts": verdicts, "notes": results.notes})
        for path in staging.rglob("*"):
            os.chmod(path, 0o700 if path.is_dir() else 0o600)
    return {
        "out": str(out),
        "page": str(out / page),
        "tables": [str(out / path) for path in tables],
        "figures": [str(out / path) for path in figures],
        "runs": sum(len(each.runs) for task in results.tasks for each in task.configurations),
        "tasks": len(results.tasks),
        "verdicts": verdicts,
    }


def _readme(results: Results, tables: list[Path], figures: list[Path]) -> str:
    """What lies in the folder, and what it says."""
    lines = [f"# {results.title}", "", "- [index.html](index.html): everything, to look at; needs no network"]
    for kind, paths in (("tables", tables), ("figures", figures)):
        for name in dict.fromkeys(path.stem for path in paths):
            own = [path for path in paths if path.stem == name]
            links = ", ".join(f"[{path.suffix[1:]}]({path.as_posix()})" for path in own)
            lines.append(f"- {kind}/{name}: {links}")
    for task in results.tasks:
        lines += ["", f"## {task.task}", "", *(f"- {sentence}" for sentence in task.sentences)]
    lines += ["", "## Notes", "", *(f"- {note}" for note in results.notes)]
    return "\n".join(lines) + "\n"
