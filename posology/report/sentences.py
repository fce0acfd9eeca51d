"""What the numbers allow to be said, in plain sentences."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from posology.report.results import Configuration, Difference
from posology.report.text import (
    bytes_text,
    count_text,
    duration_text,
    metric_label,
    money_text,
    points_text,
    score_text,
)

_WITH_FULL = 4
"""Sentences on full fine-tuning against other methods, at most; the table of differences has all."""
_HOPELESS = 0.1
"""Where differences are more uncertain than this, nobody should choose by them."""
_FEW_GROUPS = 20
"""Intervals over fewer groups are not reliable."""


def nothing(metric: str) -> tuple[str, ...]:
    """Where no run has a score."""
    return (f"No run has a defined {metric_label(metric)}, so there is nothing to compare.",)


def of_difference(
    difference: Difference,
    first: Configuration,
    second: Configuration,
    *,
    overlap: bool,
    count: int,
    level: float = 0.05,
) -> str:
    """One comparison. The one that scores higher is named first, and the interval is of its lead.

    Args:
        difference: first less second.
        first, second: with their own intervals.
        overlap: whether these overlap.
        count: comparisons for which p values are corrected.
        level: below which a corrected p value shows a difference.
    """
    value, low, high = difference.value, difference.low, difference.high
    if value is None:
        return _by_intervals(first, second, overlap)
    higher, lower = (first, second) if value >= 0 else (second, first)
    lead = points_text(abs(value), signed=False)
    if low is None or high is None or difference.corrected is None or difference.p is None:
        return (
            f"{higher.name} and {lower.name} differ by {lead} points; the test set is too small for an interval, so "
            "nothing is shown."
        )
    if value < 0:
        low, high = -high, -low
    interval = f"95 % interval {points_text(low)} to {points_text(high)}"
    if difference.corrected < level:
        return (
            f"{higher.name} scores {lead} points higher than {lower.name}, {interval}, p {_p(difference.corrected)}"
            f"{_corrected(count)}: a difference is shown."
        )
    if low > 0:
        return (
            f"{higher.name} and {lower.name} differ by {lead} points, {interval}, but p {_p(difference.corrected)}"
            f"{_corrected(count)}: no difference shown."
        )
    return f"{higher.name} and {lower.name} differ by {lead} points, {interval}: no difference shown."


def _by_intervals(first: Configuration, second: Configuration, overlap: bool) -> str:
    missing = "answers by document are missing, so only their own intervals can be compared"
    if first.mean.value is None or second.mean.value is None:
        return f"{first.name} and {second.name} cannot be compared: one has no score."
    higher, lower = (first, second) if first.mean.value >= second.mean.value else (second, first)
    if overlap:
        return f"{higher.name} and {lower.name}: {missing}; they overlap, so no difference is shown."
    return f"{higher.name} and {lower.name}: {missing}; they do not overlap, so {higher.name} scores higher."


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}" if value < 0.1 else f"= {value:.2f}"


def _corrected(count: int) -> str:
    return f" (corrected for {count} comparisons)" if count > 1 else ""


def of_task(
    ordered: Sequence[Configuration],
    differences: Sequence[Difference],
    *,
    cheapest: Configuration,
    by_validation: Configuration | None,
    level: Collection[str],
    documents: tuple[int, int] | None,
) -> tuple[str, ...]:
    """A task's verdict, the most important first.

    Args:
        ordered: configurations with a score, the best first.
        differences: that were looked at.
        cheapest: of those not shown to be worse than the best.
        by_validation: what validation would have chosen.
        level: names of those that were compared with the best and are not shown to be worse.
        documents: documents and groups of the test split, where they are known.
    """
    best = ordered[0]
    several_seeds = any(len(each.runs) > 1 for each in ordered)
    by_pair = {frozenset((each.first, each.second)): each for each in differences}
    if len(ordered) == 1:
        return (
            f"{_scored(best)}. It is the only configuration with a score: there is nothing to compare it with.",
            *_size(documents, differences, several_seeds),
        )
    said = [f"{_scored(best)}. It scores highest of {len(ordered)} configurations."]
    half = _half_width(differences)
    if half is not None and half > _HOPELESS:
        said.append(
            f"Differences here are uncertain by {points_text(half, signed=False)} points: too much to choose by. What is "
            "not shown to be worse may be much worse."
        )
    said.append(_cheapest(best, cheapest, ordered, by_pair))
    if by_validation is not None:
        said.append(_validation(best, by_validation))
    said += _baseline(best, ordered, level, by_pair)
    said.append(_tally(best, ordered, level, by_pair))
    said += _compared(ordered, by_pair, cheapest)
    if differences and any(len(each.runs) == 1 for each in ordered):
        said.append(
            "What was trained with one seed is compared as the models that came out: another seed of the same method may come "
            "out otherwise, and nothing here says by how much. Three seeds or more compare methods."
        )
    return (*dict.fromkeys(filter(None, said)), *_size(documents, differences, several_seeds))


def _compared(
    ordered: Sequence[Configuration], by_pair: dict[frozenset[str], Difference], cheapest: Configuration
) -> list[str]:
    """The best and the next one; full fine-tuning and other methods on the same backbone."""
    best, following = ordered[0], ordered[1]
    by_name = {each.name: each.first for each in ordered}
    said = []
    if following is not cheapest and (difference := by_pair.get(frozenset((best.name, following.name)))):
        said.append(difference.sentence)
    with_full = []
    for each in by_pair.values():
        one, other = by_name[each.first], by_name[each.second]
        same = (one.backbone, one.shots, one.max_seconds) == (other.backbone, other.shots, other.max_seconds)
        if same and one.backbone is not None and (one.method == "full") != (other.method == "full"):
            with_full.append(each.sentence)
    return said + with_full[:_WITH_FULL]


def _scored(configuration: Configuration) -> str:
    run = configuration.first
    seeds = f", mean of {len(configuration.runs)} seeds" if len(configuration.runs) > 1 else ""
    trained = f"{count_text(run.trainable_parameters)} trainable parameters" if run.backbone else "no language model"
    return (
        f"{configuration.name}: {metric_label(run.metric)} {score_text(configuration.mean)}{seeds}, with {trained} and "
        f"{duration_text(seconds(configuration))} of training"
    )


def seconds(configuration: Configuration) -> float:
    """Of training, on average over its runs."""
    return float(np.mean([run.seconds for run in configuration.runs]))


def money(configuration: Configuration) -> float | None:
    """Cost of training, on average over its runs; None where there is no price."""
    costs = [run.cost for run in configuration.runs if run.cost is not None]
    return float(np.mean(costs)) if costs else None


def _cheapest(
    best: Configuration,
    cheapest: Configuration,
    ordered: Sequence[Configuration],
    by_pair: dict[frozenset[str], Difference],
) -> str:
    if cheapest is best:
        mine = (best.first.backbone_parameters, seconds(best))
        least = min((each.first.backbone_parameters, seconds(each)) for each in ordered)
        if least == mine:
            return "It is also the smallest and quickest."
        return "Nothing smaller or quicker was found that is not shown to be worse."
    difference = by_pair[frozenset((best.name, cheapest.name))]
    saving = ", ".join(_savings(best, cheapest))
    gap = ""
    if difference.value is not None and difference.low is not None and difference.high is not None:
        gap = (
            f" ({points_text(difference.value, signed=False)} points lower, 95 % interval "
            f"{points_text(difference.low)} to {points_text(difference.high)})"
        )
    return (
        f"The smallest and quickest that is not shown to be worse is {cheapest.name}, at "
        f"{score_text(cheapest.mean)}{gap}" + (f": {saving}." if saving else ".")
    )


def _savings(best: Configuration, cheapest: Configuration) -> list[str]:
    """What the cheaper one saves, where it is a fifth or more."""
    one, other = best.first, cheapest.first
    found = []
    if other.backbone is None and one.backbone is not None:
        found.append("no language model")
    elif other.backbone_parameters < 0.8 * one.backbone_parameters:
        found.append(
            f"a backbone of {count_text(other.backbone_parameters)} parameters instead of "
            f"{count_text(one.backbone_parameters)}"
        )
    if seconds(cheapest) < 0.8 * seconds(best):
        found.append(f"{duration_text(seconds(cheapest))} of training instead of {duration_text(seconds(best))}")
        spent, saved = money(best), money(cheapest)
        if spent is not None and saved is not None:
            found.append(f"{money_text(saved, other.currency)} instead of {money_text(spent, one.currency)}")
    if other.adapter_bytes < 0.8 * one.adapter_bytes:
        found.append(f"{bytes_text(other.adapter_bytes)} to store instead of {bytes_text(one.adapter_bytes)}")
    if other.shots is not None and (one.shots is None or other.shots < one.shots):
        found.append(f"{other.shots} documents per class" + (f" instead of {one.shots}" if one.shots else ""))
    return found


def _validation(best: Configuration, chosen: Configuration) -> str:
    if chosen.name == best.name:
        return f"Validation would have chosen {best.name}, too."
    return f"Validation would have chosen {chosen.name}, which has {score_text(chosen.mean)} on test."


def _baseline(
    best: Configuration,
    ordered: Sequence[Configuration],
    level: Collection[str],
    by_pair: dict[frozenset[str], Difference],
) -> list[str]:
    """Whether a language model is worth it."""
    baseline = next((each for each in ordered if each.first.backbone is None), None)
    adapted = next((each for each in ordered if each.first.backbone is not None), None)
    if baseline is None or adapted is None:
        return []
    difference = by_pair.get(frozenset((baseline.name, adapted.name)))
    assert difference is not None  # the best is always compared with the best of the other sort
    if best is baseline:
        return [f"The best is a baseline: nothing here shows that a language model is needed. {difference.sentence}"]
    if baseline.name in level:
        return [f"No language model is shown to be better than the baseline. {difference.sentence}"]
    return [f"A language model pays: {difference.sentence}"]


def _tally(
    best: Configuration,
    ordered: Sequence[Configuration],
    level: Collection[str],
    by_pair: dict[frozenset[str], Difference],
) -> str:
    others = len(ordered) - 1
    open_ones = [
        each for each in ordered[1:] if frozenset((best.name, each.name)) not in by_pair and _touches(each, best)
    ]
    worse = others - len(level) - len(open_ones)
    if worse == others:
        return "All others are shown to be worse." if others > 1 else "The other one is shown to be worse."
    if worse == 0 and not open_ones:
        return (
            f"None of the other {others} is shown to be worse: this test set cannot rank them."
            if others > 1
            else "The other one is not shown to be worse."
        )
    rest = f", and {len(open_ones)} more might not be (they were not compared)" if open_ones else ""
    return f"Of the other {others}, {worse} {_are(worse)} shown to be worse, {len(level)} {_are(len(level))} not{rest}."


def _touches(one: Configuration, best: Configuration) -> bool:
    return one.mean.high is None or best.mean.low is None or one.mean.high >= best.mean.low


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _size(documents: tuple[int, int] | None, differences: Sequence[Difference], several_seeds: bool) -> list[str]:
    """What a test set of this size can tell."""
    if documents is None:
        if not differences:
            return []
        return ["Answers by document are missing, so configurations are compared by whether their intervals overlap."]
    count, groups = documents
    said = []
    if (half := _half_width(differences)) is not None:
        whose = f"{count:,} documents" + (f" of {groups:,} groups" if groups < count else "")
        more = "more documents or seeds" if several_seeds else "more documents"
        said.append(
            f"This test set ({whose}) tells configurations like these apart from about "
            f"{points_text(half, signed=False)} points; smaller differences need {more}."
        )
    if groups < _FEW_GROUPS:
        said.append(f"{groups} groups are few: these intervals are rougher than they look.")
    return said


def _half_width(differences: Sequence[Difference]) -> float | None:
    """Half of the usual interval of a difference: what differences are lost in."""
    halves = [(each.high - each.low) / 2 for each in differences if each.low is not None and each.high is not None]
    return float(np.median(halves)) if halves else None
