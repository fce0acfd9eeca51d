"""Study files: what they come to, and what is said of faulty ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from posology.errors import UserError
from posology.study.grid import fields_of
from posology.study.spec import StudyFile, cells, check, expand, read_study
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import save_backbone

GOOD = """\
study: comparison
tasks:
  mortality: data/mp
  entities: data/ner
backbones: [minilm, "minilm:2"]
methods: [full, lora]
seeds: [1, 2]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str) -> StudyFile:
    return read_study(write(folder, text))


def test_the_product_in_order(tmp_path: Path) -> None:
    found = cells(read(tmp_path, GOOD))
    assert len(found) == len(set(map(repr, found))) == 2 * 2 * 2 * 2
    assert [(cell.task, cell.backbone, cell.method, cell.seed) for cell in found[:5]] == [
        ("mortality", "minilm", "full", 1),
        ("mortality", "minilm", "full", 2),
        ("mortality", "minilm", "lora", 1),
        ("mortality", "minilm", "lora", 2),
        ("mortality", "minilm:2", "full", 1),
    ]
    assert found[0].data == tmp_path / "data" / "mp"
    assert found == cells(read(tmp_path, GOOD))


def test_tasks_as_a_list_and_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path, "study: s\ntasks: [a/mp, b]\nbackbones: [minilm]\nmethods: [lora]\n")
    assert {cell.task: cell.data for cell in cells(read_study(path))} == {"mp": tmp_path / "a/mp", "b": tmp_path / "b"}
    elsewhere = tmp_path / "elsewhere"
    assert [cell.data for cell in cells(read_study(path, elsewhere))] == [elsewhere / "a/mp", elsewhere / "b"]


def test_settings_by_pattern_and_the_later_wins(tmp_path: Path) -> None:
    text = GOOD + (
        "recipe: paper\n"
        "set: {epochs: 3, learning_rate: 1e-3}\n"
        "budgets: {max_memory: 2GB, max_seconds: 60}\n"
        "overrides:\n"
        '  - {match: {backbone: "minilm*", method: lora}, set: {epochs: 4}}\n'
        '  - {match: {backbone: "minilm:?"}, set: {epochs: 5}}\n'
        "  - {match: {task: [entities], method: full}, skip: true}\n"
        "  - {match: {task: entities}, set: {batch_size: 8}}\n"
    )
    found = cells(read(tmp_path, text))
    assert len(found) == 16 - 4 and not [cell for cell in found if cell.task == "entities" and cell.method == "full"]
    epochs = {(cell.backbone, cell.method): cell.overrides["epochs"] for cell in found if cell.task == "mortality"}
    assert epochs == {
        ("minilm", "full"): 3, ("minilm", "lora"): 4, ("minilm:2", "full"): 5, ("minilm:2", "lora"): 5,
    }  # fmt: skip
    assert all(cell.overrides["learning_rate"] == 0.001 for cell in found), "1e-3 is a number"
    assert {cell.overrides.get("batch_size") for cell in found if cell.task == "entities"} == {8}
    assert {(cell.recipe, cell.max_memory, cell.max_seconds) for cell in found} == {("paper", 2 * 10**9, 60.0)}
    assert expand(read(tmp_path, text)).left_out == ["4 runs skipped by overrides"]


def test_sweeps_multiply_what_they_match(tmp_path: Path) -> None:
    text = GOOD + (
        "sweep:\n"
        "  - {shots: [8, null], seconds: [10, 20.5]}\n"
        "  - {match: {task: mortality}, shots: [4, 8, 16]}\n"
    )  # fmt: skip
    found = cells(read(tmp_path, text))
    for task, shots in (("mortality", {4, 8, 16}), ("entities", {8, None})):
        own = [cell for cell in found if cell.task == task]
        assert {cell.shots for cell in own} == shots and {cell.max_seconds for cell in own} == {10.0, 20.5}
        assert len(own) == 2 * 2 * 2 * len(shots) * 2


def test_rank_multiplies_only_what_has_one(tmp_path: Path) -> None:
    grid = expand(read(tmp_path, GOOD + "set: {alpha: 4}\nsweep: {rank: [2, 4, 8], batch_size: [8, 16]}\n"))
    full = [cell.overrides for cell in grid.cells if cell.method == "full"]
    assert len(grid.cells) == 2 * 2 * 2 * (2 + 6)
    assert {frozenset(overrides) for overrides in full} == {frozenset({"batch_size"})}
    assert grid.left_out == ["32 runs counted once: full has no rank"]


@pytest.mark.parametrize("method", ["full", "head", "lora", "dora", "rslora", "ia3", "prefix", "prompt", "p-tuning"])
def test_fields_that_a_method_has_change_it_and_others_do_not(method: str, backbone: Path) -> None:
    from posology.engine.backbone import load_model, resolve
    from posology.engine.methods import adapt
    from posology.engine.recipe import make_recipe

    own = fields_of(method)
    changed = {
        "rank": 3, "targets": "all", "virtual_tokens": 7, "encoder_width": 17, "top_layers": 1, "adapter_dropout": 0.5,
        "alpha": 3.0,
    }  # fmt: skip

    def built(overrides: dict[str, object]) -> tuple[list[tuple[str, tuple[int, ...]]], str]:
        recipe = make_recipe(method, "standard", overrides)
        base, new = load_model(resolve(str(backbone)), "sequence-classification", ("a", "b"), recipe, method=method)
        module = adapt(base, method, recipe, "sequence-classification", new_modules=new).module
        weights = [(name, tuple(weight.shape)) for name, weight in module.named_parameters() if weight.requires_grad]
        return weights, repr(getattr(module, "peft_config", None))

    plain = built({})
    for field, value in changed.items():
        if field == "top_layers" and field not in own:
            with pytest.raises(UserError, match="top_layers"):
                built({field: value})
        else:
            assert (built({field: value}) != plain) == (field in own), field


def test_baselines_have_no_backbone_and_only_their_kind(tmp_path: Path) -> None:
    text = (
        "study: s\ntasks: [mimic-mp, i2b2-2010-ner, mine]\nbackbones: [minilm, tinybert]\n"
        "methods: [lora, tf-idf, dictionary]\nrecipe: paper\nset: {epochs: 2, C: 1}\nseeds: [1, 2]\n"
        "budgets: {evaluate_seconds: 5}\n"
    )
    grid = expand(read(tmp_path, text))
    baselines = [cell for cell in grid.cells if cell.backbone is None]
    assert {(cell.task, cell.method) for cell in baselines} == {
        ("mimic-mp", "tf-idf"), ("i2b2-2010-ner", "dictionary"), ("mine", "tf-idf"), ("mine", "dictionary"),
    }  # fmt: skip
    assert len(baselines) == 8 and len(grid.cells) == 8 + 3 * 2 * 2
    assert {tuple(cell.overrides.items()) for cell in baselines if cell.method == "tf-idf"} == {(("C", 1.0),)}
    assert {(cell.recipe, cell.evaluate_seconds) for cell in baselines} == {("standard", None)}
    assert grid.left_out == [
        "2 runs left out: dictionary is for token-classification, and mimic-mp is sequence-classification",
        "2 runs left out: tf-idf is for sequence-classification, and i2b2-2010-ner is token-classification",
    ]


def test_a_prepared_task_says_its_kind(tmp_path: Path, tagging: PreparedTask) -> None:
    study = read(tmp_path, f"study: s\ntasks: [{tagging.folder}]\nmethods: [tf-idf, dictionary]\n")
    assert [cell.method for cell in cells(study)] == ["dictionary"]


def test_folders_as_backbones_are_written_from_the_file(tmp_path: Path, backbone: Path) -> None:
    (tmp_path / "model").symlink_to(backbone, target_is_directory=True)
    study = read(tmp_path, 'study: s\ntasks: [a]\nbackbones: [./model, "model:1", owner/name]\nmethods: [head]\n')
    for found in (study, read_study(tmp_path / "study.yaml", tmp_path / "elsewhere")):
        named = [cell.backbone for cell in cells(found)]
        assert named == [str(tmp_path / "model"), f"{tmp_path / 'model'}:1", "owner/name"]


def test_searches_count_their_trials(tmp_path: Path) -> None:
    text = GOOD.replace("full, ", "") + (
        "sweep: {rank: [2, 4]}\nsearch:\n  trials: 7\n  objective: [metric, cost]\n  space:\n"
        "    learning_rate: {low: 1e-5, high: 1e-3, log: true}\n    alpha_ratio: [0.5, 1]\n    targets: [default, [query]]\n"
    )
    study = read(tmp_path, text)
    assert study.search is not None and study.search.objective == ("metric", "cost")
    assert study.search.space["targets"] == ("default", ["query"])
    grid = expand(study)
    assert (len(grid.cells), grid.runs) == (16, 16 * 7)


def test_merge_keys_and_anchors(tmp_path: Path) -> None:
    text = GOOD + (
        "overrides:\n  - match: {method: lora}\n    set: &one {epochs: 2, rank: 4}\n"
        "  - match: {task: entities, method: lora}\n    set: {<<: *one, rank: 16}\n"
    )
    found = {cell.overrides.get("rank") for cell in cells(read(tmp_path, text)) if cell.method == "lora"}
    assert found == {4, 16}


FAULTS = {
    # name: (text to replace in GOOD or None to append, replacement, what the message says)
    "unknown key": (None, "backbons: [minilm]", 8, ["backbons", "there is no such key", "Write backbones"]),
    "unknown key inside": (None, "budgets: {max_second: 3}", 8, ["budgets.max_second", "Write max_seconds"]),
    "unknown key in a match": (
        None, "overrides:\n  - match: {taks: a}\n    skip: true", 9,
        ["overrides[0].match.taks", "task, backbone, method", "Write task"],
    ),
    "missing key": ("methods: [full, lora]\n", "", 1, ["methods: is missing", "Add methods"]),
    "unknown method": ("full, lora", "full, lroa", 6, ["methods[1]", "'lroa'", "rslora", "tf-idf", "Write lora"]),
    "unknown backbone": ("[minilm,", "[minilmm,", 5, ["backbones[0]", "'minilmm'", "catalogue", "Write minilm"]),
    "missing folder as backbone": ("[minilm,", "[./none,", 5, ["backbones[0]", "'./none'", "nor a folder"]),
    "too many layers": ("minilm:2", "minilm:9", 5, ["backbones[1]", "9 layers of 6", "1 to 6"]),
    "no number of layers": ("minilm:2", "minilm:x", 5, ["backbones[1]", "'x' is no number", "minilm:3"]),
    "no backbone": ('backbones: [minilm, "minilm:2"]\n', "", 1, ["backbones", "full adapts", "minilm"]),
    "unknown field": (None, "set: {learning_rat: 1}", 8, ["set.learning_rat", "epochs", "Write learning_rate"]),
    "unknown field in an override": (
        None, "overrides:\n  - match: {method: lora}\n    set:\n      epoch: 3", 11,
        ["overrides[0].set.epoch", "no such field", "Write epochs"],
    ),
    "unknown field in a sweep": (None, "sweep:\n  max_shots: [1]", 9, ["sweep.max_shots", "seconds", "Write shots"]),
    "unknown field in a search": (
        None, "search:\n  space:\n    layers: [1, 2]", 10, ["search.space.layers", "alpha_ratio", "Write top_layers"],
    ),
    "field of no method": (
        "methods: [full, lora]", "methods: [full, ia3]\nset: {rank: 8}", 7, ["set.rank", "does nothing for full, ia3"],
    ),
    "wrong type": ("seeds: [1, 2]", "seeds: [one, 2]", 7, ["seeds[0]", "'one'", "integer"]),
    "wrong type of a field": (None, "set: {epochs: many}", 8, ["set.epochs", "'many'", "integer"]),
    "no list": ("methods: [full, lora]", "methods: lora", 6, ["methods", "'lora'", "a list is needed", "[lora]"]),
    "out of range": (None, "set: {epochs: 0}", 8, ["set.epochs", "found 0", "greater than or equal to 1"]),
    "out of range in a sweep": (None, "sweep:\n  shots:\n    - 8\n    - 0", 11, ["sweep.shots[1]", "found 0", "from 1"]),
    "out of range in a space": (
        None, "search:\n  space:\n    learning_rate: {low: 1, high: 100}", 10,
        ["search.space.learning_rate.high", "found 100", "less than 10"],
    ),
    "seconds not above none": (None, "sweep: {seconds: [-2]}", 8, ["sweep.seconds[0]", "greater than 0"]),
    "wrong value of a choice": (None, "set: {schedule: linaer}", 8, ["set.schedule", "constant", "Write linear"]),
    "true as a number": (None, "set: {epochs: true}", 8, ["set.epochs", "True"]),
    "unknown recipe": (None, "recipe: papr", 8, ["recipe", "'papr'", "standard, paper", "Write paper"]),
    "unknown executor": (None, "executor: slurm", 8, ["executor", "'slurm'", "local, ray"]),
    "empty list": ("seeds: [1, 2]", "seeds: []", 7, ["seeds", "[]", "nothing is in it"]),
    "empty sweep": (None, "sweep: {rank: []}", 8, ["sweep.rank", "a list of values is needed", "rank: [...]"]),
    "sweep of nothing": (None, "sweep:\n  - match: {method: lora}", 9, ["sweep[0]", "varies nothing", "shots"]),
    "duplicate seeds": ("[1, 2]", "[1, 1]", 7, ["seeds[1]", "1 is there already", "number 0"]),
    "duplicate method": ("[full, lora]", "[full, lora, full]", 6, ["methods[2]", "'full'"]),
    "duplicate backbone by another name": (
        '"minilm:2"', "sentence-transformers/all-MiniLM-L6-v2", 5, ["backbones[1]", "all-MiniLM-L6-v2", "already"],
    ),
    "duplicate value of a sweep": (None, "sweep:\n  rank: [4, 8, 4]", 9, ["sweep.rank[2]", "4 is there already"]),
    "the same folder twice": ("data/ner", "data/mp", 4, ["tasks.entities", "same folder as mortality"]),
    "two tasks of one name": (
        "tasks:\n  mortality: data/mp\n  entities: data/ner", "tasks: [a/x, b/x]", 2, ["tasks", "called 'x'", "NAME: FOLDER"],
    ),
    "pattern for no task": (
        None, "overrides:\n  - match: {task: mortalty}\n    skip: true", 9,
        ["overrides[0].match.task", "'mortalty' matches no task", "Write mortality"],
    ),
    "one of the patterns for nothing": (
        None, "sweep:\n  match:\n    method:\n      - lora\n      - ia3\n  rank: [2]", 12,
        ["sweep.match.method[1]", "'ia3' matches no method", "full, lora"],
    ),
    "patterns that never meet": (
        "methods: [full, lora]",
        "methods: [full, tf-idf]\noverrides:\n  - match: {backbone: minilm, method: tf-idf}\n    skip: true", 8,
        ["overrides[0].match", "never meet"],
    ),
    "set and skip": (
        None, "overrides:\n  - match: {method: lora}\n    skip: true\n    set: {epochs: 1}", 9, ["overrides[0]", "both `set`"],
    ),
    "neither set nor skip": (None, "overrides:\n  - match: {method: lora}", 9, ["overrides[0]", "neither `set`"]),
    "all is skipped": (None, 'overrides: [{match: {task: "*"}, skip: true}]', 1, ["no run is left", "16 runs skipped"]),
    "low not below high": (
        None, "search:\n  space:\n    learning_rate:\n      low: 1e-3\n      high: 1e-5", 12,
        ["search.space.learning_rate.high", "1e-05", "not above low"],
    ),
    "logarithm of nothing": (
        None, "search:\n  space:\n    dropout: {low: 0, high: 0.5, log: true}", 10, ["search.space.dropout.low", "more than 0"],
    ),
    "range of names": (
        None, "search:\n  space:\n    schedule: {low: 0, high: 1}", 10, ["search.space.schedule.low", "'linear' or 'constant'"],
    ),
    "unknown key of a range": (
        None, "search: {space: {learning_rate: {low: 1e-5, hi: 1e-3}}}", 8, ["learning_rate.hi", "low, high, log", "Write high"],
    ),
    "unknown objective": (
        None, "search: {space: {epochs: [1, 2]}, objective: metrik}", 8, ["search.objective", "'metrik'", "Write metric"],
    ),
    "cost alone": (None, "search: {space: {epochs: [1]}, objective: [cost]}", 8, ["search.objective", "[metric, cost]"]),
    "halving of two": (
        None, "search: {space: {epochs: [1, 2]}, objective: [metric, cost], pruner: halving}", 8,
        ["search.pruner", "two objectives"],
    ),
    "unknown metric": (
        None, "search: {space: {epochs: [1, 2]}, metric: aurok}", 8, ["search.metric", "'aurok'", "Write auroc"],
    ),
    "no space": (None, "search: {trials: 3}", 8, ["search.space", "is missing"]),
    "swept and searched": (
        None, "sweep: {rank: [2]}\nsearch: {space: {rank: [2, 4], epochs: [1, 2]}}", 9, ["search.space.rank", "is swept too"],
    ),
    "alpha twice": (
        None, "search: {space: {alpha: [2], alpha_ratio: [1], epochs: [1]}}", 8, ["search.space.alpha", "alpha_ratio"],
    ),
    "a method without anything to search": (
        None, "search: {space: {rank: [2, 4]}}", 6, ["methods[0]", "full has nothing of the search's space"],
    ),
    "search of a baseline": (
        "methods: [full, lora]", "methods: [lora, tf-idf]\nsearch: {space: {rank: [2, 4]}}", 6, ["methods[1]", "no backbone"],
    ),
    "negative budget": (None, "budgets: {max_seconds: -5}", 8, ["budgets.max_seconds", "-5", "greater than 0"]),
    "no amount of memory": (None, "budgets: {max_memory: 4XB}", 8, ["budgets.max_memory", "4XB", "4GB"]),
    "wrong name of the study": ("comparison", "my study", 1, ["study", "'my study'"]),
    "duplicate key": (None, "seeds: [3]", 8, ["seeds", "is there already, in line 7"]),
    "tab": (None, "set:\n\tepochs: 3", 9, ["indented with a tab", "spaces"]),
    "endless weight decay": (None, "set: {weight_decay: inf}", 8, ["set.weight_decay", "finite"]),
    "endless alpha in a sweep": (None, "sweep: {alpha: [1, 1e999]}", 8, ["sweep.alpha[1]", "finite"]),
    "endless space": (
        None, "search: {space: {weight_decay: {low: 0, high: inf}}}", 8, ["search.space.weight_decay", "finite"],
    ),
    "endless choice": (None, "search: {space: {weight_decay: [0, inf]}}", 8, ["search.space.weight_decay[1]", "finite"]),
    "endless seconds": (None, "sweep: {seconds: [1e999]}", 8, ["sweep.seconds[0]", "greater than 0"]),
    "endless budget": (None, "budgets: {max_seconds: inf}", 8, ["budgets.max_seconds", "finite"]),
    "a seed of 77 bits": ("[1, 2]", "[1, 100000000000000000000000]", 7, ["seeds[1]", "4294967295"]),
    "true as a seed": ("[1, 2]", "[true, 2]", 7, ["seeds[0]", "integer"]),
    "the same number as text": (None, 'sweep: {rank: [8, "8"]}', 8, ["sweep.rank[1]", "'8' is there already"]),
    "the same choice as text": (
        None, 'search: {space: {epochs: [1, "1"], rank: [8]}}', 8, ["search.space.epochs[1]", "'1' is there already"],
    ),
    "search on a cluster": (
        None, "executor: ray\nsearch: {space: {epochs: [1, 2]}}", 8, ["executor", "searches run on this machine"],
    ),
    "no YAML": ("[full, lora]", "[full, lora", 7, ["is no YAML"]),
    "unknown tag": (None, "set: !!python/object:os.system {}", 8, ["is no YAML"]),
    "no mapping": (GOOD, "- study\n", 1, ["is no mapping", "study: NAME"]),
    "text only": (GOOD, "comparison\n", 1, ["is no mapping"]),
    "holds itself": (None, "overrides: &a\n  - *a", 8, ["overrides[0]", "holds itself"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_line_key_and_mend(fault: str, tmp_path: Path) -> None:
    old, new, line, said = FAULTS[fault]
    text = GOOD + new + "\n" if old is None else GOOD.replace(old, new)
    assert text != GOOD, "the fault is in the file"
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_study(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: "), message
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# nothing\n\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "not UTF-8"),
        (b"study: a\x00b\n", "cannot be in a YAML file"),
    ],
)
def test_files_that_are_no_text_or_empty(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_study(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_study(tmp_path)
    with pytest.raises(UserError, match=r"neither a file nor a study of the catalogue.*Write paper/table3"):
        read_study("paper/tabel3")
    with pytest.raises(UserError, match=r"The catalogue has paper/figure-b4, .*small/table4"):
        read_study(tmp_path / "none")


def test_check_asks_for_tasks_and_backbones(tmp_path: Path, classification: PreparedTask, backbone: Path) -> None:
    template = "study: s\ntasks:\n  one: {task}\nbackbones:\n  - {backbone}\nmethods:\n  - full\n  - {method}\n{more}"

    def checked(**changes: object) -> None:
        values = {"task": classification.folder, "backbone": backbone, "method": "lora", "more": ""} | changes
        check(read(tmp_path, template.format(**values)))

    def refused(line: int, *said: str, **changes: object) -> None:
        with pytest.raises(UserError) as caught:
            checked(**changes)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'study.yaml'}:{line}: ") and all(part in message for part in said), (
            message
        )

    checked()
    near = classification.folder.with_name("complains")
    refused(3, "tasks.one", "there is no folder", f"Write {classification.folder.name}", task=near)
    refused(3, "tasks.one", "is no prepared task", task=tmp_path)
    refused(5, "backbones[0]", "owner/nowhere", backbone="owner/nowhere")
    refused(8, "methods[1]", "'qury' is no projection of bert", more="set: {targets: [qury]}")
    modern = save_backbone(tmp_path / "modern", "modernbert")
    refused(8, "methods[1]", "modernbert has no bias terms", method="bitfit", backbone=modern)
    refused(9, "search.metric", "entity_f1", more="search: {space: {epochs: [1, 2]}, metric: entity_f1}")


def test_a_study_made_in_python_is_checked_too(classification: PreparedTask) -> None:
    study = StudyFile(study="s", tasks={"one": classification.folder}, backbones=("minilm",), methods=("lroa",))
    with pytest.raises(UserError, match=r"the study: methods\[0\]: there is no method 'lroa'.*Write lora"):
        check(study)
