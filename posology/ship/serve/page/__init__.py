"""The page at `/`, on which the server's models can be tried: plain files, nothing to build, nothing from outside.

`page.js` holds the state and the form, `client.js` asks the server, `labels.js`, `entities.js` and `redacted.js` show
what it answers, `text.js` turns the server's offsets (Unicode code points) into those of JavaScript (UTF-16 units).
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["POLICY", "StaticFile", "files"]

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy under which the page works."""

_FOLDER = Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class StaticFile(NamedTuple):
    """What is sent for one path: header `Content-Type`, body, and header `ETag` with its quotation marks."""

    content_type: str
    content: bytes
    etag: str


@cache
def files() -> dict[str, StaticFile]:
    """Every file of the page by its path below the server's root; `index.html` is `/`."""
    found = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            name = "/" if path.name == "index.html" else f"/{path.name}"
            found[name] = StaticFile(_TYPES[path.suffix], content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found
