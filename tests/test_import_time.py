"""What `import posology` and the command's help may not load: seconds of imports for a line of text."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "polars", "sklearn", "scipy", "matplotlib", "peft", "optuna", "datasets", "pandas")


def _heavy_after(statements: str) -> list[str]:
    code = f"{statements}\nimport sys\nprint('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1].split()[1:]


def test_the_check_sees_a_heavy_import() -> None:
    assert _heavy_after("import polars") == ["polars"]


def test_importing_the_package_is_light() -> None:
    assert _heavy_after("import posology") == []


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["prepare", "--help"], ["--version"]])
def test_help_is_light(arguments: list[str]) -> None:
    run = f"""
import sys
sys.argv = ["posology", *{arguments!r}]
from posology.cli import main
try:
    code = main()
except SystemExit as end:
    code = end.code
assert not code, code"""
    assert _heavy_after(run) == []
