"""Methods: how a backbone is adapted. PEFT builds and saves what it can; what it lacks is added here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from posology.engine import packed, virtual
from posology.engine.architectures import Architecture, architecture_of, architectures
from posology.engine.attention import PACKED_ATTENTION, Segments
from posology.engine.baselines import BASELINES
from posology.engine.batch import Batch, collate, pack
from posology.engine.dropout import draw_bytes
from posology.engine.encode import Window
from posology.engine.layers import Layer, write_out
from posology.engine.recipe import Recipe, make_recipe
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
VIRTUAL = ("prefix", "prompt", "p-tuning")
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


@dataclass
class Adapted:
    """A task model under one method: what is trained, and how logits are computed.

    Attributes:
        base: the Hugging Face task model; adapters are injected into it.
        module: what holds the parameters: `base`, or the PEFT model around it.
        architecture, method, kind: what it is made of.
        head: names, in `base`, of the modules that are trained beside the method's own parameters.
        pooling: what a sequence classifier reads: `first`, `mean` or `last`.
        backbone_parameters: how many parameters the backbone had before an adapter was added.
        layout: whether batches are packed without padding, or padded as transformers does it: the reference.
        attention: what computes it in transformers where batches are padded.
        layers: those that are written out (`posology.engine.layers`); none where transformers runs them.
    """

    base: PreTrainedModel
    module: nn.Module
    architecture: Architecture
    method: str
    kind: str
    head: tuple[str, ...]
    pooling: str = "first"
    backbone_parameters: int = 0
    layout: Literal["packed", "padded"] = "packed"
    attention: str = "sdpa"
    _row: packed.Row | None = field(default=None, init=False, repr=False)
    layers: list[Layer] = field(default_factory=list, init=False, repr=False)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by their names in `module`."""
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def count_trainable(self) -> dict[str, int]:
        """Trainable parameters: of the `head`, of the `method` itself, and the `total` of the model with both."""
        marks = tuple(f".{name}." for name in self.head)
        weights = self.trainable()
        head = sum(weight.numel() for name, weight in weights.items() if any(mark in f".{name}." for mark in marks))
        trained = sum(weight.numel() for weight in weights.values())
        total = sum(
            weight.numel() for name, weight in self.module.named_parameters() if ".original_module." not in name
        )
        return {"head": head, "method": trained - head, "total": total}

    def batch(self, windows: Sequence[Window], device: torch.device | str = "cpu") -> Batch:
        """The windows of a micro-batch, in the model's layout."""
        if self.layout == "packed":
            return pack(windows, device)
        return collate(windows, self.base.config.pad_token_id, device)

    def logits(self, inputs: dict[str, torch.Tensor], segments: Segments | None = None) -> torch.Tensor:
        """Runs a batch.

        Args:
            inputs: `input_ids` and, where texts come in pairs, `token_type_ids`. Padded on the right, (windows,
                length), with `attention_mask`; or packed, (1, tokens).
            segments: the borders of the windows in a packed row.

        Returns:
            (windows, classes), or in token classification (windows, length, tags) or (1, tokens, tags), in float32.
        """
        weights = self._virtual_weights() if self.method in VIRTUAL else None
        if segments is not None:
            return self._packed_logits(inputs, segments, weights).float()
        extra, arguments = 0, dict(inputs)
        self._row, self._mask = None, inputs["attention_mask"]
        self._attend(virtual.PREFIX_ATTENTION if self.method == "prefix" else self.attention)
        if weights is not None:
            if self.method == "prefix":
                arguments = virtual.forward_with_prefix(self.base, self.architecture, weights, inputs)
            else:
                arguments = virtual.forward_with_prompt(self.base, weights, inputs)
                extra = weights.shape[0]
        if self.pooling == "last":
            last = arguments["attention_mask"].sum(dim=1) - 1
            return self._last_token_logits(arguments, torch.arange(len(last), device=last.device), last).float()
        logits = self.base(**arguments).logits
        if self.kind == "token-classification":
            logits = logits[:, extra:]
        return logits.float()

    def answers(self, batch: Batch) -> torch.Tensor:
        """Logits of what a batch asks for: (windows, classes), or in token classification (words, tags), in float32."""
        if self.kind == "sequence-classification":
            return self.logits(batch.inputs, batch.segments)
        if batch.segments is None:
            return self.logits(batch.inputs)[batch.rows, batch.columns]
        weights = self._virtual_weights() if self.method in VIRTUAL else None
        return self._packed_logits(batch.inputs, batch.segments, weights, batch.columns)[0].float()

    def _packed_logits(
        self,
        inputs: dict[str, torch.Tensor],
        segments: Segments,
        weights: torch.Tensor | None,
        columns: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(segments, classes), or (1, tokens, tags), or of some tokens only: (1, columns, tags)."""
        self._attend(PACKED_ATTENTION)
        arguments, row = packed.arguments(self.base, self.architecture, self.method, weights, inputs, segments)
        self._row = row
        if self.pooling == "last":
            return self._last_token_logits(arguments, torch.zeros_like(row.lasts()), row.lasts())
        if self.kind == "sequence-classification":
            if self.pooling == "first" and self.layers:
                self._row = replace(row, read=row.firsts())
            return self.base(**arguments).logits
        if row.virtual:
            columns = row.real() if columns is None else row.real()[columns]
        if self.layers:
            self._row = replace(row, read=columns)
            return self.base(**arguments).logits
        logits: torch.Tensor = self.base(**arguments).logits
        return logits if columns is None else logits[:, columns]

    @property
    def first_trained(self) -> int | None:
        """The number of the first layer that has something to train; as many as there are layers where none has.

        What lies below is the same in every step. None where that cannot be left out: where something before the first
        layer is trained, and where transformers runs the layers.
        """
        own = dict.fromkeys(id(weight) for layer in self.layers for weight in layer.trained())
        prefix = f"{self.base.base_model_prefix}."
        others = [
            name
            for name, weight in self.base.named_parameters()
            if weight.requires_grad and id(weight) not in own and name.startswith(prefix)
        ]
        heads = tuple(f"{name}." for name in self.head)
        if not self.layers or self.method in VIRTUAL or any(not name.startswith(heads) for name in others):
            return None
        return next((number for number, layer in enumerate(self.layers) if layer.trained()), len(self.layers))

    def lower(self, batch: Batch, layer: int) -> torch.Tensor:
        """Hidden states before a layer, without dropout: what `upper` goes on from.

        Args:
            batch: packed.
            layer: from 0 to the number of layers.

        Returns:
            (tokens, width); behind the last layer only what a head reads: (windows, width) or (words, width).
        """
        segments, depth = _packed(batch), len(self.layers)
        training = self.module.training
        self.module.eval()
        try:
            read = self.read(batch) if layer == depth else None
            with torch.no_grad():
                hidden = self.body(batch.inputs, segments, range(layer), read=read)
        finally:
            self.module.train(training)
        return packed.Row(segments).means(hidden) if layer == depth and self.pooling == "mean" else hidden

    def body(
        self,
        inputs: dict[str, torch.Tensor],
        segments: Segments,
        layers: range,
        *,
        entering: torch.Tensor | None = None,
        read: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states behind some of the layers, (tokens, width).

        Args:
            inputs: of a packed row, as in `logits`.
            segments: its borders.
            layers: numbers of those it goes through.
            entering: hidden states to begin with, (tokens, width); without them the embeddings.
            read: columns that are wanted in the end, of which only the last layer makes use.
        """
        self._attend(PACKED_ATTENTION)
        arguments, row = packed.arguments(self.base, self.architecture, self.method, None, inputs, segments)
        self._row = replace(row, read=read, layers=layers, entering=entering, bare=True)
        hidden: torch.Tensor = getattr(self.base, self.base.base_model_prefix)(**arguments).last_hidden_state[0]
        return hidden

    def upper(self, hidden: torch.Tensor, batch: Batch, layer: int) -> torch.Tensor:
        """What `answers` gives, from the hidden states before a layer, as `lower` gives them."""
        segments, depth = _packed(batch), len(self.layers)
        self._attend(PACKED_ATTENTION)
        # The embeddings still run, on one token, and what they give is not used.
        one = segments.tensor(np.zeros((1, 1), np.int64))
        read = None if layer == depth else self.read(batch)
        self._row = packed.Row(segments, read=read, layers=range(layer, depth), entering=hidden)
        logits: torch.Tensor = self.base(input_ids=one, segments=segments).logits
        return (logits if self.kind == "sequence-classification" else logits[0]).float()

    def read(self, batch: Batch) -> torch.Tensor | None:
        """The columns of a packed row that a head reads; None for all."""
        if self.kind == "token-classification":
            return batch.columns
        return packed.Row(_packed(batch)).firsts() if self.pooling == "first" else None

    def _attend(self, attention: str) -> None:
        """Switches the attention, where it is another than before."""
        if self.base.config._attn_implementation != attention:
            self.base.set_attn_implementation(attention)

    def read_segments(self) -> None:
        """Makes heads read their position of every segment of a packed row, as if each were a text of its own.

        The body's output becomes (segments, 1, width), so that pooler and head stay those of transformers.
        """

        def gather(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            row: packed.Row | None = self._row
            if row is None or row.bare:
                return None
            hidden = (output if isinstance(output, torch.Tensor) else output[0])[0]
            if row.layers is not None and not len(row.layers):  # read before
                read = hidden[:, None]
            elif self.pooling == "mean":
                # ModernBERT's own mean, as PEFT runs it, counts virtual tokens.
                own = getattr(self.base.config, "classifier_pooling", None) == "mean"
                read = row.means(hidden, with_virtual=own)[:, None]
            else:  # the last layer may have kept first positions only
                read = (hidden if len(hidden) == len(row.segments) else hidden[row.firsts()])[:, None]
            return _with_hidden(output, read)

        self._body().register_forward_hook(gather)

    def read_mean(self) -> None:
        """Makes heads read the mean over the real tokens where they would read the first position.

        The body's output gets the mean in its first position, so that pooler and head stay those of transformers.
        """

        def put_mean(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            if self._row is not None:
                return None
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            mask = self._mask.to(hidden.dtype)[:, :, None]
            real = hidden[:, hidden.shape[1] - mask.shape[1] :]  # virtual tokens stand before the real ones
            mean = (real * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
            return _with_hidden(output, torch.cat((mean, hidden[:, 1:]), dim=1))

        self._body().register_forward_hook(put_mean)

    def _body(self) -> nn.Module:
        backbone: nn.Module = getattr(self.base, self.base.base_model_prefix)
        return backbone.get_submodule(self.architecture.body)

    def _virtual_weights(self) -> torch.Tensor:
        module: Any = self.module
        encoder = module.prompt_encoder["default"]
        if module.peft_config["default"].inference_mode:  # p-tuning is saved as the vectors its network makes
            return encoder.embedding.weight
        device = encoder.embedding.weight.device
        return encoder(module.prompt_tokens["default"][None].to(device))[0]

    def _last_token_logits(self, arguments: dict[str, Any], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Decoders classify by the last real token; transformers cannot find it behind word embeddings."""
        hidden = getattr(self.base, self.base.base_model_prefix)(**arguments, use_cache=False).last_hidden_state
        return self.base.get_submodule("score")(hidden[rows, columns])


def _packed(batch: Batch) -> Segments:
    assert batch.segments is not None, "only packed rows can be cut between layers"
    return batch.segments


def _with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """The output of a body with another last hidden state."""
    if isinstance(output, torch.Tensor):
        return hidden
    output.last_hidden_state = hidden
    return output


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
