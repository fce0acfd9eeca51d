"""Who asked which model when. Of a text only its SHA-256 is kept."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from posology.errors import UserError


class Audit:
    """A file with one JSON object in each line, readable by its owner only; it only grows.

    Args:
        path: where it is, or will be.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, path: Path):
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", "Name another file with --audit", path) from error

    def note(self, who: str, what: str, models: Sequence[str], texts: Sequence[str] = (), **more: str) -> None:
        """Writes a line.

        Args:
            who: the name of a token, or an address.
            what: `classify`, `entities`, `redact`, `add` or `remove`.
            models: names.
            texts: what was sent.
            more: further facts.

        Raises:
            OSError: it could not be written.
        """
        now = time.time()
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z",
            "who": who,
            "what": what,
            "models": list(models),
            **more,
            "sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
        }
        content = f"{json.dumps(line)}\n".encode()
        if os.write(self._file, content) != len(content):  # in one piece, so that lines do not mix
            raise OSError("the line was not written as a whole")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)
