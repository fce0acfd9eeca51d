"""Labels beside points that overlap neither each other nor the markers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from posology.report.figures import style

Points = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]

_SIZE = 5.8
_DIRECTIONS = ((1, 0.7), (-1, 0.7), (1, -0.7), (-1, -0.7), (0, 1), (0, -1), (1, 0), (-1, 0))
_DISTANCES = (4.5, 9.0, 15.0, 23.0)
_LED = 9.0
"""From this distance in points on, a line leads from the label to its point."""
_MARKER = 3.2


def place_labels(
    axis: Axes, points: Points, texts: Sequence[str], markers: Points, faint: Points = (), line: Points = ()
) -> int:
    """Writes labels inside a panel, over no other label and no marker; one for which there is no room is left out.

    Args:
        axis: laid out already, with a canvas that measures text.
        points, texts: what to label, the most important first.
        markers: that labels must keep off, in data coordinates like all points.
        faint: markers that they should rather keep off.
        line: corners of a line that they should rather keep off.

    Returns:
        How many were written.
    """
    frame = axis.get_window_extent()
    taken = [(x - _MARKER, y - _MARKER, x + _MARKER, y + _MARKER) for x, y in _pixels(axis, markers)]
    corners = _pixels(axis, line)
    along = [np.linspace(start, end, 24) for start, end in itertools.pairwise(corners)]
    soft = np.concatenate([_pixels(axis, faint), *along])
    written: list[Box] = []
    for point, anchor, text in zip(points, _pixels(axis, points), texts, strict=True):
        label = axis.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize=_SIZE)
        size = label.get_window_extent()
        label.remove()
        room = (frame.x0 + 1, frame.y0 + 1, frame.x1 + 2, frame.y1 + 2)
        place = _best_place(anchor, size.width, size.height, room, [*taken, *written], written, soft)
        if place is None:
            continue
        box, distance = place
        axis.annotate(
            text, point, xytext=(box[0] - anchor[0], box[1] - anchor[1]), textcoords="offset points", fontsize=_SIZE,
            ha="left", va="bottom", zorder=6, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": style.GREY, "shrinkA": 0, "shrinkB": 2} if distance >= _LED else None,
        )  # fmt: skip
        written.append((box[0] - 2, box[1] - 0.8, box[2] + 2, box[3] + 0.8))
        if distance >= _LED:
            soft = np.concatenate([soft, _leader(anchor, box)])
    return len(written)


def _pixels(axis: Axes, points: Points) -> np.ndarray:
    return np.asarray(axis.transData.transform(np.reshape(np.array(points, dtype=float), (-1, 2))))


def _best_place(
    anchor: np.ndarray, width: float, height: float, room: Box, taken: Sequence[Box], labels: Sequence[Box],
    soft: np.ndarray,
) -> tuple[Box, float] | None:  # fmt: skip
    """The free box that covers fewest soft points, a near one of equals, and its distance; None where none is free.

    A line that leads to it may cross markers, but no label.
    """
    best: tuple[float, Box, float] | None = None
    for rank, distance in enumerate(_DISTANCES):
        for across, up in _DIRECTIONS:
            left = anchor[0] + across * distance - (0 if across > 0 else width if across < 0 else width / 2)
            bottom = anchor[1] + up * distance - (0 if up > 0 else height if up < 0 else height / 2)
            box = (left, bottom, left + width, bottom + height)
            if not (room[0] <= box[0] and room[1] <= box[1] and box[2] <= room[2] and box[3] <= room[3]):
                continue
            if any(overlap(box, other) for other in taken):
                continue
            if distance >= _LED and any(_covered(label, _leader(anchor, box)) for label in labels):
                continue
            covered = _covered((box[0] - 1, box[1], box[2] + 1, box[3]), soft)
            penalty = covered + 0.7 * rank
            if best is None or penalty < best[0]:
                best = penalty, box, distance
    return best[1:] if best else None


def _leader(anchor: np.ndarray, box: Box) -> np.ndarray:
    """Points along the line from a point to its label."""
    end = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    along = np.linspace(anchor, end, 24)
    inside = (along > box[:2]).all(axis=1) & (along < box[2:]).all(axis=1)
    result: np.ndarray = along[~inside]
    return result


def _covered(box: Box, points: np.ndarray) -> int:
    """How many of the points lie in the box."""
    return int(((points > box[:2]) & (points < box[2:])).all(axis=1).sum())


def overlap(first: Box, second: Box) -> bool:
    """Whether two boxes of left, bottom, right and top share any area."""
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
