"""Attention within the segments of a packed row: no token looks at another text, and none at padding.

    the row          a a a a b b c c c d d d d        one micro-batch, 4 texts, no padding
    two buckets      a a a a    c c c                 gathered to (texts x heads, length, width),
                     d d d d    b b .                 so that each bucket is two batched matrix products

Segments of one length fill their bucket; where lengths differ, the few places left over are masked. How many buckets
are worth while follows from what one costs. Forward and backward are written out by hand: gathering has the
inverse gather as its gradient (autograd would add rows up one by one), and scores are changed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface

from posology.engine.dropout import in_bytes, kept
from posology.engine.virtual import PrefixFeed

PACKED_ATTENTION = "posology_packed"
_BUCKET_COST = 2**16
"""What one more bucket costs, in scores: so many take as long as the calls that a bucket needs."""
_BUCKET_SCORES = 2**21
"""Scores that one bucket may hold, so that they stay in the cache between the passes over them."""


class _Bucket(NamedTuple):
    """Segments that are padded to one length and multiplied together.

    Attributes:
        rows: where the bucket is among the gathered rows.
        segments, length: its shape.
        real: (segments, length), which places are tokens; None where all are.
    """

    rows: slice
    segments: int
    length: int
    real: torch.Tensor | None


class _Plan(NamedTuple):
    """How the rows of a packed (tokens x heads, width) tensor go into buckets and back.

    Attributes:
        gather: for each place of each bucket the row that goes there, (places,); padding repeats a row.
        scatter: for each row its place, (tokens x heads,).
        gather_fused, scatter_fused: the same where query, key and value lie side by side: rows are (tokens x 3 x heads),
            places those of all queries, then all keys, then all values.
        padding: the places that are padding; None where there are none.
        buckets: laid one after the other in `gather`, each as (segments, heads, length).
    """

    gather: torch.Tensor
    scatter: torch.Tensor
    gather_fused: torch.Tensor
    scatter_fused: torch.Tensor
    padding: torch.Tensor | None
    buckets: tuple[_Bucket, ...]


class Segments:
    """The borders of the texts in a packed row.

    Args:
        lengths: tokens of each text, in the order of the row.
        device: where the row is.
    """

    def __init__(self, lengths: np.ndarray, device: torch.device | str = "cpu"):
        self.lengths, self.device = lengths, torch.device(device)
        self.starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self._plans: dict[int, _Plan] = {}
        self._masks: dict[Any, torch.Tensor | None] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def total(self) -> int:
        """Tokens of the row."""
        return int(self.lengths.sum())

    def tensor(self, values: np.ndarray) -> torch.Tensor:
        """`values` where the row is."""
        return torch.from_numpy(values).to(self.device)

    def offsets(self) -> np.ndarray:
        """The position of each token in its own text, (total,)."""
        return np.arange(self.total) - np.repeat(self.starts, self.lengths)

    def plan(self, heads: int) -> _Plan:
        """The buckets for so many heads."""
        if heads not in self._plans:
            self._plans[heads] = self._make_plan(heads)
        return self._plans[heads]

    def _make_plan(self, heads: int) -> _Plan:
        order = np.argsort(-self.lengths, kind="stable")
        head = np.arange(heads)[None, :, None]
        rows, reals, shapes = [], [], []
        for first, last in _cuts(self.lengths[order], heads):
            own = order[first:last]
            length = int(self.lengths[own[0]])
            place = np.arange(length)[None]
            real = place < self.lengths[own][:, None]
            token = self.starts[own][:, None] + np.minimum(place, self.lengths[own][:, None] - 1)
            rows.append((token[:, None, :] * heads + head).reshape(-1))
            reals.append(np.broadcast_to(real[:, None, :], (len(own), heads, length)).reshape(-1))
            shapes.append((len(own), length, None if real.all() else self.tensor(real)))
        gather, real = np.concatenate(rows), np.concatenate(reals)
        scatter = np.empty(self.total * heads, np.int64)
        scatter[gather[real]] = np.flatnonzero(real)
        ends = np.cumsum([len(part) for part in rows])
        buckets = tuple(
            _Bucket(slice(int(end) - len(part), int(end)), *shape)
            for end, part, shape in zip(ends, rows, shapes, strict=True)
        )
        padding = None if real.all() else self.tensor(np.flatnonzero(~real))
        parts = np.arange(3)[:, None]
        gather_fused = (gather // heads * 3 + parts) * heads + gather % heads
        scatter_fused = scatter.reshape(-1, 1, heads) + parts * len(gather)
        places = (gather, scatter, gather_fused.reshape(-1), scatter_fused.reshape(-1))
        there, back, all_there, all_back = (self.tensor(part) for part in places)
        return _Plan(there, back, all_there, all_back, padding, buckets)

    def mask(
        self, heads: int, number: int, prefix: int, causal: bool, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """What is added to the scores of one bucket, (segments or 1, 1, length or 1, prefix + length); None for nothing.

        Not minus infinity: a padded query may see no key at all, and must not become NaN.
        """
        key = (heads, number, prefix, causal, window, dtype)
        if key not in self._masks:
            bucket = self.plan(heads).buckets[number]
            hidden = None if bucket.real is None else ~bucket.real[:, None, None, :]
            place = torch.arange(bucket.length, device=self.device)
            if causal:
                hidden = _either(hidden, place[None, :] > place[:, None])
            if window is not None and window < bucket.length:
                hidden = _either(hidden, (place[None, :] - place[:, None]).abs() >= window)
            if hidden is not None:
                hidden = nn.functional.pad(hidden, (prefix, 0))
                added = torch.zeros(hidden.shape, dtype=dtype, device=self.device)
                hidden = added.masked_fill_(hidden, torch.finfo(dtype).min / 2)
            self._masks[key] = hidden
        return self._masks[key]


def _either(hidden: torch.Tensor | None, more: torch.Tensor) -> torch.Tensor:
    return more[None, None] if hidden is None else hidden | more


def _cuts(lengths: np.ndarray, heads: int) -> list[tuple[int, int]]:
    """Where falling lengths are best cut into buckets: least padded scores, with a price on every bucket."""
    distinct, first = np.unique(-lengths, return_index=True)
    borders = np.append(first, len(lengths))
    squares = heads * distinct.astype(np.float64) ** 2
    best, back = np.zeros(len(borders)), np.zeros(len(borders), int)
    for end in range(1, len(borders)):
        costs = best[:end] + _BUCKET_COST + (borders[end] - borders[:end]) * squares[:end]
        back[end] = int(costs.argmin())
        best[end] = costs[back[end]]
    cuts, end = [], len(borders) - 1
    while end > 0:
        begin, stop = int(borders[back[end]]), int(borders[end])
        most = max(1, int(_BUCKET_SCORES // squares[back[end]]))
        cuts += [(start, min(start + most, stop)) for start in range(begin, stop, most)]
        end = int(back[end])
    return sorted(cuts)


class Call(NamedTuple):
    """What one layer's attention needs to know beside its tensors."""

    segments: Segments
    heads: int
    scaling: float
    dropped: int  # of 256
    causal: bool
    window: int | None


def attend(
    rows: Sequence[torch.Tensor], prefix: Sequence[torch.Tensor | None], call: Call
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """softmax(scaling x query key^T + mask) value, within segments, in the layout of the buckets.

    Args:
        rows: query, key and value as `_Plan.gather` lays them out, (places, width) each.
        prefix: keys and values before each segment's own, (heads, tokens, width) each, or None twice.
        call: what else there is to know.

    Returns:
        (places, width), and what `attend_backward` needs beside its inputs.
    """
    plan = call.segments.plan(call.heads)
    scale = 256 / (256 - call.dropped)
    output = torch.empty_like(rows[0])
    saved: list[torch.Tensor | None] = []
    for number, bucket in enumerate(plan.buckets):
        query, key, value = _bucket_of(bucket, rows, prefix)
        scores = _product(query, key.transpose(1, 2), call.scaling)
        tokens = scores.shape[2] - bucket.length
        mask = call.segments.mask(call.heads, number, tokens, call.causal, call.window, scores.dtype)
        if mask is not None:
            scores.view(bucket.segments, call.heads, *scores.shape[1:]).add_(mask)
        weights = torch.softmax(scores, dim=-1, out=scores)
        mine = kept(weights.shape, call.dropped, weights.device) if call.dropped else None
        used = weights if mine is None else mine.to(weights.dtype).mul_(weights)
        _product(used, value, scale, output[bucket.rows].view(query.shape))
        saved += [weights, mine]
    return output, saved


def attend_backward(
    gradient: torch.Tensor,
    rows: Sequence[torch.Tensor],
    prefix: Sequence[torch.Tensor | None],
    saved: Sequence[torch.Tensor | None],
    call: Call,
    out: Sequence[torch.Tensor],
    *,
    keys: bool = True,
) -> list[torch.Tensor | None]:
    """The gradients of `attend`: those of query, key and value into `out`, those of the prefix returned.

    Where nobody wants that of the keys (`keys`), and there is no prefix, it is not made: `out` has zeros there.
    """
    plan = call.segments.plan(call.heads)
    scale = 256 / (256 - call.dropped)
    if plan.padding is not None:
        gradient.index_fill_(0, plan.padding, 0)
    prefixes = [None if part is None else torch.zeros_like(part) for part in prefix]
    keys = keys or prefix[0] is not None
    if not keys:
        out[1].zero_()
    for number, bucket in enumerate(plan.buckets):
        weights, mine = saved[2 * number : 2 * number + 2]
        assert weights is not None
        query, key, value = _bucket_of(bucket, rows, prefix)
        own = gradient[bucket.rows].view(query.shape)
        to_query, to_key, to_value = (part[bucket.rows].view(query.shape) for part in out)
        if prefix[0] is not None:
            to_key, to_value = torch.empty_like(key), torch.empty_like(value)
        used = weights if mine is None else mine.to(weights.dtype)
        to_weights = _product(own, value.transpose(1, 2), scale)
        if mine is not None:
            to_weights.mul_(used)
            used.mul_(weights)
        _product(used.transpose(1, 2), own, scale, to_value)
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        _product(to_scores, key, call.scaling, to_query)
        if keys:
            _product(to_scores.transpose(1, 2), query, call.scaling, to_key)
        for total, part, place in zip(prefixes, (to_key, to_value), out[1:], strict=True):
            if total is not None:
                tokens = total.shape[1]
                total += part[:, :tokens].view(bucket.segments, *total.shape).sum(0)
                place[bucket.rows].view(query.shape).copy_(part[:, tokens:])
    return prefixes


class _SegmentAttention(torch.autograd.Function):
    """`attend` for query, key and value that are (tokens x heads, width) each."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        prefix_key: torch.Tensor | None,
        prefix_value: torch.Tensor | None,
        call: Call,
    ) -> torch.Tensor:
        plan = call.segments.plan(call.heads)
        rows = [tensor.index_select(0, plan.gather) for tensor in (query, key, value)]
        output, saved = attend(rows, (prefix_key, prefix_value), call)
        ctx.save_for_backward(*rows, prefix_key, prefix_value, *saved)
        ctx.call = call
        return output.index_select(0, plan.scatter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        plan = ctx.call.segments.plan(ctx.call.heads)
        *rows, prefix_key, prefix_value = (saved := ctx.saved_tensors)[:5]
        found = [torch.empty_like(rows[0]) for _ in range(3)]
        gathered = gradient.index_select(0, plan.gather)
        prefixes = attend_backward(gathered, rows, (prefix_key, prefix_value), saved[5:], ctx.call, found)
        return (*(part.index_select(0, plan.scatter) for part in found), *prefixes, None)


def _product(left: torch.Tensor, right: torch.Tensor, factor: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """factor x left right, batched."""
    if out is None:
        out = torch.empty((left.shape[0], left.shape[1], right.shape[2]), dtype=left.dtype, device=left.device)
    return torch.baddbmm(out, left, right, beta=0, alpha=factor, out=out)


def _bucket_of(
    bucket: _Bucket, rows: Sequence[torch.Tensor], prefix: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """Query, key and value of a bucket, each (segments x heads, length, width), with the prefix before the keys."""
    own = [part[bucket.rows].view(-1, bucket.length, part.shape[1]) for part in rows]
    for place, before in enumerate(prefix, start=1):
        if before is not None:
            own[place] = torch.cat((before.repeat(bucket.segments, 1, 1), own[place]), dim=1)
    return own


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    *,
    segments: Segments,
    prefix: PrefixFeed | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls on a packed row.

    Shapes: query (1, heads, tokens, width), key and value (1, key/value heads, tokens, width). `sliding_window` is
    exclusive: a token sees those less than so many away, and the whole prefix. Returns (1, tokens, heads, width).
    """
    heads, width = query.shape[1], query.shape[3]
    before = list(prefix.take()) if prefix is not None else []
    if (groups := heads // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        before = [part.repeat_interleave(groups, dim=0) for part in before]
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    rows = [part[0].transpose(0, 1).reshape(-1, width).to(dtype) for part in (query, key, value)]
    call = Call(
        segments,
        heads,
        width**-0.5 if scaling is None else scaling,
        in_bytes(dropout) if module.training else 0,
        bool(getattr(module, "is_causal", False)),
        sliding_window,
    )
    with torch.autocast(kind, enabled=False):
        prefixes: Any = [part.to(dtype) for part in before] or [None, None]
        output = _SegmentAttention.apply(*rows, *prefixes, call)
    return output.view(1, -1, heads, width), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Segments say who sees whom; a mask of the whole row would be quadratic in its length."""


AttentionInterface.register(PACKED_ATTENTION, segment_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, _no_mask)
