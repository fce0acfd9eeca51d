"""What could do a task: backbones of this machine, methods, recipes, a baseline; and what each would take here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posology import catalog
from posology.errors import UserError
from posology.study.cell import Cell

if TYPE_CHECKING:
    from posology.corpus.document import Document
    from posology.engine.model import Model
    from posology.tasks.prepared import PreparedTask

METHODS = ("full", "lora", "ia3", "head")
BASELINE = {"sequence-classification": "tf-idf", "token-classification": "dictionary"}
_CUTS = (2, 3, 4)
"""How many of the first layers of the bundled model make further backbones."""
_LARGEST = 400_000_000
"""Parameters of a backbone that is tried without being named."""
TEXTS = 60
"""Documents that are answered one by one to measure latency, and their seconds."""
SERVING_SECONDS = 4.0


@dataclass
class Cost:
    """What one training takes, by its sizes: seconds.

    Attributes:
        training: of each training document, over all epochs.
        evaluation: of each validation document, over all epochs.
        fixed: of loading, saving, and the test.
    """

    training: float
    evaluation: float
    fixed: float

    def seconds(self, documents: int, validation: int) -> float:
        """Of a run on so many documents."""
        return self.training * documents + self.evaluation * validation + self.fixed


@dataclass
class Candidate:
    """One way to do the task.

    Attributes:
        backbone, method, overrides: as `Cell` has them.
        variant: how its recipe differs from the default, for people; nothing where it does not.
        cost: of its training; None before it is known.
        figures: what was measured or foretold before training: `latency_ms` (`p50`, `p95`), `documents_per_second`,
            `parameters`, `memory_bytes` (of prediction, beyond the program), `measuring_seconds`, `seconds` and `training_memory_bytes`
            (of training on everything), `epochs`.
        scores: on validation, by the size of the training sample.
        breaks: limits that it does not keep: figure and limit by their names.
        dropped: why it takes no part any more.
    """

    backbone: str | None
    method: str
    overrides: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    cost: Cost | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    breaks: dict[str, tuple[float, float]] = field(default_factory=dict)
    dropped: str | None = None

    @property
    def title(self) -> str:
        """For people; no two candidates have the same."""
        name = " ".join(part for part in (self.backbone, self.method) if part)
        return f"{name}, {self.variant}" if self.variant else name

    def cell(self, task: str, data: Path, seed: int, max_seconds: float | None = None) -> Cell:
        """Its run on a prepared task."""
        return Cell(
            task=task,
            data=data,
            backbone=self.backbone,
            method=self.method,
            overrides=self.overrides,
            seed=seed,
            max_seconds=max_seconds,
        )

    def measured(self) -> dict[str, Any]:
        """What was found out before training, ready for JSON."""
        cost = None if self.cost is None else asdict(self.cost)
        return {"cost": cost, "figures": self.figures, "breaks": self.breaks, "dropped": self.dropped}

    def take(self, measured: Mapping[str, Any]) -> None:
        """Takes what `measured` gave, of this candidate in an earlier attempt."""
        self.cost = None if measured["cost"] is None else Cost(**measured["cost"])
        self.figures, self.dropped = dict(measured["figures"]), measured["dropped"]
        self.breaks = {name: (figure, limit) for name, (figure, limit) in measured["breaks"].items()}

    def record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "title": self.title,
            "backbone": self.backbone,
            "method": self.method,
            "overrides": self.overrides,
            "scores": {str(documents): score for documents, score in self.scores.items()},
            "dropped": self.dropped,
            "breaks": {name: {"figure": figure, "limit": limit} for name, (figure, limit) in self.breaks.items()},
            **self.figures,
        }


def backbones_here() -> list[str]:
    """The bundled model, whole and cut, and what else of the catalogue is on this disk and not too large."""
    from posology.engine.backbone import load_config, resolve

    found = []
    for entry in catalog.backbones().values():
        if entry.parameters > _LARGEST:
            continue
        try:
            depth = load_config(resolve(entry.name)).num_hidden_layers
        except UserError:
            continue
        found += [f"{entry.name}:{layers}" for layers in _CUTS if entry.bundled and layers < depth]
        found.append(entry.name)
    return found


def parameters(backbone: str, kind: str) -> int:
    """How many a backbone has, without its weights; those of its first layers where it is `NAME:K`.

    Args:
        backbone: as `list_candidates` takes them.
        kind: of the task: some have a pooler for classes only.
    """
    from posology.engine.backbone import load_config, on_meta, resolve

    return sum(weight.numel() for weight in on_meta(load_config(resolve(backbone)), kind).base_model.parameters())


def list_candidates(
    backbones: Iterable[str], methods: Iterable[str], recipes: Sequence[Mapping[str, Any]] | None
) -> list[Candidate]:
    """Every backbone with every method that it takes, in every recipe.

    Args:
        backbones: catalogue names, folders, or `NAME:K`.
        methods: keys of `METHODS` of the engine.
        recipes: fields to replace in the standard recipe, for each of them; by default the standard one, and one with
            a third of its learning rate.

    Raises:
        UserError: an unknown backbone, method or field.
    """
    from posology.engine.architectures import architecture_of
    from posology.engine.backbone import load_config, resolve
    from posology.engine.baselines import BASELINES
    from posology.engine.methods import check_method, refusal
    from posology.engine.recipe import make_recipe

    found = []
    for backbone in backbones:
        source = resolve(backbone)
        config = load_config(source)
        for method in methods:
            check_method(method)
            if method in BASELINES:
                raise UserError(f"{method} takes part anyway where it fits", "Leave it out", "--methods")
            standard = make_recipe(method, width=config.hidden_size)
            slower = {"learning_rate": standard.learning_rate / 3}
            asked = [("", {}), ("a third of the learning rate", slower)]
            if recipes is not None:
                asked = [(", ".join(f"{name}={value}" for name, value in own.items()), dict(own)) for own in recipes]
            for variant, overrides in asked:
                make_recipe(method, "standard", overrides, width=config.hidden_size)
                candidate = Candidate(backbone, method, overrides, variant)
                if reason := refusal(method, architecture_of(config, source.family)):
                    candidate.dropped = reason
                found.append(candidate)
    return found


class Profiler:
    """Measures what candidates would take on this machine.

    Args:
        task: what they would do.
        seed: of models that are only timed.
    """

    def __init__(self, task: PreparedTask, seed: int):
        self._task, self._seed = task, seed
        self._documents = task.documents("validation")
        self._serving: dict[Any, dict[str, Any]] = {}

    def serving(self, candidate: Candidate) -> dict[str, Any]:
        """What `serve` says of its backbone, and `parameters`, `memory_bytes`, and how long measuring it took.

        Adapters cost nothing once they are merged.

        Raises:
            UserError: backbone, method and task do not go together.
        """
        from posology.engine.backbone import load_config, resolve
        from posology.engine.recipe import make_recipe
        from posology.engine.run import build
        from posology.engine.virtual import VIRTUAL
        from posology.measure.memory import Watermark

        assert candidate.backbone is not None
        method = candidate.method if candidate.method in VIRTUAL else "head"
        reading = {name: value for name, value in candidate.overrides.items() if name in _READING}
        key = candidate.backbone, method, tuple(sorted(reading.items()))
        if key not in self._serving:
            begin, memory, source = time.perf_counter(), Watermark(), resolve(candidate.backbone)
            recipe = make_recipe(method, "standard", reading, width=load_config(source).hidden_size)
            predictor = build(self._task, source, method, recipe, self._seed)
            parameters = predictor.adapted.backbone_parameters
            predictor.merge()
            found = serve(predictor, self._documents, self._task.unit)
            found |= {"parameters": parameters, "memory_bytes": memory.peak()}
            self._serving[key] = found | {"measuring_seconds": time.perf_counter() - begin}
        return self._serving[key]

    def forecast(
        self,
        candidates: Sequence[Candidate],
        known: Mapping[str, Any] | None,
        more: Callable[[], bool] = lambda: True,
    ) -> dict[str, Any]:
        """Foretells for each what training it on everything will take: its cost, and `seconds`, `training_memory_bytes`, `epochs`.

        Args:
            known: a profile of other candidates, so that nothing is measured twice.
            more: is asked before each that needs a measurement; where it says no, nothing is foretold of it.

        Returns:
            The profile, which has grown.
        """
        from posology.study.forecast import forecast
        from posology.study.profile import Wanted, is_complete, measure

        task = self._task
        cells = [candidate.cell(task.name, task.folder, self._seed) for candidate in candidates]
        profile = measure(cells, known, seconds=1.0, more=more)
        for candidate, cell in zip(candidates, cells, strict=True):
            if not is_complete(Wanted(cell), profile):
                continue
            (found,) = forecast([cell], profile)
            training, evaluation = found.training / task.counts["train"], found.evaluation / task.counts["validation"]
            candidate.cost = Cost(training, evaluation, found.fixed)
            candidate.figures |= {
                "seconds": found.seconds,
                "training_memory_bytes": found.memory,
                "epochs": cell.identity()["recipe"]["epochs"],
            }
        return profile


_READING = (
    "max_length",
    "long_text",
    "overlap",
    "pooling",
    "precision",
    "virtual_tokens",
    "quantise",
    "backbone_dtype",
)
"""Fields of a recipe that prediction depends on."""


def serve(model: Model, documents: Sequence[Document], unit: str) -> dict[str, Any]:
    """Milliseconds of one document at a time (median and 95th percentile), and documents per second of many."""
    from posology.measure.latency import latencies, percentiles

    unit = unit if unit in model.units else model.units[0]
    texts = list(documents[:TEXTS])
    found = latencies(model, texts, unit, seconds=SERVING_SECONDS)
    many = texts[: max(2, len(found))]
    model.answer(many, unit=unit)
    before = time.perf_counter()
    model.answer(many, unit=unit)
    seconds = time.perf_counter() - before
    named = percentiles(found)
    return {"latency_ms": {name: named[name] for name in ("p50", "p95")}, "documents_per_second": len(many) / seconds}
