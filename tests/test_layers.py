"""A module may import from its own layer and from layers to the left of it, never from one to the right."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import posology

ROOT = Path(posology.__file__).parent

LAYERS = [
    {"errors", "files", "console", "machine", "seed"},
    {"catalog"},
    {"corpus"},
    {"synthetic"},
    {"tasks"},
    {"evaluation"},
    {"engine"},
    {"measure"},
    {"study"},
    {"report"},
    {"ship"},
    {"pretrain"},
    {"demo"},
    {"doctor"},
    {"render"},
    {"cli"},
    {"__init__", "__main__"},  # the public interface and the command: they may see everything
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def _imports(source: str, package: str, parts: set[str]) -> set[tuple[int, str]]:
    """The `(line, part)` of every import of a part of posology, inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "posology":
                found.add((node.lineno, rest[0] if rest and rest[0] in parts else "__init__"))
    return found


def _violations(root: Path) -> list[str]:
    parts = {path.stem for path in root.glob("*.py")} | {path.parent.name for path in root.glob("*/__init__.py")}
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        part = inside.parts[0].removesuffix(".py")
        package = ".".join(["posology", *inside.parent.parts])
        for line, imported in sorted(_imports(path.read_text(encoding="utf-8"), package, parts)):
            # `from posology import __version__` is how any layer learns the version.
            if imported != "__init__" and imported != part and RANK[imported] > RANK[part]:
                found.append(f"{inside}:{line}: {part} imports {imported}")
    return found


def test_every_part_has_a_layer() -> None:
    parts = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert parts <= set(RANK), "name new parts in LAYERS, where they belong"


def test_imports_point_left() -> None:
    assert not (found := _violations(ROOT)), "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "from posology.engine import train",
        "import posology.engine.train",
        "from posology import engine",
        "from ..engine import train",
        "from .. import engine",
        "def later():\n    from posology.engine import train",
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, line: str) -> None:
    for name, source in {"corpus/__init__.py": "", "corpus/reader.py": line, "engine/__init__.py": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    (violation,) = _violations(tmp_path)
    assert violation.endswith("corpus imports engine")
