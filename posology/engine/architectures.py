"""The facts of `architectures.yaml`, and the exact module names that follow from them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict
from torch import nn

from posology.errors import UserError


class PostNorm(BaseModel):
    """Where the parts of a layer that normalises after each of its two halves are, by name inside the layer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    norms: tuple[str, str]
    dropouts: tuple[str | None, str | None]
    attention_dropout: str


class Architecture(BaseModel):
    """One entry of `architectures.yaml`; the fields are explained there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    body: str
    layers: str
    head: dict[str, tuple[str, ...]]
    roles: dict[str, str]
    lora: tuple[str, ...]
    ia3: tuple[str, ...]
    ia3_feedforward: tuple[str, ...]
    embedding_width: str
    prefix_shifts_positions: bool = False
    fused_qkv: bool = False
    shared_layers: bool = False
    biases: bool = True
    post_norm: PostNorm | None = None
    pooling: Literal["first", "last"] = "first"
    families: dict[str, dict[str, tuple[str, ...]]] = {}

    def pattern(self, prefix: str, roles: Iterable[str], layers: Sequence[int] | None = None) -> str:
        r"""A regular expression that matches, in full, the names of the modules with these roles.

        Args:
            prefix: the backbone's name inside the task model (`base_model_prefix`).
            roles: names from `roles`.
            layers: numbers of the layers meant; all where None.

        Raises:
            UserError: a role that the architecture lacks.
        """
        roles = list(roles)
        for role in roles:
            if role not in self.roles:
                raise UserError(
                    f"{role!r} is no projection of {self.name}, which has {', '.join(self.roles)}",
                    "Choose targets among these, or leave `targets` at its default",
                    "targets",
                )
        layer = r"\d+" if layers is None else "(" + "|".join(map(str, layers)) + ")"
        return rf"{prefix}\.{self.layers.format(layer=layer)}\.({'|'.join(self.roles[role] for role in roles)})"


@functools.cache
def architectures() -> dict[str, Architecture]:
    """Every architecture the engine knows, by its `model_type`."""
    text = resources.files("posology.engine").joinpath("architectures.yaml").read_text(encoding="utf-8")
    return {name: Architecture(name=name, **entry) for name, entry in yaml.safe_load(text).items()}


def architecture_of(config: Any, family: str | None = None) -> Architecture:
    """The architecture of a transformers configuration, with the defaults of a family of models.

    Raises:
        UserError: an architecture that Posology does not know.
    """
    known = architectures()
    if config.model_type not in known:
        raise UserError(
            f"has the architecture {config.model_type!r}; known are {', '.join(known)}",
            "Choose a backbone of one of these",
            getattr(config, "name_or_path", None) or "backbone",
        )
    entry = known[config.model_type]
    return entry.model_copy(update=entry.families.get(family or "", {}))


def matching(model: nn.Module, pattern: str) -> list[str]:
    """The names of the modules of `model` that `pattern` matches in full."""
    return [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
