"""Which of some trained candidates to take: the Pareto front, the dose, or which limit none of them keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posology.errors import UserError
from posology.study.candidates import Candidate

POINT = 0.01
"""Candidates whose scores differ by less are as good as each other."""
_WORDS = {
    "max_latency_ms": ("takes {:,.3g} ms for a document (95th percentile)", "{:,.3g} ms are allowed"),
    "max_memory_mb": ("needs {:,.0f} MB to predict", "{:,.0f} MB are allowed"),
    "max_seconds": ("takes about {:,.0f} s to train on everything", "{:,.0f} s are left for it"),
    "max_cost": ("takes about {:,.0f} s to train on everything", "the money lasts for {:,.0f} s"),
    "min_metric": ("reaches {:.3f} on validation", "{:.3f} are asked for"),
}
_MENDS = {
    "max_latency_ms": "allow {:,.3g} ms",
    "max_memory_mb": "allow {:,.0f} MB",
    "max_seconds": "allow more than {:,.0f} s in all",
    "max_cost": "pay for more than {:,.0f} s in all",
    "min_metric": "be content with {:.3f}",
}

Option = Mapping[str, Any]
"""A trained candidate: `title`, `backbone`, `validation` (value, low, high), `seconds`, `money`, `latency_ms`,
`size_bytes`, `parameters` (of the backbone), and `breaks`, the limits that it does not keep."""


@dataclass(frozen=True)
class Limits:
    """What the user can afford; None for no limit.

    Attributes:
        max_seconds: wall clock of the whole prescription, the final training included.
        max_cost: money for it.
        max_latency_ms: 95th percentile, one document at a time.
        max_memory_mb: of prediction, beyond what the program itself takes.
        min_metric: of the task's metric on validation.
    """

    max_seconds: float | None = None
    max_cost: float | None = None
    max_latency_ms: float | None = None
    max_memory_mb: float | None = None
    min_metric: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise UserError(f"{value:g} can never be kept", "Give more than 0", f"--{name.replace('_', '-')}")

    def time(self, per_hour: float) -> tuple[float | None, str]:
        """Seconds that time and money allow, at so much money an hour, and the name of the tighter limit."""
        # What costs nothing lasts for ever.
        paid = None if self.max_cost is None or per_hour == 0 else self.max_cost / per_hour * 3600
        if paid is not None and (self.max_seconds is None or paid < self.max_seconds):
            return paid, "max_cost"
        return self.max_seconds, "max_seconds"

    def broken(self, name: str, figure: float) -> dict[str, tuple[float, float]]:
        """The figure and the limit by its name, where the figure does not keep it."""
        limit = getattr(self, name)
        if limit is None or (figure >= limit if name == "min_metric" else figure <= limit):
            return {}
        return {name: (figure, limit)}


def why(breaks: Mapping[str, tuple[float, float]]) -> str:
    """In words: what was measured or foretold, and what is allowed."""
    said = [", and ".join(_WORDS[name]).format(figure, limit) for name, (figure, limit) in breaks.items()]
    return "; ".join(said)


def on_front(options: Sequence[Option]) -> list[bool]:
    """Whether none of the others is as good in score, seconds, latency and size, and better in one of them."""

    def figures(option: Option) -> tuple[float, ...]:
        latency = option["latency_ms"]["p50"]
        return -option["validation"]["value"], option["seconds"], latency, option["size_bytes"]

    rows = [figures(option) for option in options]
    return [
        not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in rows) for own in rows
    ]


def recommended(options: Sequence[Option]) -> Option | None:
    """The smallest backbone, and of equals the quickest to train, within a point of the best that keeps all limits."""
    fit = [option for option in options if not option["breaks"]]
    if not fit:
        return None
    best = max(option["validation"]["value"] for option in fit)
    near = [
        option
        for option in fit
        if option["validation"]["value"] > best - POINT or option["validation"]["value"] == best
    ]
    return min(near, key=lambda option: (option["parameters"], option["seconds"]))


def reason(chosen: Option, options: Sequence[Option], metric: str) -> str:
    """Why it is recommended, in plain words."""
    fit = [option for option in options if not option["breaks"]]
    best = max(fit, key=lambda option: option["validation"]["value"])
    baseline = next((option for option in options if option["backbone"] is None), None)
    said = [f"{chosen['title']} reaches {metric} {_score(chosen)} on validation."]
    if chosen is baseline:
        others = [option for option in fit if option is not baseline]
        if others:
            rival = max(others, key=lambda option: option["validation"]["value"])
            gap = rival["validation"]["value"] - chosen["validation"]["value"]
            more = "less than a point more" if gap > 0 else "no more than that"
            said.append(
                f"It is the baseline, and as good: the best with a language model, {rival['title']}, reaches "
                f"{_score(rival)}, {more}. No language model is needed."
            )
        else:
            said.append("It is the baseline: no language model was trained within the limits.")
        return " ".join(said)
    if best is chosen:
        said.append("That is the best of all that were trained on everything.")
    else:
        said.append(
            f"The best, {best['title']}, reaches {_score(best)}: less than a point more, with "
            f"{best['parameters'] / 1e6:.1f}M parameters against {chosen['parameters'] / 1e6:.1f}M and "
            f"{best['seconds']:,.0f} s of training against {chosen['seconds']:,.0f} s."
        )
    if baseline is not None:
        gap = chosen["validation"]["value"] - baseline["validation"]["value"]
        note = f"The baseline {baseline['title']} reaches {_score(baseline)}, {100 * gap:.1f} points less"
        low, high = chosen["validation"]["low"], baseline["validation"]["high"]
        overlaps = low is not None and high is not None and low < high
        said.append(note + ("; their intervals overlap." if overlaps else "."))
    return " ".join(said)


def nearest(options: Sequence[Option], candidates: Iterable[Candidate]) -> dict[str, Any] | None:
    """What breaks the fewest limits by the least, trained or not; None where nothing was dropped for a limit."""
    rows = [dict(option) for option in options if option["breaks"]]
    known = {row["title"] for row in rows}
    rows += [
        candidate.record() | {"breaks": candidate.breaks, "validation": None}
        for candidate in candidates
        if candidate.breaks and candidate.title not in known
    ]
    return min(rows, key=lambda row: (len(row["breaks"]), _excess(row["breaks"])), default=None)


def infeasible(near: Mapping[str, Any], options: Sequence[Option], candidates: Sequence[Candidate]) -> str:
    """Which limits bind, and what the nearest that is possible would cost, in plain words."""
    breaks = near["breaks"]
    names = " and ".join(f"--{name.replace('_', '-')}" for name in breaks)
    mends = [_MENDS[name].format(figure) for name, (figure, _) in breaks.items()]
    said = [f"Nothing here keeps {names}. The nearest is {near['title']}: it {why(breaks)}."]
    if near.get("money") is not None:
        value, currency = near["money"]["value"], near["money"]["currency"]
        cost = f"its training takes about {near['seconds']:,.0f} s, {value:.4f} {currency}"
        said.append(f"To have it, {' and '.join(mends)}; {cost}.")
    trained = {option["title"] for option in options}
    others: dict[str, list[float]] = {}
    for candidate in candidates:
        if candidate.title not in trained and candidate.title != near["title"]:
            for name, (figure, _) in candidate.breaks.items():
                others.setdefault(name, []).append(figure)
    for name, figures in others.items():
        said.append(
            f"{len(figures)} other candidates were dropped for --{name.replace('_', '-')} before they were trained; "
            f"the nearest of them would have you {_MENDS[name].format(min(figures))}."
        )
    return " ".join(said)


def _excess(breaks: Mapping[str, tuple[float, float]]) -> float:
    """How many times too much, or too little, at worst."""
    return max(
        limit / max(1e-9, figure) if name == "min_metric" else figure / max(1e-9, limit)
        for name, (figure, limit) in breaks.items()
    )


def _score(option: Option) -> str:
    value, low, high = (option["validation"][name] for name in ("value", "low", "high"))
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")
