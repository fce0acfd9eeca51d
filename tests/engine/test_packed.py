"""The padding-free path against the padded one: the same losses and gradients, for every architecture and method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import posology
from posology.corpus.tags import words_of
from posology.engine.adapted import Adapted
from posology.engine.attention import Segments, segment_attention
from posology.engine.batch import cut, pack
from posology.engine.dropout import kept
from posology.engine.encode import Window
from posology.engine.methods import METHODS, adapt
from posology.engine.projection import Projection
from posology.engine.recipe import make_recipe
from posology.engine.virtual import VIRTUAL
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import ARCHITECTURES, KINDS, VOCABULARY, task_model

LONGEST = 96  # positions of the tiny models
CELLS = [
    (architecture, method, kind)
    for architecture in ARCHITECTURES
    for method in METHODS
    for kind in KINDS
    if not (method == "bitfit" and architecture in ("modernbert", "llama"))
]


def make(architecture: str, method: str, kind: str, *, mean: bool = False) -> Adapted:
    """An adapted model without dropout in which every trained weight matters."""
    recipe, base = make_recipe(method, overrides={"adapter_dropout": 0.0}), task_model(architecture, kind)
    if mean and architecture == "modernbert":
        base.config.classifier_pooling = "mean"  # as load_model sets it
    adapted = adapt(base, method, recipe, kind, mean=mean)
    torch.manual_seed(0)
    with torch.no_grad():  # LoRA starts at zero, IA3 at one
        for weight in adapted.trainable().values():
            weight.add_(torch.randn_like(weight) * 0.05)
    adapted.module.eval()
    return adapted


def windows(lengths: tuple[int, ...], *, pairs: bool = False) -> list[Window]:
    """One window of each length, with a word at every other column."""
    draw = np.random.default_rng(1)
    return [
        Window(
            document,
            draw.integers(5, VOCABULARY, length),
            length // 2 if pairs else 0,
            np.arange(0, length, 2),
            np.arange((length + 1) // 2),
        )
        for document, length in enumerate(lengths)
    ]


def gradients(
    adapted: Adapted, groups: list[list[Window]], layout: Any
) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
    """Loss and gradients summed over groups of windows, and the logits of documents or words."""
    adapted.layout = layout
    adapted.module.zero_grad()
    total, seen = 0.0, []
    for group in groups:
        batch = adapted.batch(group)
        logits = adapted.answers(batch)
        if adapted.kind == KINDS[1]:
            goal = torch.from_numpy(batch.documents[batch.words[:, 0]] * 7 + batch.words[:, 1]) % 5
        else:
            goal = torch.from_numpy(batch.documents) % 5
        loss = functional.cross_entropy(logits, goal, reduction="sum")
        loss.backward()
        total += loss.item()
        seen.append(logits.detach())
    found = {name: weight.grad.clone() for name, weight in adapted.trainable().items() if weight.grad is not None}
    return total, found, torch.cat(seen)


def assert_equal(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Loss, logits and each gradient agree relative to their size; noise around an exact zero is let through."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=2e-5)
    whole = torch.stack([gradient.norm() for gradient in theirs[1].values()]).norm()
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert (ours[1][name] - gradient).norm() <= tolerance * gradient.norm() + 1e-7 * whole, name


@pytest.mark.parametrize(("architecture", "method", "kind"), CELLS)
def test_a_packed_row_equals_each_text_alone(architecture: str, method: str, kind: str) -> None:
    adapted = make(architecture, method, kind)
    longest = LONGEST - (10 if method in VIRTUAL else 0)
    texts = windows((12, 1, longest, 7, 12))
    alone = gradients(adapted, [[text] for text in texts], "padded")
    assert_equal(gradients(adapted, [texts], "packed"), alone)


LENGTHS = {"one token each": (1, 1, 1), "equal": (9, 9, 9), "one long": (3, LONGEST, 2, 4), "ragged": (30, 5, 17, 17)}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_row_equals_the_padded_batch(architecture: str, kind: str, lengths: tuple[int, ...]) -> None:
    if architecture == "mobilebert" and len(set(lengths)) > 1:
        pytest.skip("the last token of a padded text sees the padding beside it, in MobileBERT's embeddings")
    adapted = make(architecture, "full", kind)
    texts = windows(lengths)
    assert_equal(gradients(adapted, [texts], "packed"), gradients(adapted, [texts], "padded"))


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
@pytest.mark.parametrize("method", ["full", "prefix", "prompt"])
def test_the_mean_is_that_of_each_text(architecture: str, method: str) -> None:
    adapted = make(architecture, method, KINDS[0], mean=True)
    texts = windows((12, 1, 30))
    assert adapted.pooling == "mean"
    alone = gradients(adapted, [[text] for text in texts], "padded")
    assert_equal(gradients(adapted, [texts], "packed"), alone)


@pytest.mark.parametrize("architecture", ["bert", "electra", "albert", "mobilebert"])
@pytest.mark.parametrize("method", ["full", "prompt"])
def test_second_texts_keep_their_type(architecture: str, method: str) -> None:
    adapted = make(architecture, method, KINDS[0])
    texts = windows((12, 2, 30), pairs=True)
    alone = gradients(adapted, [[text] for text in texts], "padded")
    assert_equal(gradients(adapted, [texts], "packed"), alone)
    untyped = gradients(adapted, [windows((12, 2, 30))], "packed")
    assert (untyped[2] - alone[2]).abs().max() > 1e-3


WRITTEN_OUT = ["bert", "roberta", "electra", "distilbert"]


@pytest.mark.parametrize("architecture", WRITTEN_OUT)
def test_the_last_layer_works_on_the_positions_that_a_head_reads(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = Projection.forward

    def watched(self: Projection, given: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(len(given))
        return forward(self, given, *others)

    monkeypatch.setattr(Projection, "forward", watched)

    def rows(kind: str, method: str = "lora", **options: Any) -> list[int]:
        adapted = make(architecture, method, kind, **options)
        seen.clear()
        adapted.answers(adapted.batch(windows((12, 1, 30))))
        return seen[8:]  # of the last layer: query with key and value, output of attention, up, down

    assert rows(KINDS[0]) == [43, 3, 3, 3]
    assert rows(KINDS[0], mean=True) == [43, 43, 43, 43]
    assert rows(KINDS[1]) == [43, 22, 22, 22]  # every other token begins a word
    assert rows(KINDS[1], "prompt") == [73, 22, 22, 22]
    assert rows(KINDS[0], "dora") == []  # PEFT runs it


def test_only_what_is_written_out_is_taken_from_transformers() -> None:
    written = {architecture: make(architecture, "lora", KINDS[0]).layers != [] for architecture in ARCHITECTURES}
    assert [name for name, own in written.items() if own] == ["bert", "roberta", "distilbert", "electra"]
    for method in METHODS:
        assert bool(make("bert", method, KINDS[0]).layers) is (method != "dora")
    unusual = task_model("bert", KINDS[0])
    unusual.bert.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.SiLU()
    assert adapt(unusual, "head", make_recipe("head"), KINDS[0]).layers == []


@pytest.mark.parametrize("method", ["full", "lora", "ia3"])
@pytest.mark.parametrize("autocast", [False, True])
def test_steps_of_the_optimiser_are_seen(method: str, autocast: bool) -> None:
    """Nothing that was made of trained weights may outlive a step."""
    trained = []
    for layout in ("packed", "padded"):
        adapted = make("bert", method, KINDS[1])
        optimiser = torch.optim.AdamW(adapted.trainable().values(), lr=1e-2, fused=True)
        for _ in range(4):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss, _, _ = gradients(adapted, [windows((12, 1, 30))], layout)
            optimiser.step()
        trained.append(loss)
    assert trained[0] == pytest.approx(trained[1], rel=0.02 if autocast else 1e-4)


def test_a_row_may_be_longer_than_the_model_has_positions() -> None:
    adapted = make("bert", "full", KINDS[1])
    texts = windows((90, 80, 70))
    assert_equal(gradients(adapted, [texts], "packed"), gradients(adapted, [texts], "padded"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reduced_precision_stays_near(architecture: str) -> None:
    adapted = make(architecture, "lora", KINDS[1])
    texts = windows((12, 1, 30))
    exact = gradients(adapted, [texts], "packed")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapted.layout = "packed"
        batch = adapted.batch(texts)
        logits = adapted.logits(batch.inputs, batch.segments)[batch.rows, batch.columns]
    logits.sum().backward()  # outside of autocast, as the loop does it
    assert (logits - exact[2]).norm() < 0.1 * exact[2].norm()


def test_dropout_is_unbiased_and_repeatable() -> None:
    """Against attention by hand with the mask that the same seed draws."""
    query, key, value = (torch.randn(1, 2, 7, 4, requires_grad=True) for _ in range(3))
    module = torch.nn.Identity().train()
    segments = Segments(np.array([7]))

    def run(seed: int, dropout: float) -> torch.Tensor:
        torch.manual_seed(seed)
        return segment_attention(module, query, key, value, None, dropout=dropout, segments=segments)[0]

    assert torch.equal(run(1, 0.3), run(1, 0.3)) and not torch.equal(run(1, 0.3), run(2, 0.3))
    torch.manual_seed(1)
    drawn = torch.empty(13, dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)[:98].view(2, 7, 7)
    kept = (drawn >= 77) / (179 / 256)  # 0.3 is nearest to 77/256
    scores = (query[0] @ key[0].transpose(1, 2)) / 2
    expected = ((scores.softmax(-1) * kept) @ value[0]).transpose(0, 1)[None]
    ours = run(1, 0.3)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape)
    theirs = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    torch.testing.assert_close(torch.autograd.grad((ours * weights).sum(), (query, key, value)), theirs)
    with torch.no_grad():
        mean = torch.stack([run(seed, 0.3) for seed in range(1000)]).mean(0)
        torch.testing.assert_close(mean, run(0, 0.0), atol=0.12, rtol=0)
        module.eval()
        assert torch.equal(run(1, 0.3), run(2, 0.3))


def test_random_decisions_are_evenly_spread() -> None:
    """All eight bytes of a number decide alike: none is biased, as a sign bit that is never set would be."""
    torch.manual_seed(0)
    drawn = kept(torch.Size([80_000]), 26, torch.device("cpu")).view(-1, 8).float()
    torch.testing.assert_close(drawn.mean(0), torch.full((8,), 230 / 256), atol=0.012, rtol=0)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=40), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_buckets_hold_each_token_once(lengths: list[int], heads: int) -> None:
    segments = Segments(np.array(lengths))
    plan = segments.plan(heads)
    rows = torch.arange(segments.total * heads)
    assert torch.equal(plan.gather[plan.scatter], rows)
    padding = len(plan.gather) - len(rows)
    assert (0 if plan.padding is None else len(plan.padding)) == padding
    owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).repeat_interleave(heads)
    for bucket in plan.buckets:
        own = owner[plan.gather[bucket.rows]].view(bucket.segments, heads, bucket.length)
        assert (own == own[:, :1, :1]).all()  # one text in each row of scores
        if bucket.real is not None:
            assert bucket.real.sum() == sum(lengths[int(text)] for text in own[:, 0, 0])


def test_texts_of_one_length_share_a_bucket_and_others_do_so_while_it_pays() -> None:
    assert [bucket.segments for bucket in Segments(np.full(9, 20)).plan(4).buckets] == [9]
    assert len(Segments(np.array([20, 19, 18])).plan(4).buckets) == 1
    assert [bucket.segments for bucket in Segments(np.array([400, 10, 11])).plan(4).buckets] == [1, 2]


def test_packed_groups_are_filled_by_real_tokens() -> None:
    units = [[window] for window in windows((60, 3, 5, 40, 20, 1))]
    groups = list(cut(units, 64, padded=False))
    sizes = [sum(len(window.ids) for window in group) for group in groups]
    assert sum(sizes) == 129 and max(sizes) <= 64 and len(groups) == 3
    assert pack(groups[0]).tokens == sizes[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", ["", ":2"])  # first layers only: classifiers read the mean
def test_a_trained_artifact_answers_the_same_in_both_layouts(
    kind: str, layers: str, backbone: Path, classification: PreparedTask, tagging: PreparedTask, tmp_path: Path
) -> None:
    task = classification if kind == KINDS[0] else tagging
    overrides = {"epochs": 1, "max_length": 40, "overlap": 8, "precision": "fp32"}
    posology.train(task.folder, f"{backbone}{layers}", "lora", tmp_path / "run", overrides=overrides)
    model: Any = posology.load(tmp_path / "run")
    documents = task.documents("test")
    documents[0].text += " no pain" * 60  # several windows
    documents[0].words = words_of(documents[0].text)
    encoded = model.encoder.encode(documents)
    assert model.adapted.pooling == ("mean" if layers and kind == KINDS[0] else "first")
    assert model.adapted.layout == "packed" and len(encoded.windows[0]) > 1
    ours = model.logits(encoded)
    model.adapted.layout = "padded"
    for own, theirs in zip(ours, model.logits(encoded), strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-5, rtol=1e-5)
