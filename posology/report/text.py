"""Numbers as a report writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from posology.report.results import Score

UNKNOWN = "–"
"""Stands where a number is undefined or was not measured."""

_METRIC_LABELS = {
    "macro_f1": "macro-F1", "micro_f1": "micro-F1", "weighted_f1": "weighted F1", "entity_f1": "entity F1",
    "entity_macro_f1": "entity macro-F1", "auroc": "AUROC", "auroc_ovo": "AUROC (one against one)",
    "average_precision": "average precision", "brier": "Brier score",
}  # fmt: skip


def metric_label(metric: str) -> str:
    """What people call a metric: `macro-F1`."""
    return _METRIC_LABELS.get(metric, metric.replace("_", " "))


def score_text(score: Score, digits: int = 3) -> str:
    """`0.812 (0.774 to 0.846)`; without interval where there is none, a dash where it is undefined."""
    if score.value is None:
        return UNKNOWN
    if score.low is None or score.high is None:
        return f"{score.value:.{digits}f}"
    return f"{score.value:.{digits}f} ({score.low:.{digits}f} to {score.high:.{digits}f})"


def points_text(value: float, *, signed: bool = True) -> str:
    """A difference of scores in points, a point being 0.01: `+1.6`, `-0.8`, `0.0`."""
    rounded = round(100 * value, 1) or 0.0  # no -0.0
    return f"{rounded:+.1f}" if signed and rounded else f"{rounded:.1f}"


def decimal_text(value: float | None) -> str:
    """`1,234.5`; a dash where it is not known."""
    return f"{value:,.1f}" if value is not None and math.isfinite(value) else UNKNOWN


def count_text(count: float | None) -> str:
    """A count to three figures: `820`, `59.9 k`, `22.7 M`, `6.74 G`."""
    return UNKNOWN if count is None else _scaled(count, ("", " k", " M", " G"))


def bytes_text(size: float | None) -> str:
    """A size to three figures in decimal units: `210 kB`, `90.9 MB`."""
    return UNKNOWN if size is None else _scaled(size, (" bytes", " kB", " MB", " GB"))


def flops_text(flops: float | None) -> str:
    """Floating-point operations to three figures: `45 MFLOP`, `1.2 TFLOP`."""
    return UNKNOWN if flops is None else _scaled(flops, tuple(f" {unit}FLOP" for unit in ("", "k", "M", "G", "T", "P")))


def money_text(value: float | None, currency: str | None) -> str:
    """`0.0042 EUR`, `12.30 EUR`: see `figures_text`; a dash where there is no price."""
    if value is None or currency is None:
        return UNKNOWN
    return f"{figures_text(value)} {currency}"


def figures_text(value: float | None) -> str:
    """Two decimals, or two significant figures where that is more; never an exponent: `12.30`, `0.0042`."""
    if value is None:
        return UNKNOWN
    if value >= 0.095 or value <= 0:
        return f"{value:,.2f}"
    return f"{value:.{1 - math.floor(math.log10(value))}f}"


def _scaled(value: float, units: Sequence[str]) -> str:
    power = 0
    # 999.5 would be printed as 1000 of the smaller unit.
    while value >= 999.5 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    digits = 0 if power == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    number = f"{value:,.{digits}f}"
    return (number.rstrip("0").rstrip(".") if digits else number) + units[power]


def duration_text(seconds: float | None) -> str:
    """`8.2 s`, `75 s`, `12 min 5 s`, `3 h 20 min`; a dash where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
