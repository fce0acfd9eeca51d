"""The report as one self-contained HTML page.

`content.py` says what stands on it, `page.html.j2` and `page.css` how it looks, `*.js` what it does. The leaderboard's
first rows, what may be said of each task and the notes are there without scripts; everything else is drawn from the
JSON in `#posology-data` and, a hundred runs a block, in `#runs-0`, `#runs-1` ..., which are read when a card is opened.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from posology.files import staged_file
from posology.report.page.content import content, versions
from posology.report.results import Results

__all__ = ["write_page"]

_FOLDER = Path(__file__).parent
_SCRIPTS = ("page.js", "axes.js", "tradeoff.js", "curves.js", "table.js", "card.js")


def write_page(path: Path, results: Results) -> Path:
    """Writes one HTML file that refers to nothing outside itself.

    A Content-Security-Policy lets only this page's own style and script run and forbids every request. Artifacts'
    folders are left out, and so is all text of notes, which `results` does not have.

    Args:
        path: the file to write, replaced if it exists; only its owner can read it.
        results: what to show.

    Returns:
        `path`.

    Raises:
        UserError: the file cannot be written.
    """
    page = render(results)
    with staged_file(Path(path)) as staging:
        staging.write_text(page, encoding="utf-8")
    return Path(path)


def render(results: Results) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # The policy names the hashes of exactly these two texts, so they go into the page unchanged.
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    script = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(
        style=Markup(style), script=Markup(script), policy=policy, versions=versions(), **content(results)
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
