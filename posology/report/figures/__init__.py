"""A report's figures: SVG and PDF for print, with captions and what was left out in a README beside them.

choose.py    which configurations a figure shows: validation chooses, test is drawn
style.py     one look for each method, sizes, axes, files that do not change unless the results do
scores.py    score against trained parameters, and by domain of pretraining
budgets.py   score against training time and labelled examples; learning curves
rank.py      what the rank does
pareto.py    score against cost, latency and size
quality.py   reliability, and each label's F1
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from posology.files import staged_file
from posology.report.figures import budgets, pareto, quality, rank, scores, style
from posology.report.figures.style import Drawing, LeftOut, Looks
from posology.report.results import Results

FIGURES: dict[str, tuple[str, Callable[[Results, Looks], Drawing]]] = {
    "figure1-parameters": ("Score against trained parameters (Fig. 1)", scores.parameters),
    "figure2-domains": ("Score by domain of pretraining (Fig. 2)", scores.domains),
    "figure3a-time": ("Score against training time (Fig. 3a)", budgets.time),
    "figure3b-shots": ("Score against labelled documents (Fig. 3b)", budgets.shots),
    "figure-b4-rank": ("Effect of the rank (Fig. B.4)", rank.rank),
    "pareto": ("Pareto front of score and cost", pareto.pareto),
    "reliability": ("Reliability of the best configurations", quality.reliability),
    "learning-curves": ("Learning curves of the best configurations", budgets.learning),
    "labels": ("Results by label of the best configurations", quality.labels),
}
"""Names of the files without ending, with title and what draws them. The numbers are the paper's."""

README = "README.md"


def write_figures(results: Results, out: Path) -> list[Path]:
    """Draws every figure for which the results have what it needs; the same results give the same bytes.

    Files of an earlier report that are no longer drawn are removed.

    Args:
        results: of a ledger.
        out: a folder, made where it is missing; it gets NAME.svg and NAME.pdf for the names of `FIGURES`, and a
            README.md with captions and with what was left out and why.

    Returns:
        What was written, the README last.

    Raises:
        UserError: a file cannot be written.
    """
    written: list[Path] = []
    parts = [f"# {results.title}: figures\n"]
    left_out = []
    looks = Looks(results)
    with style.context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        for name, (title, draw) in FIGURES.items():
            try:
                drawing = draw(results, looks)
            except LeftOut as reason:
                left_out.append(f"- {title}: {str(reason).removesuffix('.')}.")
                for kind in ("svg", "pdf"):
                    (out / f"{name}.{kind}").unlink(missing_ok=True)
                continue
            style.lay_out(drawing)
            written += style.save(drawing.figure, out, name, title, drawing.caption)
            parts.append(_section(name, title, drawing))
    if left_out:
        parts.append("\n".join(["## Left out", "", *left_out, ""]))
    with staged_file(out / README) as staging:
        staging.write_text("\n".join(parts), encoding="utf-8")
    return [*written, out / README]


def _section(name: str, title: str, drawing: Drawing) -> str:
    lines = [f"## {title}", "", f"![{title}]({name}.svg)", "", f"[PDF]({name}.pdf). {drawing.caption}", ""]
    if drawing.remarks:
        lines += [*(f"- {remark}" for remark in drawing.remarks), ""]
    return "\n".join(lines)
