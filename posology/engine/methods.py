"""Methods: how a backbone is adapted. PEFT builds and saves what it can; what it lacks is added here."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from posology.engine import packed, virtual
from posology.engine.adapted import Adapted
from posology.engine.architectures import Architecture, architecture_of, architectures
from posology.engine.baselines import BASELINES
from posology.engine.dropout import draw_bytes
from posology.engine.layers import write_out
from posology.engine.recipe import Recipe, make_recipe
from posology.engine.virtual import VIRTUAL
from posology.errors import UserError

TASK_TYPES = {"sequence-classification": "SEQ_CLS", "token-classification": "TOKEN_CLS"}


class Method(NamedTuple):
    """What `posology methods` prints of a method.

    Attributes:
        description: one line.
        reference: where it comes from.
        storage: what its artifact holds: `model` (all weights), `peft` (an adapter in PEFT's format) or `weights`
            (the tuned tensors under their names in the task model).
    """

    description: str
    reference: str
    storage: str


METHODS: dict[str, Method] = {
    "full": Method("every weight is trained", "Devlin et al. 2019", "model"),
    "head": Method("the backbone is frozen, only the task's head is trained", "Peters et al. 2019", "weights"),
    "lora": Method("low-rank updates of the attention projections", "Hu et al. 2022", "peft"),
    "dora": Method("LoRA with magnitude and direction apart", "Liu et al. 2024", "peft"),
    "rslora": Method("LoRA scaled by alpha / sqrt(rank)", "Kalajdzievski 2023", "peft"),
    "ia3": Method("learned factors on keys, values and feed-forward activations", "Liu et al. 2022", "peft"),
    "prefix": Method("trained keys and values before every layer's own", "Li and Liang 2021", "peft"),
    "prompt": Method("trained vectors before the word embeddings", "Lester et al. 2021", "peft"),
    "p-tuning": Method("such vectors made by a small network", "Liu et al. 2021", "peft"),
    "bitfit": Method("bias terms only", "Ben Zaken et al. 2022", "weights"),
    "layernorm": Method("normalisation weights only", "Zhao et al. 2024", "peft"),
}
_BY_LAYER = ("lora", "dora", "rslora", "ia3")


def refusal(method: str, architecture: Architecture) -> str | None:
    """Why a method cannot work on an architecture, or None where it works (for both task kinds)."""
    if method == "bitfit" and not architecture.biases:
        return "has no bias terms to train"
    return None


def table() -> dict[str, dict[str, str]]:
    """For each method and architecture `works`, or the reason why not."""
    return {
        method: {name: refusal(method, entry) or "works" for name, entry in architectures().items()}
        for method in METHODS
    }


def listing() -> list[dict[str, Any]]:
    """What `posology methods` prints: the methods of adaptation, then the baselines."""
    works = table()
    adapting = [
        {
            "method": name,
            "description": method.description,
            "reference": method.reference,
            "learning_rate": make_recipe(name).learning_rate,
            "refused": {on: why for on, why in works[name].items() if why != "works"},
        }
        for name, method in METHODS.items()
    ]
    baselines = [
        {
            "method": name,
            "description": entry.description,
            "reference": entry.reference,
            "learning_rate": None,
            "refused": {kind: "another kind of task" for kind in TASK_TYPES if kind != entry.kind},
        }
        for name, entry in BASELINES.items()
    ]
    return adapting + baselines


def check_method(method: str) -> None:
    """Raises UserError for the name of no method, baselines included."""
    if method not in METHODS and method not in BASELINES:
        raise UserError(
            f"there is no method {method!r}; there are {', '.join([*METHODS, *BASELINES])}",
            "Choose one of these",
            "--method",
        )


def check(method: str, architecture: Architecture, recipe: Recipe) -> None:
    """Raises UserError where a method, a recipe and an architecture do not go together."""
    check_method(method)
    if reason := refusal(method, architecture):
        raise UserError(
            f"{architecture.name} {reason}",
            "Choose another method: `posology methods` lists what works",
            f"--method {method}",
        )
    if recipe.top_layers is not None and method not in _BY_LAYER:
        raise UserError(f"works with {', '.join(_BY_LAYER)}, not with {method}", "Leave it out", "top_layers")
    if recipe.pooling == "mean" and architecture.pooling == "last":
        raise UserError(f"{architecture.name} classifies by the last token", "Leave it out", "pooling=mean")
    if recipe.top_layers is not None and architecture.shared_layers:
        raise UserError(f"the layers of {architecture.name} share their weights", "Leave it out", "top_layers")


def adapt(
    base: PreTrainedModel,
    method: str,
    recipe: Recipe,
    kind: str,
    *,
    family: str | None = None,
    new_modules: tuple[str, ...] = (),
    attention: str = "sdpa",
    mean: bool = False,
) -> Adapted:
    """Prepares a freshly loaded task model for training by a method.

    Args:
        base: a Hugging Face task model with a head; changed in place.
        method: a key of `METHODS`.
        recipe: gives ranks, targets, numbers of virtual tokens ...
        kind: `sequence-classification` or `token-classification`.
        family: of the backbone, where its defaults differ from its architecture's.
        new_modules: modules that the checkpoint had no weights for; trained beside the head whatever the method.
        attention: the implementation in transformers that computes it (see `Precision.attention`).
        mean: a sequence classifier reads the mean of all positions, through a pooler that is trained with the head.

    Raises:
        UserError: a combination that cannot work.
    """
    architecture = architecture_of(base.config, family)
    check(method, architecture, recipe)
    pooling = pooling_of(architecture, kind, mean)
    pooler = poolers(base) if pooling == "mean" else ()
    head = tuple(dict.fromkeys((*architecture.head[kind], *pooler, *new_modules)))
    backbone: nn.Module = getattr(base, base.base_model_prefix)
    backbone_parameters = sum(weight.numel() for weight in backbone.parameters())
    module: nn.Module = base
    if method == "full":
        base.requires_grad_(True)
    elif METHODS[method].storage == "weights":
        base.requires_grad_(False)
        for name in head:
            base.get_submodule(name).requires_grad_(True)
        if method == "bitfit":
            for name, weight in base.named_parameters():
                weight.requires_grad_(weight.requires_grad or name.endswith(".bias"))
    else:
        from peft import get_peft_model

        module = get_peft_model(base, _peft_config(base, architecture, method, recipe, kind, head))
        if method in VIRTUAL:
            _initialise_virtual(module, base, method)
    adapted = Adapted(base, module, architecture, method, kind, head, pooling, backbone_parameters)
    finish(adapted, attention)
    return adapted


def finish(adapted: Adapted, attention: str = "sdpa") -> None:
    """What every adapted model needs after it is built or loaded: its attention, and a head in full precision."""
    adapted.attention = attention
    if adapted.kind == "sequence-classification" and adapted.pooling != "last":
        adapted.read_segments()
    packed.keep_trigrams_within(adapted.base, lambda: adapted._row)
    draw_bytes(adapted.module, lambda: adapted._row is not None)
    adapted.layers = write_out(adapted.base, adapted.architecture, lambda: adapted._row)
    if adapted.pooling == "mean" and not hasattr(adapted.base.config, "classifier_pooling"):
        adapted.read_mean()
    for name in adapted.head:
        for module in _leaves(adapted.base.get_submodule(name)):
            _in_float32(module)


def pooling_of(architecture: Architecture, kind: str, mean: bool) -> str:
    """What a head reads: `first`, `mean` or `last`; taggers read every position."""
    if kind == "token-classification":
        return "first"
    return "mean" if mean and architecture.pooling == "first" else architecture.pooling


def poolers(base: PreTrainedModel) -> tuple[str, ...]:
    """The backbone's own projection between its last hidden state and a head, where it has one."""
    names = {f"{base.base_model_prefix}.pooler", f"{base.base_model_prefix}.pooler.dense"}
    return tuple(name for name, module in base.named_modules() if name in names and isinstance(module, nn.Linear))


def _leaves(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def _in_float32(module: nn.Module) -> None:
    """Keeps a head out of reduced precision: eight bits of a logit would make ties of different scores."""
    forward = module.forward

    def exact(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(hidden.float())

    module.forward = exact


def _peft_config(
    base: PreTrainedModel, architecture: Architecture, method: str, recipe: Recipe, kind: str, head: tuple[str, ...]
) -> Any:
    import peft

    prefix = base.base_model_prefix
    common: dict[str, Any] = {"task_type": TASK_TYPES[kind], "modules_to_save": list(head)}
    layers = None
    if recipe.top_layers is not None:
        depth = base.config.num_hidden_layers
        layers = range(max(0, depth - recipe.top_layers), depth)

    def roles(default: tuple[str, ...]) -> tuple[str, ...]:
        if recipe.targets == "default":
            return default
        return tuple(architecture.roles) if recipe.targets == "all" else tuple(recipe.targets)

    if method in ("lora", "dora", "rslora"):
        return peft.LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.adapter_dropout,
            target_modules=architecture.pattern(prefix, roles(architecture.lora), layers),
            use_dora=method == "dora",
            use_rslora=method == "rslora",
            **common,
        )
    if method == "ia3":
        chosen = roles(architecture.ia3)
        scaled_inputs = [role for role in chosen if role in architecture.ia3_feedforward]
        return peft.IA3Config(
            target_modules=architecture.pattern(prefix, chosen, layers),
            feedforward_modules=architecture.pattern(prefix, scaled_inputs, layers) if scaled_inputs else [],
            **common,
        )
    if method == "layernorm":
        names = [
            name
            for name, module in base.named_modules()
            if name.startswith(f"{prefix}.") and "Norm" in type(module).__name__
        ]
        return peft.LNTuningConfig(target_modules=names, **common)
    if method == "prefix":
        depth, heads, width = virtual.key_value_shape(base, architecture)
        return peft.PrefixTuningConfig(
            num_virtual_tokens=recipe.virtual_tokens,
            num_layers=depth,
            token_dim=width,
            num_attention_heads=heads,
            **common,
        )
    width = getattr(base.config, architecture.embedding_width)
    common |= {
        "num_virtual_tokens": recipe.virtual_tokens,
        "token_dim": width,
        "num_layers": base.config.num_hidden_layers,
        "num_attention_heads": base.config.num_attention_heads,
    }
    if method == "prompt":
        return peft.PromptTuningConfig(**common)
    return peft.PromptEncoderConfig(encoder_hidden_size=recipe.encoder_width, **common)


@torch.no_grad()
def _initialise_virtual(module: Any, base: PreTrainedModel, method: str) -> None:
    """Starts virtual tokens where the model is at home: PEFT draws from N(0, 1), far outside of any embedding.

    Prompts start as the embeddings of random words (Lester et al. 2021, section 3.2), prefixes near zero.
    """
    weight = module.prompt_encoder["default"].embedding.weight
    if method == "prefix":
        weight.normal_(std=0.02)
        return
    words: torch.Tensor = base.get_input_embeddings().weight
    if method == "prompt" and weight.device.type != "meta":
        weight.copy_(words[torch.randint(words.shape[0], (weight.shape[0],))])
    elif method == "p-tuning":
        weight.normal_(std=float(words.std()) if words.device.type != "meta" else 0.02)
