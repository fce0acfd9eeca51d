"""Figures are drawn from results made by hand; what they show is read back from matplotlib's own objects."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from posology import catalog
from posology.errors import UserError
from posology.report import figures
from posology.report.figures import budgets, choose, pareto, placing, quality, rank, scores, style
from posology.report.figures.style import Drawing, LeftOut, Looks
from posology.report.results import Configuration, Results, Run, Score, TaskResults

TRAINED = {"full": 1.0, "lora": 0.006, "ia3": 0.001, "head": 0.0001}


def make_run(**given: Any) -> Run:
    """A run of LoRA on the catalogue's TinyBERT, unless told otherwise."""
    method, backbone = given.get("method", "lora"), given.get("backbone", "tinybert")
    entry = catalog.find(backbone) if backbone else None
    parameters = entry.parameters if entry else 14_000_000 if backbone else 0
    value = given.pop("value", 0.8)
    metric = given.get("metric", "macro_f1")
    trained = max(int(parameters * TRAINED.get(method, 0.002)), 1000)
    usual: dict[str, Any] = {
        "key": "k", "studies": ("s",), "task": "notes", "kind": "sequence-classification", "metric": metric,
        "backbone": backbone, "backbone_parameters": parameters, "domain": entry.domain if entry else None,
        "method": method, "seed": 12, "shots": None, "max_seconds": None, "overrides": {},
        "scores": {metric: Score(value, None if value is None else value - 0.03, None if value is None else value + 0.02)},
        "validation": value, "per_label": {"yes": {"precision": 0.7, "recall": 0.9, "f1": 0.79, "support": 30}},
        "curve": tuple({"step": 10 * i, "epoch": i, "seconds": 4.0 * i, "loss": 1 / i, "score": 0.5 + 0.05 * i}
                       for i in range(1, 5)),
        "trainable_parameters": trained, "adapter_bytes": 4 * trained, "seconds": 16.0, "cost": 0.01 * trained / 1e5,
        "currency": "GBP", "measures": {"latency_p50_ms": max(parameters, 10**6) / 4e6},
    }  # fmt: skip
    return Run(**{**usual, **given})


def make(name: str | None = None, *, seeds: Sequence[float | None] | None = None, **given: Any) -> Configuration:
    """A configuration; `seeds` are the scores of its runs."""
    runs = [make_run(**given, seed=i, value=value) for i, value in enumerate(seeds)] if seeds else [make_run(**given)]
    known = [run.score.value for run in runs if run.score.value is not None]
    mean = Score(fmean(known), fmean(known) - 0.03, fmean(known) + 0.02) if known else Score(None)
    return Configuration(
        name or runs[0].name,
        tuple(runs),
        median(known) if known else None,
        stdev(known) if len(known) > 1 else None,
        mean,
    )


def make_task(configurations: Sequence[Configuration], name: str = "notes", **given: Any) -> TaskResults:
    first = configurations[0].first
    ordered = sorted(configurations, key=lambda c: -math.inf if c.mean.value is None else c.mean.value, reverse=True)
    return TaskResults(name, first.kind, first.metric, ("no", "yes"), tuple(ordered), (), (), **given)


def make_results(*tasks: TaskResults) -> Results:
    return Results("A study", tasks, ())


def drawn(draw: Any, results: Results) -> Drawing:
    """Laid out as it is before it is saved."""
    with style.context():
        drawing: Drawing = draw(results, Looks(results))
        style.lay_out(drawing)
    return drawing


def names(figure: Figure) -> list[str]:
    """All text of a figure."""
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def write_answers(folder: Path, logits: np.ndarray, gold: np.ndarray, temperature: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    ids = [f"d{i}" for i in range(len(gold))]
    pl.DataFrame(
        {"id": ids, "group": ids, "label": gold, "logits": pl.Series(logits.astype(np.float32))}
    ).write_parquet(folder / "test.parquet")
    (folder / "posology.json").write_text(json.dumps({"temperature": temperature}))
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two tasks with all that any figure wants: domains, budgets, shots, ranks, baselines and answers by document."""
    folder = tmp_path_factory.mktemp("artifacts")
    generator = np.random.default_rng(3)
    gold = generator.integers(0, 2, 120)
    found = []
    for backbone in ("tinybert", "tiny-biobert", "biobert", "bio-clinicalbert"):
        for method in ("full", "lora"):
            base = {"method": method, "backbone": backbone, "metric": "auroc"}
            logits = generator.normal(size=(120, 2)) + 1.5 * np.eye(2)[gold]
            artifact = write_answers(folder / f"{backbone}-{method}", logits, gold)
            values = [float(v) for v in 0.7 + 0.1 * generator.random(3)]
            found.append(make(seeds=values, artifact=artifact, **base))
            fewer = [v - 0.1 for v in values]
            found += [make(f"{method} on {backbone}, {n} shots", seeds=fewer, shots=n, **base) for n in (8, 16)]
            found += [make(f"{method} on {backbone}, {s} s", max_seconds=s, value=0.6, **base) for s in (5.0, 15.0)]
            if method == "lora":
                artifact = write_answers(folder / f"{backbone}-16", logits + generator.normal(size=(120, 2)), gold)
                found.append(
                    make(f"lora on {backbone}, rank=16", overrides={"rank": 16}, value=0.65, artifact=artifact, **base)
                )
    found.append(make(backbone=None, method="tf-idf", metric="auroc", value=0.6))
    entities = [
        make(seeds=[0.6, 0.7], method=method, metric="entity_f1", kind="token-classification")
        for method in ("full", "ia3")
    ]
    return make_results(make_task(found), make_task(entities, "entities"))


def test_every_figure_is_written_in_two_forms_with_captions(everything: Results, tmp_path: Path) -> None:
    written = figures.write_figures(everything, tmp_path)
    expected = [f"{name}.{kind}" for name in figures.FIGURES for kind in ("svg", "pdf")]
    assert [path.name for path in written] == [*expected, "README.md"]
    readme = (tmp_path / "README.md").read_text()
    for path in written[:-1]:
        assert f"({path.name})" in readme
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
            assert "<text" not in path.read_text(), "glyphs are outlines: it looks the same without the font"
        else:
            content = path.read_bytes()
            assert content.startswith(b"%PDF") and b"/FontFile2" in content, "fonts are embedded"
            assert b"/Type3" not in content and b"CreationDate" not in content
    assert "## Left out" not in readme


def test_same_results_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    task = make_task([make(method=method, curve=(), per_label={}) for method in ("full", "lora", "ia3")])
    (tmp_path / "results").write_bytes(pickle.dumps(make_results(task)))
    figures.write_figures(make_results(task), tmp_path / "here")
    program = (
        "import pickle, sys; from pathlib import Path; from posology.report import figures; "
        "figures.write_figures(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "results"), str(tmp_path / "there")], check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    written = sorted((tmp_path / "here").iterdir())
    assert len(written) == 5, "two figures in two forms"
    for path in written:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name


def test_own_settings_of_matplotlib_neither_count_nor_change(tmp_path: Path) -> None:
    results = make_results(make_task([make(curve=(), per_label={})]))
    figures.write_figures(results, tmp_path / "a")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        figures.write_figures(results, tmp_path / "b")
        assert matplotlib.rcParams["font.size"] == 30
    name = "figure1-parameters.svg"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_missing_is_said_and_old_files_go(tmp_path: Path) -> None:
    (tmp_path / "figure3b-shots.svg").write_text("old")
    (tmp_path / "mine.svg").write_text("stays")
    written = figures.write_figures(make_results(make_task([make(curve=())])), tmp_path)
    assert {path.stem for path in written} == {"figure1-parameters", "labels", "README"}
    assert not (tmp_path / "figure3b-shots.svg").exists() and (tmp_path / "mine.svg").exists()
    left_out = (tmp_path / "README.md").read_text().partition("## Left out")[2]
    assert left_out.count("\n- ") == len(figures.FIGURES) - 2
    assert "no method was run on one backbone with two numbers of examples" in left_out
    assert "the domains here: general" in left_out and "keeps no answers by document" in left_out


def test_no_score_at_all(tmp_path: Path) -> None:
    undefined = make(value=None, validation=None, curve=({"step": 1, "seconds": 1.0, "loss": None, "score": None},))
    assert [path.name for path in figures.write_figures(make_results(make_task([undefined])), tmp_path)] == [
        "README.md"
    ]
    assert [path.name for path in figures.write_figures(make_results(), tmp_path)] == ["README.md"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        figures.write_figures(make_results(make_task([make()])), tmp_path / "file")


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    long = "an-unusually-long-name-of-a-folder-with-a-backbone-in-it-$x_1$-<&>-end"
    plain = {"backbone": long, "curve": (), "per_label": {}}
    task = make_task([make(**plain), make(method="full", **plain)], "$\\frac{1}{$ & <b>")
    figures.write_figures(make_results(task), tmp_path)
    drawing = drawn(pareto.pareto, make_results(task))
    assert "$\\frac{1}{$ & <b>, macro-F1" in names(drawing.figure)
    assert all(len(text) < 60 for text in names(drawing.figure))
    assert long in drawing.caption


# --- which configurations are shown -------------------------------------------------------------------------------


def test_validation_chooses_not_test() -> None:
    lucky = make("lucky", value=0.9, validation=0.5, overrides={"epochs": 2})
    good = make("good", value=0.7, validation=0.8, overrides={"epochs": 3})
    given_up = make("given up", value=0.95, validation=0.99, ended_early=True)
    assert [c.name for c in choose.alike(make_task([lucky, good, given_up])).values()] == ["good"]


def test_figure_1_is_under_the_largest_budget() -> None:
    few = make("few", shots=16, validation=0.9)
    timed = make("timed", max_seconds=60.0, validation=0.9)
    unlimited = make("unlimited", validation=0.1)
    assert [c.name for c in choose.alike(make_task([few, timed, unlimited])).values()] == ["unlimited"]
    assert [c.name for c in choose.alike(make_task([few, timed])).values()] == ["few"]
    assert choose.alike(make_task([make(value=None)])) == {}


def test_curves_over_seeds() -> None:
    first = (np.array([1.0, 3.0]), np.array([0.0, 0.4]))
    second = (np.array([2.0, 4.0]), np.array([0.6, 0.8]))
    x, middle, low, high = choose.over_seeds([first, second])
    assert x.tolist() == [2.0, 3.0, 4.0], "from where both have begun; the first keeps its last value at 4"
    assert middle.tolist() == pytest.approx([0.4, 0.55, 0.6])
    assert low.tolist() == pytest.approx([0.2, 0.4, 0.4]) and high.tolist() == pytest.approx([0.6, 0.7, 0.8])


def test_curves_leave_out_what_is_undefined() -> None:
    run = make_run(curve=({"step": 3, "score": 0.5}, {"step": 1, "score": 0.2}, {"step": 2, "score": None}))
    x, y = choose.curve(run, "step", "score")
    assert x.tolist() == [1, 3] and y.tolist() == [0.2, 0.5]
    assert len(choose.curve(run, "seconds", "score")[0]) == 0


def test_paper_value_only_for_the_paper_s_own_task() -> None:
    configuration = make(backbone="biobert", method="lora", metric="auroc")
    own = make_task([configuration], "mortality", published="mimic-mp")
    assert choose.paper_value(own, configuration) == Score(0.828, 0.828 - 0.002, 0.828 + 0.002)
    assert choose.paper_value(make_task([configuration], "mimic-mp"), configuration) is None, "made of something else"
    for other in (
        make(backbone="biobert", method="lora", metric="macro_f1"),
        make(backbone="biobert:3", method="lora", metric="auroc"),
        make(backbone="biobert", method="lora", metric="auroc", shots=16),
        make(backbone="biobert", method="head", metric="auroc"),
    ):
        assert choose.paper_value(make_task([other], published="mimic-mp"), other) is None
    drawing = drawn(scores.parameters, make_results(own))
    assert "hollow: the paper (validation, SD)" in names(drawing.figure) and "Hollow markers" in drawing.caption


# --- figures ------------------------------------------------------------------------------------------------------


def test_parameters_figure_shows_values_and_intervals(everything: Results) -> None:
    drawing = drawn(scores.parameters, everything)
    axis = drawing.figure.axes[0]
    shown = {
        tuple(point) for group in axis.collections if hasattr(group, "get_offsets") for point in group.get_offsets()
    }
    pairs = choose.alike(everything.tasks[0])
    adapted = [c for c in pairs.values() if c.first.backbone]
    assert len(adapted) == 8
    assert shown >= {(c.first.trainable_parameters, c.mean.value) for c in adapted}
    assert axis.get_xscale() == "log" and len(axis.get_xticks()) >= 3
    assert any(list(line.get_ydata()) == [0.6, 0.6] for line in axis.lines), "the baseline is a level line"
    assert "all documents" in drawing.caption


def test_domains_figure_compares_within_families(everything: Results) -> None:
    drawing = drawn(scores.domains, everything)
    (axis,) = drawing.figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["G", "B\ntinybert", "C", "G", "B\nbert", "C"]
    assert drawing.remarks == ["entities: no family of backbones from two domains."]
    with pytest.raises(LeftOut, match="biomedical"):
        drawn(scores.domains, make_results(make_task([make(backbone="biobert"), make(backbone="tiny-clinicalbert")])))


def test_time_figure_has_budget_lines_and_all_seeds() -> None:
    short = make("5 s", seeds=[0.5, 0.7], max_seconds=5.0)
    long = make("15 s", seeds=[0.5, 0.7], max_seconds=15.0)
    drawing = drawn(budgets.time, make_results(make_task([short, long, make("free")])))
    (axis,) = drawing.figure.axes
    dotted = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"]
    assert dotted == [5.0, 15.0]
    curves = [line for line in axis.lines if len(line.get_xdata()) == 4]
    assert [line.get_alpha() for line in curves] == [0.4, 1.0], "the free run is no part of the time study"
    assert "lowest to the highest seed" in drawing.caption


@pytest.mark.parametrize(("longest", "unit", "last"), [(40.0, "s", 40.0), (4000.0, "min", 66.7), (40000.0, "h", 11.1)])
def test_time_has_a_unit_that_suits(longest: float, unit: str, last: float) -> None:
    curve = tuple({"step": i, "seconds": longest * i / 4, "score": 0.5} for i in range(1, 5))
    (axis,) = drawn(budgets.time, make_results(make_task([make(curve=curve)]))).figure.axes
    assert axis.get_xlabel() == f"training time ({unit})"
    assert axis.lines[0].get_xdata()[-1] == pytest.approx(last, rel=0.01)


def test_time_is_logarithmic_where_it_spans_orders() -> None:
    curve = tuple({"step": i, "seconds": 10.0**i, "score": 0.5} for i in range(-1, 3))
    (axis,) = drawn(budgets.time, make_results(make_task([make(curve=curve)]))).figure.axes
    assert axis.get_xscale() == "log"


def test_shots_figure_shows_median_and_spread() -> None:
    series = [make(f"{n}", seeds=[0.5, 0.6, 0.8], shots=n) for n in (8, 16, 32)]
    other = [make("other recipe", shots=64, overrides={"epochs": 9}), make("all")]
    (axis,) = drawn(budgets.shots, make_results(make_task([*series, *other]))).figure.axes
    (line,) = [line for line in axis.lines if len(line.get_xdata()) > 1]
    assert list(line.get_xdata()) == [8, 16, 32] and list(line.get_ydata()) == [0.6, 0.6, 0.6]
    band = axis.collections[0].get_datalim(axis.transData)
    assert (band.y0, band.y1) == pytest.approx((0.6 - stdev([0.5, 0.6, 0.8]), 0.6 + stdev([0.5, 0.6, 0.8])))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["8", "16", "32"]
    assert axis.get_xscale() == "log"


def test_rank_figure_shows_paired_differences(everything: Results) -> None:
    drawing = drawn(rank.rank, everything)
    assert len(drawing.figure.axes) == 4
    axis = drawing.figure.axes[0]
    points = np.concatenate([group.get_offsets() for group in axis.collections if len(group.get_offsets()) == 2])
    assert points[0].tolist() == [3.0, 0.0] and points[1][0] == 4.0, "rank 8 is the reference"
    bars = [group for group in axis.collections if isinstance(group, LineCollection)]
    segments = [tuple(part[:, 1]) for group in bars for part in group.get_segments()]
    assert any(low < points[1][1] < high and high - low > 0.01 for low, high in segments)
    assert not drawing.remarks


def test_rank_figure_without_answers_has_no_intervals() -> None:
    two = [make("8", value=0.7), make("4", value=0.75, overrides={"rank": 4})]
    drawing = drawn(rank.rank, make_results(make_task(two)))
    (axis,) = drawing.figure.axes
    points = np.concatenate([group.get_offsets() for group in axis.collections if len(group.get_offsets()) == 2])
    assert points[:, 1].tolist() == pytest.approx([0.05, 0.0]) and points[:, 0].tolist() == [2, 3]
    assert "Points without a bar" in drawing.remarks[0]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30))
def test_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    def beaten(own: tuple[int, int]) -> bool:
        return any(p[0] <= own[0] and p[1] >= own[1] and p != own for p in points)

    members = pareto.front(points)
    assert {points[i] for i in members} == {p for p in points if not beaten(p)}
    assert len({points[i] for i in members}) == len(members)
    assert [points[i] for i in members] == sorted(points[i] for i in members)


def test_pareto_figure_has_a_panel_for_each_measure() -> None:
    found = [make(method=m, value=v) for m, v in (("full", 0.9), ("lora", 0.8), ("ia3", 0.7), ("head", 0.6))]
    drawing = drawn(pareto.pareto, make_results(make_task(found)))
    labels = [axis.get_xlabel() for axis in drawing.figure.axes]
    assert labels == ["cost of training (GBP)", "latency, median (ms)", "parameters, backbone included"]
    assert (
        "cost of training (GBP): head on tinybert; ia3 on tinybert; lora on tinybert; full on tinybert"
        in drawing.caption
    )
    bare = [make(method=m, value=v, cost=None, measures={}) for m, v in (("full", 0.9), ("lora", 0.8))]
    labels = [axis.get_xlabel() for axis in drawn(pareto.pareto, make_results(make_task(bare))).figure.axes]
    assert labels == ["training time (s)", "parameters, backbone included", "stored besides the backbone"]


def test_labels_never_overlap() -> None:
    generator = np.random.default_rng(0)
    values = np.sort(generator.random(12))
    found = [
        make(f"configuration number {i} with a name", value=float(v), backbone=f"backbone-{i}", cost=float(1 + 0.2 * i))
        for i, v in enumerate(values)
    ]
    drawing = drawn(pareto.pareto, make_results(make_task(found)))
    drawing.figure.canvas.draw()
    placed = 0
    for axis in drawing.figure.axes:
        boxes = [Text.get_window_extent(text) for text in axis.texts if text.get_text().startswith("lora")]
        placed += len(boxes)
        frame = axis.get_window_extent().padded(7)
        for i, box in enumerate(boxes):
            assert frame.containsx(box.x0) and frame.containsx(box.x1) and frame.containsy(box.y0)
            assert not any(box.overlaps(other) for other in boxes[:i])
    assert placed > 5
    assert "have no label in the drawing" in drawing.remarks[-1]


def test_a_label_without_room_is_left_out() -> None:
    figure = Figure(figsize=(1, 0.5))
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    assert placing.place_labels(axis, [(0.5, 0.5)], ["far too long for a panel of one inch"], [(0.5, 0.5)]) == 0
    assert placing.place_labels(axis, [(0.2, 0.5)], ["a"], [(0.2, 0.5)]) == 1


def test_reliability_figure_uses_the_temperature(tmp_path: Path) -> None:
    gold = np.arange(100) % 2
    logits = 4.0 * np.eye(2)[gold]
    logits[:10] = logits[:10, ::-1]  # a tenth is wrong
    artifact = write_answers(tmp_path / "a", logits, gold, temperature=2.0)
    drawing = drawn(quality.reliability, make_results(make_task([make(artifact=artifact)])))
    (axis,) = drawing.figure.axes
    expected = 1 / (1 + math.exp(-2.0))
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if len(line.get_xdata()) == 1]
    assert points[0] == pytest.approx((expected, 0.9), abs=1e-6)
    assert f"ECE {abs(0.9 - expected):.3f}" in axis.get_title(loc="left")


def test_learning_curves_of_the_best() -> None:
    best = make("best", method="full", value=0.9)
    drawing = drawn(budgets.learning, make_results(make_task([make(), best])))
    loss, score = drawing.figure.axes
    assert list(loss.lines[0].get_ydata()) == [1, 1 / 2, 1 / 3, 1 / 4] and loss.get_ylabel() == "training loss"
    assert list(score.lines[0].get_ydata()) == pytest.approx([0.55, 0.6, 0.65, 0.7])
    assert "notes: best" in drawing.caption


def test_labels_figure_sorts_and_says_what_is_undefined() -> None:
    per_label = {
        "rare": {"precision": None, "recall": None, "f1": None, "support": 0},
        "good": {"precision": 0.9, "recall": 0.7, "f1": 0.8, "support": 1200},
        "bad": {"precision": 0.3, "recall": 0.5, "f1": 0.4, "support": 12},
    }
    (axis,) = drawn(quality.labels, make_results(make_task([make(per_label=per_label)]))).figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["rare", "bad", "good"], "from the bottom up"
    assert [bar.get_width() for bar in axis.patches] == [0.4, 0.8]
    assert {"undefined", "1,200", "12"} <= {text.get_text() for text in axis.texts}
    many = {f"label {i}": {"f1": 0.5, "support": i} for i in range(60)}
    drawing = drawn(quality.labels, make_results(make_task([make(per_label=many)])))
    assert drawing.remarks == ["notes: the 20 most frequent of 60 labels."]
    assert {label.get_text() for label in drawing.figure.axes[0].get_yticklabels()} == {
        f"label {i}" for i in range(40, 60)
    }


def test_each_method_has_its_own_look_everywhere() -> None:
    methods = ["full", "lora", "ia3", "head", "prefix", "prompt", "p-tuning", "dora", "rslora", "bitfit", "layernorm"]
    looks = Looks(make_results(make_task([make(method=m) for m in methods] + [make(method="tf-idf", backbone=None)])))
    assert len({(looks[m].colour, looks[m].marker) for m in methods}) == len(methods)
    assert len({looks[m].marker for m in methods}) == len(methods), "told apart without colour"
    assert looks["tf-idf"].colour == style.GREY
    assert looks["lora"] == Looks(make_results(make_task([make()])))["lora"], "whatever else a report shows"


def test_many_panels_are_capped_and_said() -> None:
    found = [make(backbone=f"backbone-{i:02d}", shots=n) for i in range(30) for n in (8, 16)]
    drawing = drawn(budgets.shots, make_results(make_task(found)))
    assert len(drawing.figure.axes) == 16
    assert drawing.remarks[0].startswith("Only the first 16 of 30 panels are drawn; without backbone-16 on notes")


def test_two_thousand_configurations_of_one_task(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    found = [
        make(f"lora on tinybert, learning_rate={i}", value=float(v), validation=float(v), curve=(), per_label={},
             overrides={"learning_rate": i}, cost=float(c))
        for i, (v, c) in enumerate(zip(generator.random(2000), generator.random(2000) + 0.01, strict=True))
    ]  # fmt: skip
    figures.write_figures(make_results(make_task(found)), tmp_path)
    assert "behind the front are not drawn" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "pareto.svg").stat().st_size < 2e6


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [("short", 10, "short"), ("abcdefghij", 7, "abcd…ij"), ("two\n lines", 20, "two lines")],
)
def test_shorten(text: str, length: int, expected: str) -> None:
    assert style.shorten(text, length) == expected


def test_listed() -> None:
    assert style.listed(["a"]) == "a" and style.listed(["a", "b", "c"]) == "a, b and c"
    assert style.listed(map(str, range(9)), 4) == "0, 1, 2 and 6 others"


@pytest.mark.parametrize("span", [1.0, 1.5, 4.0, 30.0, 1e3, 1e7])
def test_log_axes_have_readable_ticks(span: float) -> None:
    axis = Figure().add_subplot()
    style.log_axis(axis, [20.0, 20.0 * span], style.number)
    ticks = axis.get_xticks()
    low, high = axis.get_xlim()
    assert 2 <= len(ticks) <= 7 and all(low <= tick <= high for tick in ticks) and low < 20 < high
    assert not any(re.search("[eE]", label.get_text()) for label in axis.get_xticklabels())
