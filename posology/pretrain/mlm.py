"""The masked language model: a backbone without padding, its head on the hidden pieces only.

    pieces of many texts, one row  ->  backbone, each text by itself  ->  hidden pieces only  ->  head  ->  vocabulary

The head's product with the vocabulary costs as much as the whole of a small backbone, and six of seven pieces are not
asked for. Loss and gradients are those of `AutoModelForMaskedLM` on the padded batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from posology.engine import packed
from posology.engine.adapted import Adapted
from posology.engine.architectures import architecture_of
from posology.engine.attention import PACKED_ATTENTION
from posology.engine.backbone import Source, load_config
from posology.engine.batch import Batch
from posology.engine.dropout import draw_bytes
from posology.engine.layers import write_out
from posology.errors import UserError
from posology.pretrain.vocabulary import grow

METHODS = ("full", "lora")
RANK = 16
"""Of LoRA, on every projection: continued pre-training has far more to learn from than a task."""


@dataclass
class MaskedModel(Adapted):
    """A masked language model under one method; see `Adapted`.

    Attributes:
        new_head: the checkpoint had no head, so that it is new.
    """

    new_head: bool = False

    def answers(self, batch: Batch) -> torch.Tensor:
        """Logits of the hidden pieces, (pieces, vocabulary), in float32."""
        if batch.segments is None:
            return super().answers(batch)
        self._attend(PACKED_ATTENTION)
        arguments, row = packed.arguments(self.base, self.architecture, self.method, None, batch.inputs, batch.segments)
        self._row = replace(row, read=batch.columns)
        logits: torch.Tensor = self.base(**arguments).logits
        return logits[0].float()

    def loss(self, batch: Batch) -> torch.Tensor:
        """The sum of the cross entropies of the hidden pieces."""
        goal = torch.as_tensor(batch.words[:, 1], device=batch.columns.device)
        return functional.cross_entropy(self.answers(batch), goal, reduction="sum")

    def losses(self, batch: Batch) -> torch.Tensor:
        """The cross entropy of each hidden piece, (pieces,)."""
        goal = torch.as_tensor(batch.words[:, 1], device=batch.columns.device)
        return functional.cross_entropy(self.answers(batch), goal, reduction="none")

    def head_weights(self) -> list[nn.Parameter]:
        """The head's own weights: those it does not share with the word embeddings."""
        backbone = {id(weight) for weight in getattr(self.base, self.base.base_model_prefix).parameters()}
        return [weight for weight in self.base.parameters() if id(weight) not in backbone]

    def read_hidden_pieces(self) -> None:
        """Leaves out, before the head, what nobody asks for, where the last layer has not done so itself."""

        def gather(_module: nn.Module, _arguments: Any, output: Any) -> Any:
            row = self._row
            if row is None or row.read is None or self.layers:
                return None
            if isinstance(output, torch.Tensor):
                return output[:, row.read]
            output.last_hidden_state = output.last_hidden_state[:, row.read]
            return output

        self._body().register_forward_hook(gather)

    def train_head_only(self, only: bool) -> None:
        """Freezes what is trained of the backbone, or sets it free again."""
        own = {id(weight) for weight in self.head_weights()}
        for weight in self._wanted:
            weight.requires_grad_(not only or id(weight) in own)
            if not weight.requires_grad:
                weight.grad = None

    def __post_init__(self) -> None:
        self._wanted = [weight for weight in self.module.parameters() if weight.requires_grad]


def load_masked(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    method: str,
    *,
    seed: int,
    new_words: dict[int, list[int]] | None = None,
) -> MaskedModel:
    """A backbone with its head for masked words, or with a new one.

    Args:
        source: where the weights are.
        tokenizer: new words included.
        method: `full` or `lora`.
        seed: of a new head and of LoRA.
        new_words: as `vocabulary.extend` gives them.

    Raises:
        UserError: a decoder, or weights that are missing or damaged.
    """
    if method not in METHODS:
        raise UserError(f"there is no way {method!r} to pre-train", f"Choose {' or '.join(METHODS)}", "--method")
    config = load_config(source)
    architecture = architecture_of(config, source.family)
    if architecture.pooling == "last":
        raise UserError(
            f"{architecture.name} is a decoder, which is not pre-trained by masking", "Choose an encoder", source.name
        )
    torch.manual_seed(seed)
    try:
        base, report = AutoModelForMaskedLM.from_pretrained(
            source.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # safetensors and transformers raise many kinds here
        raise _unloadable(source, type(error).__name__) from error
    lost = sorted(key for key in report["missing_keys"] if key.startswith(f"{base.base_model_prefix}."))
    if lost or report["mismatched_keys"]:
        raise _unloadable(
            source, f"{lost[0]} is missing" if lost else "a weight has another shape than config.json says"
        )
    new_head = any(not key.endswith("bias") for key in report["missing_keys"])
    if new_words:
        grow(base, new_words, len(tokenizer))
    return adapt_masked(base, method, family=source.family, new_head=new_head)


def adapt_masked(
    base: PreTrainedModel, method: str, *, family: str | None = None, new_head: bool = False
) -> MaskedModel:
    """Prepares a freshly loaded masked language model for training; it is changed in place."""
    architecture = architecture_of(base.config, family)
    module: nn.Module = base
    backbone: nn.Module = getattr(base, base.base_model_prefix)
    parameters = sum(weight.numel() for weight in backbone.parameters())
    head = {id(weight) for weight in base.parameters()} - {id(weight) for weight in backbone.parameters()}
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        targets = architecture.pattern(base.base_model_prefix, architecture.roles)
        module = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, target_modules=targets))
        for weight in base.parameters():  # the head goes on being trained: it is small, and nobody keeps it
            if id(weight) in head:
                weight.requires_grad_(True)
    model = MaskedModel(
        base, module, architecture, method, "token-classification", (), "first", parameters, new_head=new_head
    )
    packed.keep_trigrams_within(base, lambda: model._row)
    draw_bytes(module, lambda: model._row is not None)
    model.layers = write_out(base, architecture, lambda: model._row)
    model.read_hidden_pieces()
    return model


def merged(model: MaskedModel) -> PreTrainedModel:
    """The model as transformers has it, adapters added into the weights; `model` cannot be used after that."""
    base: PreTrainedModel = model.base
    if model.method == "lora":
        wrapped: Any = model.module
        base = wrapped.merge_and_unload()
    return base


def weights_of(base: PreTrainedModel, source: Source) -> dict[str, torch.Tensor]:
    """What is saved: the model's weights, and the pooler of the old backbone, which masking neither uses nor changes."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    written: set[int] = set()
    for name, weight in base.to("cpu").state_dict().items():
        if weight.data_ptr() not in written:  # of weights that are tied one name is written, as save_pretrained does
            found[name] = weight.detach().contiguous()
        written.add(weight.data_ptr())
    prefix = f"{base.base_model_prefix}."
    for path in sorted(source.folder.glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            for name in stream.keys():  # noqa: SIM118
                own = prefix + name.removeprefix(prefix)
                if own.startswith(f"{prefix}pooler."):
                    found[own] = stream.get_tensor(name).float()
    return found


def _unloadable(source: Source, why: str) -> UserError:
    return UserError(
        f"its weights cannot be loaded ({why})",
        "Fetch or copy the model again; model.safetensors must be whole and fit config.json",
        source.folder,
    )
