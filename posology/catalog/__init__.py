"""What is known beforehand: pretrained models by name, and the paper's tables as data."""

from __future__ import annotations

import csv
import functools
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator

from posology.errors import UserError

Architecture = Literal["bert", "roberta", "distilbert", "mobilebert", "electra", "albert", "modernbert", "llama"]


class Backbone(BaseModel):
    """A pretrained model of the catalogue.

    Attributes:
        name: what the command line calls it.
        hub_id: `owner/name` on the Hugging Face hub.
        aliases: further names it answers to, such as former hub ids.
        architecture: the `model_type` of its transformers configuration.
        family: what the adapters' target modules are looked up by; the architecture unless stated.
        domain: what its pretraining text was.
        parameters: of the encoder with its pooler where it has one, without a task head.
        vocabulary: rows of the word embedding.
        cased: whether its tokenizer keeps capitals.
        max_length: the longest input in tokens, special tokens included.
        licence: what its hub page declares; None where it declares none.
        safetensors: the hub revision that has its weights as safetensors; None where none was seen.
        bundled: whether its weights come inside a Python package.
        paper_name: its name in the paper's tables.
        reference: where it was published.
        note: what else a user should know.
        config: keyword arguments of the transformers configuration class that rebuild the architecture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hub_id: str
    aliases: tuple[str, ...] = ()
    architecture: Architecture
    family: str
    domain: Literal["general", "biomedical", "clinical"]
    parameters: PositiveInt
    vocabulary: PositiveInt
    cased: bool
    max_length: PositiveInt
    licence: str | None
    safetensors: str | None
    bundled: bool = False
    paper_name: str | None = None
    reference: str
    note: str = ""
    config: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _family_defaults_to_architecture(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {"family": values.get("architecture"), **values}


@functools.cache
def backbones() -> dict[str, Backbone]:
    """Every backbone of the catalogue by its name, in the catalogue's order: general, biomedical, clinical."""
    text = files(__name__).joinpath("backbones.yaml").read_text(encoding="utf-8")
    entries = [Backbone(**entry) for entry in yaml.safe_load(text)["backbones"]]
    return {entry.name: entry for entry in entries}


def find(name: str) -> Backbone | None:
    """The backbone that answers to `name` (its name, an alias, its hub id or the paper's name, in any case), if any."""
    return _names().get(name.casefold())


def paper_table(name: str) -> list[dict[str, str]]:
    """One of the paper's tables as printed there: a list of rows, each a mapping of column to text.

    Args:
        name: the file's name without its ending, such as `table3_peft`.

    Raises:
        UserError: there is no such table.
    """
    folder = files(__name__).joinpath("paper")
    tables = sorted(entry.name.removesuffix(".csv") for entry in folder.iterdir() if entry.name.endswith(".csv"))
    if name not in tables:
        raise UserError(f"the paper has no table {name!r}", f"Use one of {', '.join(tables)}")
    return list(csv.DictReader(folder.joinpath(f"{name}.csv").read_text(encoding="utf-8").splitlines()))


@functools.cache
def _names() -> dict[str, Backbone]:
    names = {}
    for entry in backbones().values():
        for name in (entry.name, entry.hub_id, *entry.aliases, *([entry.paper_name] if entry.paper_name else [])):
            names[name.casefold()] = entry
    return names
