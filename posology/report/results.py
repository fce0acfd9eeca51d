"""What a ledger's runs say, gathered for a report: runs, configurations (runs that differ in their seed alone) and what
the statistics allow to be said of them. Tables, figures and the page are made from these and read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Score:
    """A metric on the test split with its 95 % interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run that was done.

    Attributes:
        key: in the ledger.
        studies: that hold it.
        task, kind, metric: of the prepared task; `metric` is the one it is judged by.
        backbone: catalogue name or folder name, such as `minilm:3`; None for a baseline.
        backbone_parameters: 0 for a baseline.
        domain: `general`, `biomedical`, `clinical` or what the backbone's card says; None where unknown.
        method, seed, shots, max_seconds: as asked.
        overrides: fields of the recipe that differ from its default, such as `rank`.
        scores: every metric on test.
        validation: the metric on validation.
        per_label: by label, `precision`, `recall`, `f1`, `support`.
        curve: evaluations in order: `step`, `epoch`, `seconds`, `loss`, `score` (on validation).
        trainable_parameters: what the optimiser changed.
        adapter_bytes: what is stored or shipped besides the backbone.
        seconds: of training, evaluations excluded.
        tokens_per_second: of training, real tokens; None where not measured.
        peak_memory: bytes; None where not measured.
        coverage: share of the test text that was read.
        measures: further ones by name (`posology.measure.run.measures`): `training_flops`, `flops_per_token`,
            `latency_p50_ms`, `latency_p95_ms`, `prediction_tokens_per_second`, `bytes`, `energy_joules`; a name that is missing was not
            measured.
        cost: of training, in `currency`; None where there is no price.
        artifact: its folder, where it is still there.
        recipe_name: `standard` or `paper`; `overrides` replace fields of it.
        recipe: every hyper-parameter, where they are known.
        tokens_per_document: of training, on average; None where not measured.
        ended_early: a search stopped it, since others were ahead.
        ended: when it was done, Unix time.
        version: of the program that ran it.
        pretraining: of the backbone, beyond its publisher's; None where there was none.
        distilled_from: the name of the model that the run, or its backbone, was distilled from.
        family: the catalogue's, of a backbone that was made of one in it; None for those in it.
    """

    key: str
    studies: tuple[str, ...]
    task: str
    kind: str
    metric: str
    backbone: str | None
    backbone_parameters: int
    domain: str | None
    method: str
    seed: int
    shots: int | None
    max_seconds: float | None
    overrides: Mapping[str, Any]
    scores: Mapping[str, Score]
    validation: float | None
    per_label: Mapping[str, Mapping[str, float | None]]
    curve: tuple[Mapping[str, float | None], ...]
    trainable_parameters: int
    adapter_bytes: int
    seconds: float
    tokens_per_second: float | None = None
    peak_memory: int | None = None
    coverage: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    currency: str | None = None
    artifact: Path | None = None
    recipe_name: str = "standard"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    tokens_per_document: float | None = None
    ended_early: bool = False
    ended: float | None = None
    version: str | None = None
    pretraining: str | None = None
    distilled_from: str | None = None
    family: str | None = None

    @property
    def score(self) -> Score:
        """The metric that its task is judged by."""
        return self.scores.get(self.metric, Score(None))

    @property
    def name(self) -> str:
        """`lora on minilm:3`; a baseline's method alone."""
        return f"{self.method} on {self.backbone}" if self.backbone else self.method


@dataclass(frozen=True, slots=True)
class Configuration:
    """Runs that differ in their seed alone.

    Attributes:
        name: unique within its task: `lora on minilm:3`, and what else tells it from others (`rank=16`, `64 shots`).
        runs: by seed; all of one task, and scored by its metric.
        median, sd: over seeds, as the paper gives them; `sd` is None with one seed.
        mean: over seeds, with the interval that combines seeds and documents
            (`posology.evaluation.seeds.combined_interval`); with one seed that of its documents.
    """

    name: str
    runs: tuple[Run, ...]
    median: float | None
    sd: float | None
    mean: Score

    @property
    def first(self) -> Run:
        """Says what is the same for all of them."""
        return self.runs[0]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two configurations of one task compared on the same documents.

    Attributes:
        first, second: names; the difference is first minus second.
        value, low, high: of the metric, paired; None where undefined.
        p: two-sided, not corrected.
        corrected: by Holm, for all comparisons of the task that the report makes.
        sentence: in plain words.
    """

    first: str
    second: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None
    corrected: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class TaskResults:
    """A task's configurations, the best first.

    Attributes:
        task, kind, metric: of it.
        labels: its classes or entity types.
        configurations: scored ones first, the best first.
        differences: of the best to others, and of pairs that people ask about (full and an adapter on one backbone).
        sentences: what may be said, in plain words, the most important first.
        best: name of the configuration with the highest score; None where none has one.
        cheapest: name of the smallest and quickest one that is not shown to be worse (may be the best itself).
        counts: documents of each split; empty where the prepared task is not where it was.
        protocol, source: of the prepared task; `source` is the format it was made from.
        fingerprint: of the prepared task's documents.
        published: the paper's name of this task, such as `mimic-mp`, where it was made from the very corpus; None for
            other tasks, and for synthetic data and subsets.
        tags: classes as the paper counts them; None for tasks that are none of the paper's.
    """

    task: str
    kind: str
    metric: str
    labels: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    differences: tuple[Difference, ...]
    sentences: tuple[str, ...]
    best: str | None = None
    cheapest: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    protocol: str | None = None
    source: str | None = None
    fingerprint: str | None = None
    published: str | None = None
    tags: int | None = None

    def named(self, name: str) -> Configuration:
        """The configuration of that name."""
        return next(each for each in self.configurations if each.name == name)


@dataclass(frozen=True, slots=True)
class Results:
    """A ledger as a report sees it.

    Attributes:
        title: of the report.
        tasks: in order of appearance.
        notes: what a reader must know: what was left out and why, versions, dates, prices.
    """

    title: str
    tasks: tuple[TaskResults, ...]
    notes: tuple[str, ...]
