"""The command line as a user meets it: a process, its exit code, stdout and stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engine.tiny import save_backbone

ROWS = "text,label\n" + "\n".join(
    f"note {index} of {label},{label}" for index in range(20) for label in ("fever", "pain")
)


def posology(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the program and checks its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "posology.cli", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, the task made of it, a backbone and an artifact."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "notes.csv").write_text(ROWS)
    save_backbone(folder / "tiny")
    posology("prepare", "classification", "--source", folder / "notes.csv", "--out", folder / "task")
    fast = ("--set", "epochs=2", "max_length=90", "precision=fp32")
    done = posology(
        "train", folder / "task", "--backbone", folder / "tiny", "--out", folder / "run", *fast, "--json", "--seed", 3
    )
    result = json.loads(done.stdout)  # one document, nothing else
    assert result["artifact"] == str(folder / "run")
    assert set(result) >= {"metrics", "seconds", "trainable_parameters", "coverage"}
    assert set(result["metrics"]["macro_f1"]) == {"value", "low", "high"}
    assert "epoch 2/2" in done.stderr
    return folder


def test_evaluate_and_predict_follow_from_a_training(folder: Path, tmp_path: Path) -> None:
    scored = json.loads(posology("evaluate", folder / "run", folder / "task", "--json").stdout)
    assert scored["metrics"]["macro_f1"]["value"] is not None
    table = posology("evaluate", folder / "run", folder / "task").stdout
    assert "macro_f1" in table and "95 % interval" in table and "fever" in table
    out = tmp_path / "answers.jsonl"
    done = posology("predict", folder / "run", folder / "notes.csv", "--out", out, "--json", "--quiet")
    assert json.loads(done.stdout)["documents"] == 40 and done.stderr == ""
    assert len(out.read_text().splitlines()) == 40


@pytest.mark.parametrize("command", ["backbones", "methods", "tasks"])
def test_lists_are_for_people_and_for_programs(command: str) -> None:
    assert len(json.loads(posology(command, "--json").stdout)) > 2
    assert len(posology(command).stdout.splitlines()) > 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train",), "--data"),
        (("train", "nowhere", "--out", "x"), "nowhere"),
        (("trian",), "trian"),
        (("train", "x", "--out", "y", "--seeed", "1"), "seeed"),
        (("train", "x", "--out", "y", "--seed", "one"), "seed"),
        (("train", "x", "--out", "y", "--set", "epochs"), "KEY=VALUE"),
        (("evaluate", "x", "y", "--split", "dev"), "split"),
        (("predict", "x", "y", "--out", "z.doc"), "z.doc"),
        (("prepare", "classification", "nowhere.csv", "x"), "nowhere.csv"),
        (("prepare", "sentiment", "x.csv", "y"), "sentiment"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "posology.cli", *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 2 and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
    assert done.stdout == "" and not list(tmp_path.iterdir())


def test_a_failure_of_ours_hides_text_and_exits_with_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import posology.doctor, posology.cli\n"
        "def fail(): raise RuntimeError('the patient has a secret')\n"
        "posology.doctor.report = fail\n"
        "posology.cli.main(['doctor', *__import__('sys').argv[1:]])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "secret" not in done.stderr and "RuntimeError" in done.stderr
    done = subprocess.run([sys.executable, "-c", script, "--debug"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "secret" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_leaves_a_usable_artifact_and_exits_with_130(folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "posology.cli", "train", str(folder / "task"), "--backbone", str(folder / "tiny")),
            *("--out", str(tmp_path / "run"), "--set", "epochs=100000", "patience=100000", "max_length=90"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130 and "holds the best state" in rest
    posology("evaluate", tmp_path / "run", folder / "task", "--split", "validation")
