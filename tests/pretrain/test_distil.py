"""Smaller encoders from larger ones: where students begin, what they learn, and what is left on disk."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

import posology
from posology.cli import main
from posology.cli.distil import distil
from posology.engine.architectures import architecture_of
from posology.engine.attention import Segments
from posology.engine.batch import collate, pack
from posology.engine.encode import Window
from posology.engine.precision import decide
from posology.engine.recipe import Recipe
from posology.errors import Interrupted, UserError
from posology.pretrain.distil import distil_backbone
from posology.pretrain.imitation import Imitation, Losses, hidden_loss, logit_loss, relation_heads, relation_loss
from posology.pretrain.student import Watched, chosen_layers, copy_of, student_config, watched
from posology.tasks.prepared import PreparedTask
from tests.engine.tiny import CONFIGS, VOCABULARY, save_backbone, tokenizer

ENCODERS = [name for name in CONFIGS if name not in ("llama", "albert")]
OPTIONS: dict[str, Any] = {
    "student_layers": 2, "steps": 8, "batch_size": 8, "max_length": 48, "held_out": 0.1, "precision": "fp32",
    "learning_rate": 1e-3, "checkpoint_seconds": 1000,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("corpora") / "notes.jsonl"
    words = ["no", "patient", "fever", "pain", "abc", "d1", "the"]
    rows = [{"text": f"{number} " + " ".join(draw.choices(words, k=draw.randint(3, 30)))} for number in range(120)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """With weights large enough that mistakes show, and layers that differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
    return model.eval()


def masked(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return loud(AutoModelForMaskedLM.from_config(CONFIGS[architecture]()))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a head for masked words and a pooler, as Google's checkpoints have them."""
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    model = masked("bert")
    torch.manual_seed(1)
    model.bert = loud(AutoModel.from_config(CONFIGS["bert"]()))
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def windows(lengths: tuple[int, ...] = (12, 7, 1, 9)) -> list[Window]:
    """Texts in which every third piece is asked for."""
    draw = np.random.default_rng(1)
    found = []
    for number, length in enumerate(lengths):
        places = np.arange(number % 2 if length > 1 else 0, length, 3)
        found.append(Window(number, draw.integers(5, VOCABULARY, length), 0, places, draw.integers(5, 9, len(places))))
    return found


# --- where a student begins -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "wanted", "layers"),
    [(6, 4, [0, 2, 3, 5]), (12, 4, [2, 5, 8, 11]), (12, 6, [1, 3, 5, 7, 9, 11]), (6, 1, [5]), (3, 3, [0, 1, 2])],
)
def test_layers_are_evenly_spaced_and_the_last_is_kept(depth: int, wanted: int, layers: list[int]) -> None:
    assert chosen_layers(depth, wanted) == layers


@pytest.mark.parametrize("architecture", ENCODERS)
def test_each_layer_of_a_student_gives_what_its_own_gives(architecture: str) -> None:
    base = masked(architecture)
    facts = architecture_of(base.config)
    whole = watched(copy_of(base, facts, base.config, range(3)), facts, range(3), head=True)
    small_config = student_config(base.config, facts, [0, 2])
    small = watched(copy_of(base, facts, small_config, [0, 2]), facts, range(2), head=True)
    batch = pack(windows())
    with torch.no_grad():
        theirs, ours = whole.see(batch), small.see(batch)
    assert torch.equal(ours.hidden[0], theirs.hidden[0])
    assert not torch.allclose(ours.hidden[1], theirs.hidden[2], atol=1e-3), "another layer came before it"
    # Given what the teacher's layer 2 was given, the student's layer 1 gives the same.
    prefix = small.base.base_model_prefix
    path = f"{prefix}.{facts.layers}".replace("\\.", ".")
    layer = small.base.get_submodule(path.format(layer=1))
    layer.register_forward_pre_hook(lambda _, given: (theirs.hidden[1][None], *given[1:]))
    with torch.no_grad():
        again = small.see(batch)
    assert torch.equal(again.hidden[1], theirs.hidden[2])
    for mine, other in zip(again.relations, theirs.relations, strict=True):
        assert torch.equal(mine, other)


def test_a_narrower_student_begins_as_the_first_rows_and_columns() -> None:
    base = masked("bert")
    facts = architecture_of(base.config)
    config = student_config(base.config, facts, [1, 2], 16)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (16, 2, 32)
    student = copy_of(base, facts, config, [1, 2])
    name = "encoder.layer.{}.intermediate.dense.weight"
    own, whole = (model.bert.get_parameter(name.format(n)) for model, n in ((student, 0), (base, 1)))
    assert torch.equal(own, whole[:32, :16])
    assert torch.equal(student.get_input_embeddings().weight, base.get_input_embeddings().weight[:, :16])


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_hidden_loss_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    # 1 - 24/25 + (1 + 1)/2; 1 - 0 + (1 + 4)/2
    assert hidden_loss(student, teacher).item() == pytest.approx(0.04 + 1 + 1 + 2.5)


def test_relation_loss_by_hand() -> None:
    # One head of width 1, a text of two tokens and one of a single token, which has but itself.
    student, teacher = torch.tensor([[1.0], [0.0], [5.0]]), torch.tensor([[0.0], [0.0], [7.0]])
    # Teacher: one half each. Student: softmax(1, 0) for the first token, one half each for the second.
    share = math.e / (1 + math.e)
    first = 0.5 * math.log(0.5 / share) + 0.5 * math.log(0.5 / (1 - share))
    assert relation_loss(student, teacher, Segments(np.array([2, 1])), 1).item() == pytest.approx(first)


def test_logit_loss_is_that_of_torch() -> None:
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    reference = functional.kl_div((student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="sum")
    torch.testing.assert_close(logit_loss(student, teacher, 3.0), 9 * reference)


def test_relation_heads_cut_both_widths() -> None:
    assert relation_heads(384, 384, 12) == 12 and relation_heads(384, 160, 12) == 8


def padded(model: PreTrainedModel, group: list[Window], watch: tuple[int, ...]) -> dict[str, Any]:
    """What transformers gives on a padded batch, text by text."""
    facts, prefix = architecture_of(model.config), model.base_model_prefix
    batch = collate(group, 0)
    found: dict[str, Any] = {}
    last = f"{prefix}.{facts.layers.format(layer=model.config.num_hidden_layers - 1)}".replace("\\.", ".")
    roles = ["query_key_value"] if facts.fused_qkv else ["query", "key", "value"]
    handles = []
    for role in roles:
        name = f"{last}.{facts.roles[role]}".replace("\\.", ".")
        keep = lambda _m, _g, output, role=role: found.__setitem__(role, output)  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_hook(keep))
    layers = {}
    for number in watch:
        path = f"{prefix}.{facts.layers.format(layer=number)}".replace("\\.", ".")
        keep = lambda _m, _g, output, number=number: layers.__setitem__(  # noqa: E731
            number, output if isinstance(output, torch.Tensor) else output[0]
        )
        handles.append(model.get_submodule(path).register_forward_hook(keep))
    logits = model(**batch.inputs).logits
    for handle in handles:
        handle.remove()
    relations = list(found.values()) if len(found) > 1 else list(found["query_key_value"].chunk(3, dim=-1))
    return {"hidden": [layers[number] for number in watch], "relations": relations, "logits": logits}


def reference_loss(student: PreTrainedModel, teacher: PreTrainedModel, group: list[Window], layers: list[int]) -> Any:
    """The loss, token by token as the papers have it, on padded batches."""
    ours = padded(student, group, tuple(range(len(layers))))
    with torch.no_grad():
        theirs = padded(teacher, group, tuple(layers))
    heads = teacher.config.num_attention_heads
    tokens, pieces = sum(len(window.ids) for window in group), sum(len(window.words) for window in group)
    total = torch.zeros(())
    for row, window in enumerate(group):
        length = len(window.ids)
        for mine, other in zip(ours["hidden"], theirs["hidden"], strict=True):
            own, wanted = mine[row, :length], other[row, :length]
            each = 1 - functional.cosine_similarity(own, wanted, dim=1) + ((own - wanted) ** 2).mean(1)
            total = total + each.sum() / tokens / len(layers)
        for mine, other in zip(ours["relations"], theirs["relations"], strict=True):
            for head in range(heads):
                log_p = []
                for values in (mine, other):
                    width = values.shape[2] // heads
                    part = values[row, :length, head * width : (head + 1) * width]
                    log_p.append((part @ part.T / width**0.5).log_softmax(1))
                divergence = functional.kl_div(*log_p, reduction="sum", log_target=True)
                total = total + divergence / heads / 3 / tokens
        for column in window.columns:
            log_p = [(values["logits"][row, column] / 2).log_softmax(0) for values in (ours, theirs)]
            total = total + 4 * functional.kl_div(*log_p, reduction="sum", log_target=True) / pieces
    return total


class Nothing:
    """No corpus."""

    def __len__(self) -> int:
        return 1


def imitation(student: Watched, teacher: Watched) -> Imitation:
    recipe = Recipe(learning_rate=1e-3, batch_size=4)
    texts: Any = Nothing()
    return Imitation(student, teacher, Losses(), None, texts, None, recipe, 1, decide("fp32"), seed=0)


@pytest.mark.parametrize("architecture", ENCODERS)
def test_loss_and_gradients_equal_those_of_padded_batches(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posology.pretrain.imitation.TOKEN_BUDGET", {"cpu": 16, "cuda": 16})
    base = masked(architecture)
    facts, layers = architecture_of(base.config), [0, 2]
    config = student_config(base.config, facts, layers)
    twin, student = (copy_of(base, facts, config, layers) for _ in range(2))
    torch.manual_seed(2)
    with torch.no_grad():
        for (name, weight), other in zip(twin.named_parameters(), student.parameters(), strict=True):
            # Not to embeddings: that of padding is zero, and MobileBERT reads its neighbours'.
            other.copy_(weight.add_(torch.randn_like(weight) * (0.0 if "embed" in name else 0.1)))
    training = imitation(
        watched(student, facts, range(2), head=True),
        watched(copy_of(base, facts, base.config, range(3)), facts, layers, head=True),
    )
    group = windows()
    loss, tokens, _ = training._backward(group)
    wanted = reference_loss(twin, base, group, layers)
    wanted.backward()
    assert tokens == 29 and loss == pytest.approx(wanted.item(), rel=1e-5) and loss > 0.3
    gradients = dict(twin.named_parameters())
    for name, weight in training._student.base.named_parameters():
        other = gradients[name].grad
        if other is None:
            assert weight.grad is None or not weight.grad.any(), name
        else:
            torch.testing.assert_close(weight.grad, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


# --- the folder it leaves ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("undisturbed") / "student"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = distil_backbone(str(teacher), corpus, out=out, **OPTIONS)
    torch.set_num_threads(threads)
    return out, result


def test_a_student_comes_nearer_to_its_teacher(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    out, result = undisturbed
    before, after = result["losses"]["before"], result["losses"]["after"]
    assert set(before) == {"hidden", "relations", "logits"}
    assert after["hidden"] < 0.9 * before["hidden"] and after["logits"] < before["logits"]
    assert result["parameters"] < result["teacher_parameters"] and result["layers"] == 2 and result["steps"] == 8
    assert not list(out.parent.glob(".*")), "neither pieces nor checkpoints stay"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "layers 1, 3 of its teacher" in card and "fever" not in card


def test_it_is_a_backbone_like_any_other(
    undisturbed: tuple[Path, dict[str, Any]], teacher: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    out, _ = undisturbed
    _, report = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"], "the head is there"
    assert torch.equal(
        AutoModel.from_pretrained(out).pooler.dense.weight, AutoModel.from_pretrained(teacher).pooler.dense.weight
    )
    options = {"overrides": {"epochs": 1}}
    result = posology.train(classification.folder, str(out), "full", tmp_path / "run", **options)
    assert (result["pretraining"], result["distilled_from"], result["domain"]) == ("distilled", "teacher", None)
    record = json.loads((tmp_path / "run" / "posology.json").read_text(encoding="utf-8"))
    assert record["backbone"]["parameters"] < 32_000


def test_of_a_backbone_without_a_head_only_the_backbone_is_kept(backbone: Path, corpus: Path, tmp_path: Path) -> None:
    options = OPTIONS | {"steps": 0, "domain": "clinical"}
    result = distil_backbone(str(backbone), corpus, out=tmp_path / "student", **options)
    assert (
        set(result["losses"]["before"]) == {"hidden", "relations"}
        and result["losses"]["after"] == result["losses"]["before"]
    )
    own, theirs = load_file(tmp_path / "student" / "model.safetensors"), load_file(backbone / "model.safetensors")
    assert all(name.startswith("bert.") for name in own)
    for name, weight in own.items():
        whole = name.removeprefix("bert.").replace("layer.1.", "layer.2.")
        assert torch.equal(weight, theirs[whole]), name
    assert result["domain"] == "clinical" and result["steps"] == 0


def test_a_narrower_student_learns_too(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    options = OPTIONS | {"student_width": 16, "steps": 12}
    result = distil_backbone(str(teacher), corpus, out=tmp_path / "student", **options)
    assert result["losses"]["after"]["hidden"] < result["losses"]["before"]["hidden"]
    assert AutoModel.from_pretrained(tmp_path / "student").config.hidden_size == result["width"] == 16
    assert not any(
        "projection" in name or "pooler" in name for name in load_file(tmp_path / "student" / "model.safetensors")
    )


def test_evaluation_documents_are_left_out(
    teacher: Path, corpus: Path, classification: PreparedTask, tmp_path: Path
) -> None:
    test = [{"text": document.text} for document in classification.documents("test")]
    planted = tmp_path / "planted.jsonl"
    planted.write_text(corpus.read_text() + "".join(json.dumps(row) + "\n" for row in test), encoding="utf-8")
    options = OPTIONS | {"steps": 0, "exclude": [classification.folder]}
    result = distil_backbone(str(teacher), planted, out=tmp_path / "student", **options)
    assert result["excluded"]["exact"] == len(test) and result["documents"]["all"] == 120 + len(test)


def test_stopped_and_resumed_it_is_the_same_bit_for_bit(
    undisturbed: tuple[Path, dict[str, Any]],
    teacher: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, done = Imitation._backward, []

    def stopping(self: Imitation, group: list[Window]) -> Any:
        done.append(1)
        result = step(self, group)
        if len(done) in (3, 6):
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(Imitation, "_backward", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted):
            distil_backbone(str(teacher), corpus, out=tmp_path / "student", **OPTIONS)
        assert not (tmp_path / "student").exists()
    result = distil_backbone(str(teacher), corpus, out=tmp_path / "student", **OPTIONS)
    own, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "student", undisturbed[0]))
    assert own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in own)
    assert result["losses"] == undisturbed[1]["losses"] and result["training"]["resumed"] == 2 and len(done) == 8


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student_layers": 4}, "a teacher of 3 layers has no student of 4"),
        ({"student_layers": 0}, "no student of 0"),
        ({"student_width": 20}, "a multiple of 8 below 32"),
        ({"losses": Losses(0, 0, 0)}, "nothing is learnt"),
        ({"losses": Losses(hidden=-1)}, "--hidden: -1 is no number from 0"),
        ({"epochs": 2.0}, "both --epochs and --steps"),
        ({"steps": -1}, "--steps: -1 is no number from 0"),
        ({"held_out": 1.0}, "no share of the documents"),
        ({"max_length": 4}, "leave no room"),
        ({"learning_rate": 20.0}, "far too much"),
        ({"steps": None, "epochs": float("inf")}, "no number above 0"),
    ],
)
def test_what_is_wrong_is_said(
    teacher: Path, corpus: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as error:
        distil_backbone(str(teacher), corpus, out=tmp_path / "student", **OPTIONS | changes)
    assert words in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("architecture", "words"), [("albert", "share their weights"), ("llama", "is a decoder")])
def test_architectures_without_smaller_students(architecture: str, words: str, corpus: Path, tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / architecture, architecture)
    with pytest.raises(UserError, match=words):
        distil_backbone(str(folder), corpus, out=tmp_path / "student", **OPTIONS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "neither or both of --corpus and --data"),
        ({"corpus": Path("c"), "data": Path("d")}, "neither or both of --corpus and --data"),
        ({"corpus": Path("c")}, "Add --student-layers K"),
        ({"data": Path("d")}, "Add --student BACKBONE"),
        ({"data": Path("d"), "student": "minilm:4", "steps": 0}, "--steps: belongs to --corpus, and --data was given"),
        ({"corpus": Path("c"), "student_layers": 2, "weight": 0.5}, "--weight: belongs to --data"),
    ],
)
def test_options_of_the_two_ways_are_not_mixed(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        distil("minilm", out=tmp_path / "out", **options)
    assert words in str(error.value)


def test_both_ways_from_the_command_line(
    backbone: Path, corpus: Path, classification: PreparedTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student, settings = tmp_path / "student", ["--set", "epochs=1", "precision=fp32"]
    commands = [
        ["distil", str(backbone), "--corpus", str(corpus), "--student-layers", "2", "--steps", "1", "--precision", "fp32",
         "--held-out", "0.1", "--out", str(student)],
        ["train", str(classification.folder), "--backbone", str(backbone), "--out", str(tmp_path / "run"), *settings],
        ["distil", str(tmp_path / "run"), "--data", str(classification.folder), "--student", str(student), "--method",
         "lora", "--weight", "0.7", "--out", str(tmp_path / "taught"), *settings],
    ]  # fmt: skip
    found = []
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            main([*command, "--json", "--quiet"])
        assert ended.value.code == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["losses"]["before"] and (found[0]["parameters"], found[0]["steps"]) == (24_128, 1)
    assert found[2]["artifact"] == str(tmp_path / "taught") and found[2]["backbone"] == "student"
    assert found[2]["distilled_from"] == "lora on tiny"
    with pytest.raises(SystemExit):
        main(["distil", str(backbone), "--corpus", str(corpus), "--student-layers", "2", "--steps", "0", "--precision",
              "fp32", "--held-out", "0.1", "--out", str(tmp_path / "other"), "--quiet"])  # fmt: skip
    shown = capsys.readouterr().out
    assert "difference to the teacher" in shown and "24,128 parameters of 32,672" in shown
