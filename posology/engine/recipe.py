"""Recipes: the hyper-parameters of one training, with defaults that differ by method."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from posology.errors import UserError


class Recipe(BaseModel):
    """Hyper-parameters of one training. Named recipes are in `recipes.yaml`.

    Attributes:
        learning_rate: peak learning rate of AdamW.
        epochs: passes over the training set.
        batch_size: documents in one step of the optimiser.
        weight_decay: of matrices; biases and normalisation weights have none.
        warmup: share of all steps in which the learning rate rises from zero.
        schedule: what the learning rate does after that.
        max_grad_norm: gradients are scaled down to this Euclidean norm.
        class_weights: `balanced` weighs each class by n / (classes x its count).
        patience: epochs without a better validation score before training stops.
        max_length: pieces a window may have, special tokens included; virtual tokens come on top where they fit.
        long_text: `window` reads all of a long document in overlapping windows, `truncate` its beginning.
        overlap: pieces that neighbouring windows share.
        pooling: what a sequence classifier reads: the `first` position, as in transformers, or the `mean` of all. `auto`
            is the first, but for the first K layers of a backbone the mean: its first position gathers the text in
            the last layers only.
        dropout: of hidden states; the backbone's own where None. Layers below the first that is trained (`head`,
            `top_layers`) have none where the engine runs them itself, in BERT, RoBERTa, ELECTRA and DistilBERT: they
            give the same in every epoch, and are run once.
        attention_dropout: of attention probabilities, rounded to 1/256; the backbone's own where None.
        precision: `auto` takes bfloat16 where the hardware multiplies it natively.
        rank, alpha, adapter_dropout: of LoRA and its kin.
        targets: projections that LoRA and IA3 adapt, by role (see `architectures.yaml`); `default` or `all`.
        virtual_tokens: of prefix, prompt and p-tuning.
        encoder_width: hidden width of the p-tuning encoder.
        top_layers: adapt only the last so many layers; all where None.
        backbone_dtype: in which a frozen backbone is held; weights that are trained always are in float32. `auto` is
            bfloat16 for decoders such as Llama, whose weights are published in 16 bits, where products are bfloat16.
        quantise: hold the matrices of a frozen backbone in 8 bits (rounded row by row) or 4 (NF4, as in
            QLoRA); None for neither.
        checkpointing: keep only what goes into each layer and compute the rest again in the backward pass: about a
            third more work for a fraction of the activations' memory; the result is the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(gt=0, lt=10)
    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=16, ge=1)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.06, ge=0, lt=1)
    schedule: Literal["linear", "constant"] = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    class_weights: Literal["none", "balanced"] = "none"
    patience: int = Field(default=5, ge=1)
    max_length: int = Field(default=480, ge=8)
    long_text: Literal["window", "truncate"] = "window"
    overlap: int = Field(default=64, ge=0)
    pooling: Literal["auto", "first", "mean"] = "auto"
    dropout: float | None = Field(default=None, ge=0, lt=1)
    attention_dropout: float | None = Field(default=None, ge=0, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=8, gt=0)
    adapter_dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: Literal["default", "all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "default"
    virtual_tokens: int = Field(default=10, ge=1)
    encoder_width: int = Field(default=128, ge=1)
    top_layers: int | None = Field(default=None, ge=1)
    backbone_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantise: Literal["8bit", "4bit"] | None = None
    checkpointing: bool = False


_WIDEST_SMALL = 384


@functools.cache
def _named() -> dict[str, dict[str, Any]]:
    text = resources.files("posology.engine").joinpath("recipes.yaml").read_text(encoding="utf-8")
    recipes: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return recipes


def make_recipe(
    method: str, name: str = "standard", overrides: Mapping[str, Any] | None = None, *, width: int = 0
) -> Recipe:
    """The recipe `name` for a method, with some fields replaced.

    Args:
        method: a key of `METHODS`.
        name: `standard` or `paper`.
        overrides: fields to replace.
        width: of the backbone's hidden states; wide ones take lower learning rates.

    Raises:
        UserError: an unknown recipe or field, or a value out of its range.
    """
    named = _named()
    if name not in named:
        raise UserError(f"there is no recipe {name!r}; there are {', '.join(named)}", "Choose one of these", "--recipe")
    values = dict(named[name].get("all", {}))
    values.update(named[name]["methods"].get(method, {}))
    if width > _WIDEST_SMALL:
        values.update(named[name].get("wide", {}).get(method, {}))
    values.update(overrides or {})
    return validated(Recipe, values, "a recipe")


_Fields = TypeVar("_Fields", bound=BaseModel)


def validated(model: type[_Fields], values: Mapping[str, Any], what: str) -> _Fields:
    """`model` with these values.

    Raises:
        UserError: an unknown field, or a value out of its range; `what` says whose fields they are.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise _explain(error, model, what) from None


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Turns `["learning_rate=1e-3", "targets=query,value"]` into recipe fields.

    Raises:
        UserError: an item that is not `key=value`.
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise UserError(f"{pair!r} is not KEY=VALUE", "Write for example --set learning_rate=1e-3", "--set")
        key = key.strip()
        if key == "targets" and value not in ("default", "all"):
            overrides[key] = tuple(part.strip() for part in value.split(",") if part.strip())
        else:
            overrides[key] = None if value.strip().lower() == "none" and key != "class_weights" else value.strip()
    return overrides


def _explain(error: ValidationError, model: type[BaseModel], what: str) -> UserError:
    first = error.errors()[0]
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        if not model.model_fields:
            return UserError(f"{what} has nothing to set, and {field!r} was given", "Leave --set out", "--set")
        near = difflib.get_close_matches(field, model.model_fields, n=1)
        return UserError(
            f"{what} has no {field!r}; it has {', '.join(model.model_fields)}",
            f"Did you mean {near[0]!r}?" if near else "Choose one of these",
            "--set",
        )
    return UserError(
        f"{field}={first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}", "Correct the value", "--set"
    )
