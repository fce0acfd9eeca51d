"""How methods and backbones are drawn, the same on every chart of a page."""

from __future__ import annotations

from collections.abc import Iterable

from posology.report.results import Run

METHOD_ORDER = ("full", "lora", "ia3", "head", "prefix", "prompt", "p-tuning", "dora", "rslora", "bitfit", "layernorm")
"""Methods with a colour and shape of their own on every page, as in the figures; others follow in alphabetical order."""

COLOURS = 7
"""Colours `--c0` ... in the style sheet; with a number of shapes prime to it, each method has its own pair."""

BASELINE = 7
"""The grey `--c7` of baselines, which have no backbone."""

SHAPES = (
    "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0z",
    "M-5 -5h10v10h-10z",
    "M0 -6.5L6.2 4.8H-6.2z",
    "M0 -7L7 0L0 7L-7 0z",
    "M0 6.5L6.2 -4.8H-6.2z",
    "M-2.2 -6.5h4.4v4.3h4.3v4.4h-4.3v4.3h-4.4v-4.3h-4.3v-4.4h4.3z",
    "M-3.2 -6L0 -2.8L3.2 -6L6 -3.2L2.8 0L6 3.2L3.2 6L0 2.8L-3.2 6L-6 3.2L-2.8 0L-6 -3.2z",
    "M0 -6.6L6.3 -2L3.9 5.4H-3.9L-6.3 -2z",
    "M-6.5 0L-3.3 -5.7H3.3L6.5 0L3.3 5.7H-3.3z",
)
"""Marker outlines as SVG paths about the origin, in pixels."""

FILLS = {
    "solid": "",
    "hollow": "",
    "dotted": "M-1.6 0a1.6 1.6 0 1 0 3.2 0a1.6 1.6 0 1 0-3.2 0z",
    "pale": "",
    "barred": "M-3 0H3",
    "upright": "M0 -3V3",
}
"""How a marker is filled, by backbone, and what is drawn inside it; a seventh backbone looks like the first."""


def methods(runs: Iterable[Run]) -> dict[str, tuple[int, int]]:
    """Colour and shape of each method that is there, baselines last."""
    adapted = {run.method: run.backbone is not None for run in runs}
    order = [*METHOD_ORDER, *sorted({method for method, has in adapted.items() if has} - set(METHOD_ORDER))]
    baselines = sorted(method for method, has in adapted.items() if not has and method not in order)
    looks = {method: (index % COLOURS, index % len(SHAPES)) for index, method in enumerate(order) if method in adapted}
    # From the last shape backwards: the first ones belong to common methods.
    return looks | {
        method: (BASELINE, -1 - index % len(SHAPES) + len(SHAPES)) for index, method in enumerate(baselines)
    }


def backbones(runs: Iterable[Run]) -> dict[str, tuple[str, int]]:
    """Filling and parameters of each backbone, the largest first."""
    sizes: dict[str, int] = {}
    for run in runs:
        if run.backbone is not None:
            sizes[run.backbone] = max(run.backbone_parameters, sizes.get(run.backbone, 0))
    largest_first = sorted(sizes, key=lambda name: (-sizes[name], name))
    return {name: (list(FILLS)[index % len(FILLS)], sizes[name]) for index, name in enumerate(largest_first)}
