"""The memory a training needs, known before it begins: a rehearsal on tensors without data, and sums over shapes.

What weights, gradients and the optimiser's moments take follows from shapes. What a micro-batch holds besides, for the
backward pass and in passing, follows from the code that runs: which tensors an architecture, a method and their
attention keep, in which precision, for how long. So that no list of coefficients has to keep step with that code, it
is rehearsed: the model is built with shapes but no data, the functions that train run on it, on tensors that have a
type and a lifetime but no memory, and the bytes alive at once are counted. It takes about a second, for Llama-2-7b a
few, and no weights need to be there.
"""

from __future__ import annotations

import re
import resource
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from posology.engine import quantise
from posology.engine.adapted import Adapted
from posology.engine.architectures import architecture_of
from posology.engine.backbone import checkpoint_layers, on_meta, prepare_config
from posology.engine.batch import batches, cut
from posology.engine.encode import Encoded, Window
from posology.engine.loop import TOKEN_BUDGET
from posology.engine.methods import adapt
from posology.engine.precision import CACHED_PRODUCTS, Precision, backbone_dtype
from posology.engine.predictor import TOKEN_BUDGET as PREDICTION_BUDGET
from posology.engine.recipe import Recipe
from posology.errors import UserError

PROCESS_BYTES = 480 * 10**6
"""Resident memory of Python with everything that training imports and a small corpus, before there is a model:
measured on Linux with PyTorch's build for CPUs. Where a run is live, `resident_bytes` is asked instead."""
_FRAGMENTS = {True: 0.4, False: 1.0}
"""What the heap of the C library holds but cannot use, between tensors of ever other sizes, as a share of activations,
by whether products are bfloat16: measured. Told to hand every freed megabyte back (MALLOC_MMAP_THRESHOLD_=1048576) it
stayed within 3 % of what is rehearsed, and steps took three times as long."""
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_PRODUCT_BYTES = 1_600_000
_TRIES = 4
_MANY = 10**5


@dataclass(frozen=True)
class Memory:
    """Bytes that a training needs.

    Attributes:
        process: the program itself, and what it held before the model.
        weights: the backbone's, and its buffers.
        adapter: weights that the method and the head add.
        gradients: of everything that is trained.
        optimiser: the two moments of AdamW.
        kept: the best state so far, a copy of everything that is trained.
        activations: the most that a micro-batch holds besides, forward and backward.
        prediction: the same while validation is scored, without gradients and backward pass.
        products: on CPU, what the library of matrix products keeps for the shapes it met (see `CACHED_PRODUCTS`).
        fragments: on CPU, what the heap holds but cannot use.
    """

    process: int
    weights: int
    adapter: int
    gradients: int
    optimiser: int
    kept: int
    activations: int
    prediction: int
    products: int
    fragments: int

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        always = self.process + self.weights + self.adapter + self.optimiser + self.kept
        return always + self.products + self.fragments + max(self.gradients + self.activations, self.prediction)

    def record(self) -> dict[str, int]:
        """Every part, and the `peak`, ready for JSON."""
        return {part.name: getattr(self, part.name) for part in fields(self)} | {"peak": self.peak}


class Rehearsal:
    """A training without data.

    Args:
        config: of the backbone: from `load_config`, or made of a catalogue entry's; not changed.
        method: a key of `METHODS`.
        recipe: of it.
        kind: of the task.
        precision: device and type of matrix products.
        outputs: of the head.
        family: of the backbone, where its defaults differ from its architecture's.
        mean: a classifier reads the mean of all positions.

    Raises:
        UserError: a combination that cannot work.
    """

    def __init__(
        self,
        config: Any,
        method: str,
        recipe: Recipe,
        kind: str,
        precision: Precision,
        *,
        outputs: int = 2,
        family: str | None = None,
        mean: bool = False,
    ):
        self.recipe, self.precision = recipe, precision
        self._config = prepare_config(config, [str(index) for index in range(outputs)], recipe, mean=mean)
        self._method, self._kind, self._family = method, kind, family
        self._mean = mean or getattr(self._config, "classifier_pooling", "") == "mean"
        with torch.random.fork_rng():
            self.adapted = self._build()

    def _build(self) -> Adapted:
        """The model that is trained, without data."""
        recipe, kind = self.recipe, self._kind
        architecture = architecture_of(self._config, self._family)
        dtype = backbone_dtype(self._method, architecture, recipe, self.precision)
        base = on_meta(self._config, kind)
        quantised = quantise.matrices(base, base.base_model_prefix, architecture) if recipe.quantise else []
        self._dequantised = _without_data(base, dtype, architecture.head[kind], set(quantised))
        own = {id(weight) for weight in _backbone(base).parameters()}
        self._weights = _weight_bytes(base, recipe.quantise, quantised)
        adapted = adapt(
            base,
            self._method,
            recipe,
            kind,
            family=self._family,
            attention=self.precision.attention,
            mean=self._mean,
        )
        if recipe.checkpointing:
            checkpoint_layers(base, architecture)
        added = [weight for weight in adapted.module.parameters() if id(weight) not in own]
        self._adapter = sum(weight.numel() * weight.element_size() for weight in added)
        self._trained = sum(weight.numel() for weight in adapted.trainable().values())
        return adapted

    def estimate(
        self, lengths: Sequence[int], *, process: int = PROCESS_BYTES, prediction: int = PREDICTION_BUDGET
    ) -> Memory:
        """The memory of a training whose heaviest micro-batch has windows of these lengths.

        Args:
            lengths: pieces of each window.
            process: what the program held before the model; on a GPU, whose memory is its own, 0.
            prediction: pieces that are predicted at once, in windows like the longest of these.
        """
        gradients, longest = 4 * self._trained, max(lengths)
        on_cpu = self.precision.device.type == "cpu"
        # The gradients of the micro-batch before are there already, and are counted on their own.
        activations = self._dequantised + max(0, self._most(lengths, training=True) - gradients)
        return Memory(
            process=process,
            weights=self._weights,
            adapter=self._adapter,
            gradients=gradients,
            optimiser=8 * self._trained,
            kept=4 * self._trained,
            activations=activations,
            prediction=self._dequantised + self._most([longest] * max(1, prediction // longest), training=False),
            products=_PRODUCT_BYTES * CACHED_PRODUCTS if self.precision.bf16 and on_cpu else 0,
            fragments=int(_FRAGMENTS[self.precision.bf16] * activations) if on_cpu else 0,
        )

    @property
    def of_a_run(self) -> int:
        """Bytes that a run holds of its own where it shares its backbone: what is trained, as in `Memory`."""
        return self._adapter + (4 + 8 + 4) * self._trained

    def _most(self, lengths: Sequence[int], *, training: bool) -> int:
        """The most bytes alive at once beside the weights, in two micro-batches of training or in one of prediction."""
        live = _Live()
        with torch.random.fork_rng():
            adapted = self._build()  # anew, since what a model caches in its first micro-batch counts
            adapted.module.train(training)
            with FakeTensorMode(allow_non_fake_inputs=True), live, torch.set_grad_enabled(training):
                for _ in range(2 if training else 1):
                    self._micro_batch(adapted, lengths)
        return live.most

    def _micro_batch(self, adapted: Adapted, lengths: Sequence[int]) -> None:
        tagger = adapted.kind == "token-classification"
        batch = adapted.batch([_window(number, length, tagger) for number, length in enumerate(lengths)])
        with _autocast(self.precision):
            logits = adapted.answers(batch)
        if adapted.module.training:
            goal = torch.zeros(len(logits), dtype=torch.long)
            functional.cross_entropy(logits, goal, reduction="sum").backward()


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._known:
            self._known[address] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._let_go, address)

    def _let_go(self, address: int) -> None:
        self.now -= self._known.pop(address)


def _autocast(precision: Precision) -> Any:
    """The rehearsal's tensors claim to be on the CPU, whatever the device; their types are what counts."""
    return Precision(torch.device("cpu"), precision.bf16, precision.reason).autocast()


def _window(number: int, length: int, tagger: bool) -> Window:
    words = np.arange(length if tagger else 0)
    return Window(number, np.zeros(length, np.int64), 0, words, words)


def _backbone(base: nn.Module) -> nn.Module:
    backbone: nn.Module = getattr(base, str(base.base_model_prefix))
    return backbone


def _without_data(base: nn.Module, dtype: torch.dtype, head: Sequence[str], quantised: set[str]) -> int:
    """Gives a model on the meta device weights of its shapes and types that take no memory: one zero, seen as many.

    Quantised matrices are in the type they are multiplied in, as nobody converts them otherwise.

    Returns:
        Bytes of the largest of these, which is made and let go in each product.
    """
    made: dict[int, torch.Tensor] = {}
    largest = 0
    for name, module in base.named_modules():
        kept = any(f"{name}.".startswith(f"{part}.") for part in head)
        if name in quantised:
            module.__class__ = quantise.QuantisedLinear
        for key, weight in module._parameters.items():
            if weight is None:
                continue
            own = torch.bfloat16 if name in quantised and key == "weight" else torch.float32 if kept else dtype
            if id(weight) not in made:
                made[id(weight)] = nn.Parameter(torch.zeros((), dtype=own).expand(weight.shape))
            module._parameters[key] = made[id(weight)]
            if name in quantised and key == "weight":
                largest = max(largest, weight.numel() * own.itemsize)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = torch.zeros((), dtype=buffer.dtype).expand(buffer.shape)
    return largest


def _weight_bytes(base: nn.Module, how: str | None, quantised: Sequence[str]) -> int:
    backbone = _backbone(base)
    held = list(backbone.parameters()) + list(backbone.buffers())
    total = sum(tensor.numel() * tensor.element_size() for tensor in held)
    for name in quantised:
        weight: Any = base.get_submodule(name).weight
        total -= weight.numel() * weight.element_size()
        total += int(weight.numel() * quantise.bytes_per_weight(str(how), weight.shape[1]))
    return total


def heaviest(rehearsal: Rehearsal, encoded: Encoded, seed: int, token_budget: int = TOKEN_BUDGET) -> list[int]:
    """The lengths of the windows in the heaviest micro-batch of a training.

    By weight is meant 34 bytes per piece and unit of width and 5 per head and pair of pieces (Korthikanti et al. 2022,
    "Reducing Activation Recomputation in Large Transformer Models", equation 1): it ranks them, and no more.

    Args:
        rehearsal: of the training.
        encoded: its windows.
        seed: of it, which gives the order of documents.
        token_budget: pieces of a micro-batch.
    """
    config, recipe, kind = rehearsal.adapted.base.config, rehearsal.recipe, rehearsal.adapted.kind
    per_piece, per_pair = 34 * config.hidden_size, 5 * config.num_attention_heads
    count = len(encoded.windows)
    padded = rehearsal.adapted.layout == "padded"
    best, most = [], 0.0
    # Where there are many documents, one epoch holds a batch that is about as heavy as any.
    for epoch in range(min(recipe.epochs, max(1, _MANY // count))):
        for documents in batches(count, recipe.batch_size, seed, epoch):
            own = [encoded.windows[document] for document in documents]
            units = own if kind == "sequence-classification" else [[window] for windows in own for window in windows]
            for group in cut(units, token_budget, padded=padded):
                lengths_of = np.array([len(window.ids) for window in group])
                weight = float(per_piece * lengths_of.sum() + per_pair * (lengths_of**2).sum())
                if weight > most:
                    best, most = lengths_of.tolist(), weight
    return best


def tokens_that_fit(
    rehearsal: Rehearsal,
    encoded: Encoded,
    max_memory: int,
    *,
    seed: int,
    process: int = PROCESS_BYTES,
    at_most: int = TOKEN_BUDGET,
) -> tuple[int, Memory]:
    """The pieces a micro-batch may have so that training stays within a limit; batches stay what the recipe says.

    Args:
        rehearsal: of the training.
        encoded: windows of the training documents.
        max_memory: bytes.
        seed: of the run.
        process: see `Rehearsal.estimate`.
        at_most: the budget where memory does not matter.

    Returns:
        The budget, and the memory estimated for it.

    Raises:
        UserError: not even the longest document, or window of a tagger, alone fits.
    """

    def needed(budget: int) -> Memory:
        lengths = heaviest(rehearsal, encoded, seed, budget)
        return rehearsal.estimate(lengths, process=process, prediction=min(PREDICTION_BUDGET, 2 * budget))

    most = needed(at_most)
    if most.peak <= max_memory:
        return at_most, most
    one: Callable[[Iterable[int]], int] = sum if rehearsal.adapted.kind == "sequence-classification" else max
    low = max(one(len(window.ids) for window in own) for own in encoded.windows)
    low, high = min(low, at_most), at_most
    fits = needed(low)
    if fits.peak > max_memory:
        raise _too_little(rehearsal, fits, max_memory, low)
    for _ in range(_TRIES):
        # Memory rises about in proportion to the pieces.
        share = (max_memory - fits.peak) / max(1, most.peak - fits.peak)
        middle = low + int((high - low) * min(share, 0.9))
        if middle - low < max(8, low // 16):
            break
        memory = needed(middle)
        if memory.peak <= max_memory:
            low, fits = middle, memory
        else:
            high, most = middle, memory
    return low, fits


def _too_little(rehearsal: Rehearsal, memory: Memory, max_memory: int, tokens: int) -> UserError:
    recipe = rehearsal.recipe
    mends = ["a smaller backbone (NAME:K takes its first K layers)"]
    if rehearsal.adapted.method == "full":
        mends.append("another method (lora)")
    if tokens > 64:
        mends.append(f"shorter windows (--set max_length={max(32, tokens // 2)})")
    if not recipe.checkpointing:
        mends.append("--set checkpointing=true")
    if recipe.quantise is None and rehearsal.adapted.method not in ("full", "bitfit", "layernorm"):
        mends.append("--set quantise=8bit")
    return UserError(
        f"training needs about {readable(memory.peak)} even with {tokens:,} pieces at a time, of which the model and "
        f"its optimiser take {readable(memory.peak - memory.process - memory.activations)}, and the limit is "
        f"{readable(max_memory)}",
        "Allow more, or try " + ", ".join(mends[:-1]) + " or " + mends[-1],
        "--max-memory",
    )


def parse_bytes(text: str) -> int:
    """Turns `4GB`, `512MB` or `2GiB` into bytes.

    Raises:
        UserError: no number with one of these units.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b)\s*", text, re.IGNORECASE)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise UserError(f"{text!r} is no amount of memory", "Write for example 4GB, 512MB or 2GiB", "--max-memory")
    return int(float(match[1]) * unit)


def readable(size: float) -> str:
    """`512 MB`, `4.3 GB`."""
    return f"{size / 10**9:.1f} GB" if size >= 10**9 else f"{size / 10**6:.0f} MB"


def resident_bytes() -> int:
    """Memory that this process holds now; where the system does not tell, the most it has held."""
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
