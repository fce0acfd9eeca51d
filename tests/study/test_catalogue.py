"""The studies that come with the program: counted by hand, and made of names that exist."""

from __future__ import annotations

import functools
import re
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from posology import catalog
from posology.errors import UserError
from posology.study.spec import Range, catalogue, cells, check, expand, read_study
from posology.study.twins import prepare_twin_tasks
from posology.tasks.prepared import PreparedTask

SEEDS = (12, 34, 56)
FOUR = ("tiny-biobert", "bio-mobilebert", "bio-distilbert", "biobert")
TASKS = {
    "icd9-triage": "mimic-triage", "i2b2-2010-re": "i2b2-2010-re", "mimic-los": "mimic-los", "mimic-mp": "mimic-mp",
    "i2b2-2010-ner": "i2b2-2010-ner", "i2b2-2012-ner": "i2b2-2012-ner", "i2b2-2014-ner": "i2b2-2014-ner",
}  # fmt: skip
"""The tables' names of tasks, and ours."""

RUNS = {
    "paper/table3": 4 * 3 * 7 * 3,
    "paper/table-c6": 7 * 2 * 4 + 6 * 2 * 3,
    "paper/figure3a": 4 * 2 * 2 * 3 + 1 * 1 * 3 * 3,
    "paper/figure3b": 4 * 2 * 10 * 3 + 1 * 1 * 10 * 3,
    "paper/figure-b4": 5 * 5 * 20,
    "paper/table4": 4 * 2 + 1,
    "small/table3": 4 * 3 * 2 * 1,
    "small/table-c6": 2 * 2 * 2 + 1 * 2 * 1,
    "small/figure3a": 4 * 2 * 2 * 1,
    "small/figure3b": 2 * 2 * 3 * 1,
    "small/figure-b4": 2 * 3 * 4,
    "small/table4": 4 * 2,
}


def rows(table: str) -> Counter[tuple[str, str, str]]:
    """Task, backbone and method of every value in one of the paper's tables."""
    found = Counter()
    for row in catalog.paper_table(table):
        backbone = catalog.find(row["model"])
        assert backbone is not None
        found[TASKS[row["task"]] if "task" in row else "mimic-mp", backbone.name, row["method"]] += 1
    return found


def test_every_study_has_its_twin() -> None:
    assert catalogue() == sorted(RUNS)
    names = [name.partition("/") for name in catalogue()]
    assert {name for kind, _, name in names if kind == "paper"} == {name for kind, _, name in names if kind == "small"}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_runs_are_as_many_as_counted_by_hand(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no prepared task is near
    study = read_study(name)
    assert study.study == name
    assert expand(study).runs == RUNS[name]
    text = resources.files("posology.catalog").joinpath(f"studies/{name}.yaml").read_text(encoding="utf-8")
    stated = re.findall(r"([\d,]+) runs", text.partition("\nstudy:")[0])
    assert stated == [str(RUNS[name])], "the comment's arithmetic ends in the same number"


@pytest.mark.parametrize("name", sorted(RUNS))
def test_names_are_known(name: str) -> None:
    from posology.tasks.clinical import TASKS as CLINICAL

    study = read_study(name)
    assert set(study.tasks) <= set(CLINICAL)
    assert all(catalog.find(backbone.partition(":")[0]) for backbone in study.backbones)
    if name.startswith("small/"):
        bundled = {backbone.name for backbone in catalog.backbones().values() if backbone.bundled}
        assert {backbone.partition(":")[0] for backbone in study.backbones} <= bundled
    else:
        assert study.recipe == "paper"


def test_table3_and_c6_are_the_papers_tables() -> None:
    for name, table, seeds in (("paper/table3", "table3_peft", 3), ("paper/table-c6", "tableC6_domain", 1)):
        found = Counter((cell.task, str(cell.backbone), cell.method) for cell in cells(read_study(name)))
        assert found == Counter({row: count * seeds for row, count in rows(table).items()})
    assert {cell.seed for cell in cells(read_study("paper/table3"))} == set(SEEDS)


def test_table4_is_the_papers() -> None:
    found = cells(read_study("paper/table4"))
    assert Counter((cell.task, str(cell.backbone), cell.method) for cell in found) == rows("table4_cost")
    assert {(cell.overrides["epochs"], cell.overrides["patience"]) for cell in found} == {(10, 10)}


def test_figure3a_spends_seconds_and_scores_by_time() -> None:
    found = cells(read_study("paper/figure3a"))
    assert {(cell.task, cell.evaluate_seconds) for cell in found} == {("mimic-mp", 100.0)}
    small = Counter((cell.backbone, cell.method, cell.max_seconds) for cell in found if cell.backbone in FOUR)
    assert small == {(name, method, limit): 3 for name in FOUR for method in ("full", "lora") for limit in (2000, 6000)}
    large = [cell for cell in found if cell.backbone not in FOUR]
    assert {(cell.backbone, cell.method) for cell in large} == {("llama-2-7b", "lora")}
    assert Counter(cell.max_seconds for cell in large) == {2000: 3, 6000: 3, 21500: 3}


def test_figure3b_doubles_from_8_to_4096() -> None:
    found = cells(read_study("paper/figure3b"))
    small = Counter((cell.backbone, cell.method, cell.shots) for cell in found if cell.backbone in FOUR)
    doubled = [2**power for power in range(3, 13)]
    assert small == {(name, method, shots): 3 for name in FOUR for method in ("full", "lora") for shots in doubled}
    large = [cell for cell in found if cell.backbone not in FOUR]
    assert {(cell.backbone, cell.method, cell.overrides["quantise"]) for cell in large} == {
        ("llama-2-7b", "lora", "8bit")
    }


def test_figure_b4_searches_each_rank() -> None:
    study = read_study("paper/figure-b4")
    found = Counter((cell.backbone, cell.overrides["rank"]) for cell in cells(study))
    assert found == {(name, rank): 1 for name in (*FOUR, "roberta") for rank in (8, 16, 32, 64, 128)}
    assert study.search is not None
    assert (study.search.trials, study.search.pruner, study.search.metric) == (20, "none", "auroc")
    assert study.search.space == {
        "learning_rate": Range(low=1e-5, high=1e-3, log=True),
        "alpha_ratio": (0.3, 0.5, 1.0),
        "adapter_dropout": (0.1, 0.3, 0.5),
    }


def test_a_missing_task_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"paper/table3:\d+: tasks\[0\]: there is no folder .*mimic-triage.*--tasks"):
        check(read_study("paper/table3", tmp_path))


def test_twin_tasks_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, Any]] = []
    twins = tmp_path / "twins"
    assert prepare_twin_tasks(twins, ["i2b2-2010-ner"], patients=20) == twins
    assert PreparedTask.open(twins / "i2b2-2010-ner").kind == "token-classification"

    import posology.synthetic.command as command
    import posology.tasks.generic as generic

    prepare = generic.prepare

    @functools.wraps(prepare)
    def counted(task: Any, *rest: Any) -> Any:
        made.append((task, None))
        return prepare(task, *rest)

    monkeypatch.setattr(command, "synthesise", lambda **options: made.append(("hospital", options)))
    monkeypatch.setattr(generic, "prepare", counted)
    prepare_twin_tasks(twins, ["i2b2-2010-ner", "i2b2-2010-re", "i2b2-2010-re"], patients=20)
    assert made == [("i2b2-2010-re", None)], "the hospital and the first task were there"
    check(read_study(_study(tmp_path), twins))

    with pytest.raises(UserError, match="has 20 patients, and 30 are asked for"):
        prepare_twin_tasks(twins, [], patients=30)
    with pytest.raises(UserError, match=r"no such task.*Write mimic-mp"):
        prepare_twin_tasks(twins, ["mimic-mpp"], patients=20)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "1.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        prepare_twin_tasks(tmp_path / "notes", ["mimic-mp"], patients=20)


def _study(folder: Path) -> Path:
    path = folder / "study.yaml"
    path.write_text("study: s\ntasks: [i2b2-2010-re, i2b2-2010-ner]\nbackbones: [minilm]\nmethods: [full]\n")
    return path


def test_a_half_written_hospital_is_written_anew(tmp_path: Path) -> None:
    prepare_twin_tasks(tmp_path / "twins", [], patients=20)
    (tmp_path / "twins" / "hospital" / "synthetic.json").unlink()
    prepare_twin_tasks(tmp_path / "twins", ["i2b2-2010-re"], patients=20)
    assert PreparedTask.open(tmp_path / "twins" / "i2b2-2010-re").counts["train"] > 0


def test_the_examples_of_the_guide_are_right(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "studies.md").read_text(encoding="utf-8")
    first, patterns, search = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    path = tmp_path / "study.yaml"
    path.write_text(first)
    found = Counter(cell.method for cell in cells(read_study(path)))
    assert (found["full"] + found["lora"], found["tf-idf"]) == (54, 9)
    begin = "study: s\ntasks: [mimic-los, a-ner]\nbackbones: [tiny-biobert, biobert]\nmethods: [full, lora]\n"
    path.write_text(begin + patterns)
    assert not any(cell.method == "full" for cell in cells(read_study(path)))
    ranks = Counter(cell.backbone for cell in cells(read_study(path)))
    assert ranks == {"tiny-biobert": 2 * 3, "biobert": 2 * 2}
    path.write_text(begin.replace("full, ", "") + search)
    assert expand(read_study(path)).runs == 2 * 2 * 2 * 20
    for name, runs in re.findall(r"\| `(paper/\S+)` \| (\d+) \|", guide):
        assert RUNS[name] == int(runs)
    assert set(re.findall(r"\| `(paper/\S+)` \|", guide)) == {name for name in RUNS if name.startswith("paper/")}
