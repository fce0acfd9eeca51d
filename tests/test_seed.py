"""A number that no generator takes is refused in one sentence, by every command that has --seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils import check_random_state

import posology
from posology.errors import UserError
from posology.measure.setting import make_setting
from posology.pretrain.command import pretrain
from posology.pretrain.distil import distil_backbone
from posology.seed import LARGEST_SEED, check_seed
from posology.study.ledger import Ledger
from posology.study.spec import Search, read_study
from posology.study.tune import tune


def test_the_largest_seed_is_what_all_generators_take() -> None:
    check_seed(0)
    check_seed(LARGEST_SEED)
    torch.Generator().manual_seed(LARGEST_SEED)
    np.random.default_rng(LARGEST_SEED)
    check_random_state(LARGEST_SEED)
    with pytest.raises(ValueError, match="0 and 2"):
        check_random_state(LARGEST_SEED + 1)


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1, 2**70])
def test_other_numbers_are_no_seeds(seed: int, tmp_path: Path) -> None:
    out: Any = tmp_path / "out"
    table = tmp_path / "notes.csv"
    table.write_text("text,label\n" + "".join(f"note {row},{'ab'[row % 2]}\n" for row in range(60)))
    says = f"--seed: {seed} is no seed. Give a number from 0 to {LARGEST_SEED}"
    with pytest.raises(UserError, match=says):
        posology.train(tmp_path, "minilm", "lora", out, seed=seed)
    with pytest.raises(UserError, match=says):
        posology.prepare("classification", table, out, text="text", label="label", seed=seed)
    with pytest.raises(UserError, match=says):
        pretrain(tmp_path, out=out, backbone="minilm", seed=seed)
    with pytest.raises(UserError, match=says):
        distil_backbone("minilm", tmp_path, out=out, student_layers=2, seed=seed)
    with pytest.raises(UserError, match=says):
        posology.prescribe(tmp_path, out=out, seed=seed)
    with pytest.raises(UserError, match=says):
        make_setting(tmp_path, "minilm", "lora", "standard", {}, None, seed)
    with pytest.raises(UserError, match=says):
        tune(Ledger(tmp_path / "ledger.db", write=True), "s", [], Search(trials=1, space={"rank": [1, 2]}), seed=seed)
    with pytest.raises(UserError, match="run 1: seed: Input should be"):
        posology.train_many([{"data": tmp_path, "out": out, "seed": seed}])
    study = tmp_path / "study.yaml"
    study.write_text(f"study: s\ntasks: {{one: {tmp_path}}}\nbackbones: [minilm]\nmethods: [lora]\nseeds: [{seed}]\n")
    with pytest.raises(UserError, match=r"seeds\[0\]"):
        read_study(study)
    assert not out.exists()
