"""Money: what an hour of a machine costs, from `catalog/prices.yaml` or a file of the user's."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from posology.catalog import paper_table
from posology.errors import UserError

HOURS_PER_YEAR = 8766
DEFAULT = "own-server"


class Rate(NamedTuple):
    """What an hour costs.

    Attributes:
        per_hour: in units of the currency.
        currency: three letters, ISO 4217.
    """

    per_hour: float
    currency: str


class Amount(NamedTuple):
    """A sum of money."""

    value: float
    currency: str


class _Priced(BaseModel):
    """What every price has.

    Attributes:
        name: what the command line calls it.
        currency: three letters, ISO 4217.
        date: when it was seen.
        source: where.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    currency: str = Field(pattern="^[A-Z]{3}$")
    date: date
    source: str


class Instance(_Priced):
    """A machine that is paid by the hour."""

    per_hour: float = Field(gt=0)

    def rate(self) -> Rate:
        """What an hour costs."""
        return Rate(self.per_hour, self.currency)


class Server(_Priced):
    """A machine of one's own: what it was bought for, spread over the hours in which it works, and its electricity.

    Attributes:
        purchase: its price.
        years: for which it is kept.
        utilisation: share of all hours in which it works for somebody.
        watts: drawn while it works.
        price_per_kwh: of electricity.
    """

    purchase: float = Field(ge=0)
    years: float = Field(gt=0)
    utilisation: float = Field(gt=0, le=1)
    watts: float = Field(ge=0)
    price_per_kwh: float = Field(ge=0)

    def rate(self) -> Rate:
        """What an hour of work costs."""
        spread = self.purchase / (self.years * HOURS_PER_YEAR * self.utilisation)
        return Rate(spread + self.watts / 1000 * self.price_per_kwh, self.currency)


Price = Annotated[Instance | Server, Field(union_mode="smart")]


def prices(file: Path | str | None = None) -> dict[str, Instance | Server]:
    """Every price by its name.

    Args:
        file: YAML of the form of `catalog/prices.yaml`; its entries replace those of their name, and are added.

    Raises:
        UserError: the file cannot be read, or an entry is not of that form.
    """
    known = dict(_catalogue())
    if file is not None:
        known |= {entry.name: entry for entry in _read(Path(file))}
    return known


def rate(name: str = DEFAULT, file: Path | str | None = None) -> Rate:
    """What an hour of a machine costs.

    Args:
        name: of the price.
        file: see `prices`.

    Raises:
        UserError: there is no such price, or the file cannot be used.
    """
    known = prices(file)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            f"there is no price {name!r}; there are {', '.join(known)}",
            f"Did you mean {near[0]!r}?" if near else "Choose one of these, or add it in a file",
            "prices",
        )
    return known[name].rate()


def cost(seconds: float, name: str = DEFAULT, file: Path | str | None = None) -> Amount:
    """What so many seconds of a machine cost; arguments and errors as in `rate`."""
    per_hour, currency = rate(name, file)
    return Amount(seconds / 3600 * per_hour, currency)


def table4(
    training: str = "paper/g5.16xlarge", inference: str = "paper/g4dn.16xlarge", file: Path | str | None = None
) -> list[dict[str, Any]]:
    """The paper's Table 4, whose pounds are recomputed from its hours.

    Args:
        training, inference: names of the prices of both, in one currency; by default the rates the paper's totals follow
            from, else what the same hours cost on another machine, as if it took as long.
        file: see `prices`.

    Returns:
        For each row `model`, `method`, `training_hours` (30,000 documents, 10 epochs), `inference_hours` (100,000
        documents), `training_cost`, `inference_cost`, `total` (of both), `currency`, `paper` ({`total`} in pounds).

    Raises:
        UserError: there is no such price, or the two are in different currencies.
    """
    first, second = rate(training, file), rate(inference, file)
    if first.currency != second.currency:
        raise UserError(
            f"{training} is in {first.currency}, {inference} in {second.currency}", "Name two in one currency", "prices"
        )
    rows = []
    for row in paper_table("table4_cost"):
        hours, further = float(row["train_hours"]), float(row["inference_hours_100k"])
        rows.append(
            {
                "model": row["model"],
                "method": row["method"],
                "training_hours": hours,
                "inference_hours": further,
                "training_cost": hours * first.per_hour,
                "inference_cost": further * second.per_hour,
                "total": hours * first.per_hour + further * second.per_hour,
                "currency": first.currency,
                "paper": {"total": float(row["total_gbp"])},
            }
        )
    return rows


@functools.cache
def _catalogue() -> dict[str, Instance | Server]:
    text = files("posology.catalog").joinpath("prices.yaml").read_text(encoding="utf-8")
    return {entry.name: entry for entry in _ENTRIES.validate_python(yaml.safe_load(text)["prices"])}


_ENTRIES: TypeAdapter[list[Instance | Server]] = TypeAdapter(list[Instance | Server])
_FORM = "Write `prices:` and a list of entries as in the project's catalog/prices.yaml"


def _read(path: Path) -> Sequence[Instance | Server]:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", "Name a file of prices", path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark is not None else ""
        raise UserError(f"is no YAML{line}", _FORM, path) from error
    if not isinstance(content, dict) or set(content) != {"prices"} or not isinstance(content["prices"], list):
        raise UserError("has not just one key, `prices`, with a list", _FORM, path)
    return [_entry(values, path, number) for number, values in enumerate(content["prices"], start=1)]


def _entry(values: Any, path: Path, number: int) -> Instance | Server:
    """One entry of a user's file: an instance if it has a price per hour, else a server."""
    if not isinstance(values, dict):
        raise UserError(f"entry {number} has no fields", _FORM, path)
    kind: type[Instance] | type[Server] = Instance if "per_hour" in values else Server
    try:
        return kind(**values)
    except (ValidationError, TypeError) as error:
        if not isinstance(error, ValidationError):  # a key that is no text
            raise UserError(f"entry {number} has a field whose name is no text", _FORM, path) from error
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        allowed = ", ".join(kind.model_fields)
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise UserError(f"entry {number}, {field}: {message}", f"An entry has {allowed}", path) from None
