"""Runs in company against each alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from posology.corpus.document import Document, Span
from posology.corpus.tags import words_of
from posology.engine.adapted import Adapted
from posology.engine.company import Company, Member, cut
from posology.engine.encode import Encoder, Window
from posology.engine.loop import fit, make_training
from posology.engine.methods import adapt
from posology.engine.precision import decide
from posology.engine.recipe import make_recipe
from posology.engine.run import targets
from posology.engine.training import Diverged
from tests.engine.tiny import CONFIGS, KINDS, task_model, tokenizer

TEXTS = [
    "patient no pain", "fever", "the patient fever pain abc def " * 3, "pain pain", "no", "fever and the pain of no",
    "no fever", "the the the", "abc " * 30, "pain",
]  # fmt: skip
EXACT = {"precision": "fp32", "batch_size": 4, "epochs": 3, "max_length": 20,
         "overlap": 4, "patience": 99}  # fmt: skip


def frozen(kind: str, outputs: int) -> PreTrainedModel:
    """A task model on the one backbone of all."""
    base = task_model("bert", kind, outputs)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    base.bert.load_state_dict(task_model("bert", KINDS[0], 2).bert.state_dict(), strict=False)
    return base


class Run:
    """One run, made anew for each use, so that it starts from the same weights."""

    def __init__(self, kind: str, method: str, seed: int, texts: Sequence[int] = range(10), **overrides: Any):
        self.kind, self.method, self.seed, self.texts = kind, method, seed, texts
        self.overrides = {**EXACT, **({"adapter_dropout": 0.0} if "lora" in method else {}), **overrides}
        self.error: Diverged | None = None
        self.order: list[str] = []

    def make(self) -> dict[str, Any]:
        recipe = make_recipe(self.method, overrides=self.overrides)
        outputs = 2 if self.kind == KINDS[0] else 3
        base = frozen(self.kind, outputs)
        torch.manual_seed(self.seed)
        adapted = adapt(base, self.method, recipe, self.kind)
        documents = [
            Document(
                id=str(index),
                text=text,
                label="ab"[index % 2],
                words=words_of(text),
                spans=[Span(0, text.find(" ") if " " in text else len(text), "X")] if self.kind == KINDS[1] else [],
            )
            for index, text in enumerate(TEXTS[number] for number in self.texts)
        ]
        encoded = Encoder(tokenizer(), CONFIGS["bert"](), recipe, self.kind).encode(documents)
        goals = targets(documents, self.kind, ["a", "b"] if self.kind == KINDS[0] else ["X"])
        self.adapted = adapted
        return {"encoded": encoded, "targets": goals, "recipe": recipe}

    def validate(self) -> Mapping[str, float]:
        """A score that later states have more of, so that the last one is the best."""
        self.scored = getattr(self, "scored", 0.0) + 1.0
        return {"score": self.scored}

    def alone(self) -> dict[str, torch.Tensor]:
        made = self.make()
        self.scored = 0.0
        result = fit(self.adapted, made["encoded"], made["targets"], made["recipe"], seed=self.seed,
                     precision=decide("fp32"), validate=self.validate, metric="score")  # fmt: skip
        self.fit = result
        return {name: weight.detach().clone() for name, weight in self.adapted.trainable().items()}

    def member(self, name: str, left: list[str]) -> Callable[[], Member]:
        def make() -> Member:
            made = self.make()
            self.scored = 0.0
            self.training = make_training(self.adapted, made["encoded"], made["targets"], made["recipe"],
                                          decide("fp32"), seed=self.seed)  # fmt: skip

            def leave(error: Diverged | None) -> None:
                self.error = error
                left.append(name)

            return Member(name, self.adapted, self.training, self.validate, "score", leave)

        return make


def carrier() -> Adapted:
    return adapt(frozen(KINDS[0], 2), "head", make_recipe("head"), KINDS[0])


def together(runs: list[Run], **options: Any) -> list[str]:
    left: list[str] = []
    company = Company(carrier(), decide("fp32"), **{"at_once": 8, **options})
    assert not company.train(run.member(str(number), left) for number, run in enumerate(runs))
    return left


def assert_as_alone(runs: list[Run], alone: list[dict[str, torch.Tensor]]) -> None:
    for run, expected in zip(runs, alone, strict=True):
        for name, weight in run.adapted.trainable().items():
            torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-4)
            assert not torch.equal(weight, torch.zeros_like(weight))
        assert run.training.fit.steps == run.fit.steps and run.training.fit.tokens == run.fit.tokens
        ours, theirs = ([own["loss"] for own in fit.evaluations] for fit in (run.training.fit, run.fit))
        assert ours == pytest.approx(theirs, rel=1e-4)


RUNS = {
    "ranks and rates": lambda: [
        Run(KINDS[1], "lora", seed, rank=rank, alpha=2 * rank, learning_rate=rate)
        for seed, (rank, rate) in enumerate([(2, 1e-2), (4, 3e-3), (8, 1e-3), (16, 1e-2)])
    ],
    "methods": lambda: [Run(KINDS[0], method, 3) for method in ("lora", "rslora", "ia3", "head")],
    "tasks and data": lambda: [
        Run(KINDS[0], "lora", 1),
        Run(KINDS[1], "lora", 2, texts=range(7)),
        Run(KINDS[0], "ia3", 3, texts=range(3)),
    ],
    "top layers": lambda: [Run(KINDS[1], "lora", seed, top_layers=seed) for seed in (1, 2)],
    "heads": lambda: [Run(kind, "head", 5, learning_rate=rate) for kind in KINDS for rate in (1e-2, 1e-3)],
}


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("tokens", [40, 4096])
def test_runs_in_company_end_as_alone(make: Callable[[], list[Run]], tokens: int) -> None:
    runs = make()
    alone = [run.alone() for run in runs]
    together(runs, tokens=tokens)
    assert_as_alone(runs, alone)


def test_runs_of_very_unlike_lengths_end_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [
        Run(KINDS[0], "lora", 1, texts=(2, 8, 2, 8), max_length=90),
        Run(KINDS[1], "lora", 2, texts=(1, 4, 6), batch_size=1),
        Run(KINDS[1], "ia3", 3, texts=(4, 9, 2)),
        Run(KINDS[0], "head", 4, texts=(1, 4), batch_size=2),
    ]
    alone = [run.alone() for run in runs]
    hidden, present = Company._hidden, []

    def noted(self: Company, parts: Any) -> Any:
        present.append(len(parts))
        return hidden(self, parts)

    monkeypatch.setattr(Company, "_hidden", noted)
    together(runs, tokens=60)
    assert_as_alone(runs, alone)
    assert min(present) == 1 < max(present)  # the long texts of one run were by themselves


def test_runs_leave_and_enter_while_others_go_on() -> None:
    runs = [Run(KINDS[1], "lora", seed, epochs=epochs) for seed, epochs in enumerate([5, 1, 2, 1])]
    alone = [run.alone() for run in runs]
    assert together(runs, at_once=2) == ["1", "2", "3", "0"]
    assert_as_alone(runs, alone)


def test_one_that_diverges_does_not_take_the_others_with_it() -> None:
    runs = [Run(KINDS[1], "lora", 0), Run(KINDS[1], "lora", 1), Run(KINDS[1], "lora", 2)]
    alone = [run.alone() for run in runs]
    make = runs[1].member("broken", [])

    def broken() -> Member:
        member = make()
        with torch.no_grad():
            next(iter(member.adapted.trainable().values())).fill_(float("nan"))
        return member

    company = Company(carrier(), decide("fp32"), at_once=2)
    company.train([runs[0].member("0", []), broken, runs[2].member("2", [])])
    assert runs[1].error is not None and runs[0].error is None
    assert_as_alone([runs[0], runs[2]], [alone[0], alone[2]])


def test_the_frozen_weights_are_in_memory_once() -> None:
    runs = [Run(KINDS[1], "lora", seed, epochs=1) for seed in range(3)]
    together(runs)
    places = [
        {
            weight.data_ptr()
            for name, weight in run.adapted.base.named_parameters()
            if ".layer." in name and "dense.weight" in name
        }
        for run in runs
    ]
    assert places[0] and places[0] == places[1] == places[2]


def window(size: int) -> Window:
    return Window(0, np.zeros(size, np.int64), 0, np.zeros(0, np.int64), np.zeros(0, np.int64))


def test_batches_are_cut_into_rows_of_like_sizes_whosever_they_are() -> None:
    texts = [[9, 1, 5], [3, 3, 2, 1, 20], [], [40]]
    rows = cut([[[window(size)] for size in own] for own in texts], 25)
    sizes = [{run: [len(one.ids) for one in own] for run, own in row.items()} for row in rows]
    assert sizes == [{3: [40]}, {1: [20]}, {0: [9, 5, 1], 1: [3, 3, 2, 1]}]


def test_windows_of_one_document_stay_together() -> None:
    rows = cut([[[window(5), window(5), window(5)]], [[window(5)], [window(4)]]], 8)
    assert [len(row[0]) for row in rows if 0 in row] == [3]
    assert sum(len(own) for row in rows for own in row.values()) == 5
