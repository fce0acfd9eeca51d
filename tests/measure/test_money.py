"""Money: the paper's own, a server of one's own, and files of prices."""

from __future__ import annotations

from pathlib import Path

import pytest

from posology.catalog import paper_table
from posology.errors import UserError
from posology.measure.money import HOURS_PER_YEAR, Server, cost, prices, rate, table4


def test_the_papers_pounds_follow_from_its_hours() -> None:
    printed, rows = paper_table("table4_cost"), table4()
    assert len(rows) == len(printed) == 9
    for row, paper in zip(rows, printed, strict=True):
        assert (row["model"], row["method"], row["currency"]) == (paper["model"], paper["method"], "GBP")
        assert f"{row['total']:.2f}" == paper["total_gbp"] == f"{row['paper']['total']:.2f}", row["model"]


def test_the_papers_hours_cost_something_else_elsewhere() -> None:
    elsewhere = table4("aws/g5.16xlarge", "aws/g4dn.16xlarge")
    llama = elsewhere[0]
    assert llama["training_cost"] == pytest.approx(51.07 * 4.096) and llama["currency"] == "USD"
    assert llama["total"] == pytest.approx(llama["training_cost"] + 4.06 * 4.352)
    with pytest.raises(UserError, match="GBP"):
        table4("own-server", "aws/g4dn.16xlarge")


def test_a_server_costs_what_it_was_bought_for_and_its_electricity() -> None:
    server = {"name": "own", "currency": "EUR", "date": "2026-01-01", "source": "invoice", "years": 4}
    half = Server(**server, purchase=4 * HOURS_PER_YEAR, utilisation=0.5, watts=500, price_per_kwh=0.4)
    assert half.rate() == (pytest.approx(2 + 0.2), "EUR")
    idle = Server(**server, purchase=0, utilisation=0.5, watts=1000, price_per_kwh=0.4)
    assert idle.rate().per_hour == pytest.approx(0.4)


def test_every_entry_is_dated_and_says_where_it_is_from() -> None:
    known = prices()
    assert {"own-server", "aws/g5.16xlarge", "aws/g4dn.16xlarge"} <= set(known)
    for name, entry in known.items():
        assert entry.source and entry.rate().per_hour > 0, name


def test_a_file_replaces_and_adds(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """prices:
  - {name: own-server, currency: EUR, per_hour: 0.5, date: 2026-01-01, source: contract}
  - {name: cluster, currency: EUR, per_hour: 3, date: 2026-01-01, source: intranet}
"""
    )
    assert rate("own-server", path) == (0.5, "EUR")
    assert cost(1800, "cluster", path) == (1.5, "EUR")
    assert rate("aws/g5.xlarge", path) == rate("aws/g5.xlarge")
    assert rate("own-server").currency == "GBP"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prices: [{name: a, currency: EUR, per_hour: -1, date: 2026-01-01, source: x}]", ["entry 1", "per_hour"]),
        ("prices: [{name: a, currency: EUR, per_hours: 1, date: 2026-01-01, source: x}]", ["entry 1"]),
        ("prices: [{name: a, currency: euros, per_hour: 1, date: 2026-01-01, source: x}]", ["entry 1", "currency"]),
        ("prices: [{name: a, currency: EUR, per_hour: 1}]", ["entry 1", "date"]),
        ("prices: [3]", ["entry 1"]),
        ("prices: [{1: 2}]", ["entry 1"]),
        ("rates: []", ["prices"]),
        ("prices: [\n  {", ["no YAML", "line"]),
    ],
)
def test_a_faulty_file_is_explained(tmp_path: Path, text: str, said: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        rate("own-server", path)
    assert str(path) in str(caught.value) and all(part in str(caught.value) for part in said)


def test_a_missing_file_and_an_unknown_price_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        rate("own-server", tmp_path / "none.yaml")
    assert "none.yaml" in str(caught.value)
    with pytest.raises(UserError) as caught:
        rate("own-servr")
    assert "Did you mean 'own-server'?" in str(caught.value)
