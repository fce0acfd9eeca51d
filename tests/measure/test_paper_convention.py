"""The paper's Table 1 from configurations, to the last printed digit."""

from __future__ import annotations

import time

import pytest

from posology.catalog import paper_table
from posology.measure.paper_convention import table1


def _places(text: str) -> int:
    return len(text.partition(".")[2])


def test_every_figure_of_the_papers_table_1_follows_from_configurations() -> None:
    begin = time.process_time()
    rows = table1()
    assert time.process_time() - begin < 30
    printed = paper_table("table1_models")
    assert len(rows) == len(printed) == 6
    for row, paper in zip(rows, printed, strict=True):
        assert row["architecture"] == paper["architecture"]
        millions, vram = paper["params_million"], paper["vram_gb"]
        assert f"{row['parameters'] / 1e6:.{_places(millions)}f}" == millions
        assert f"{row['vram_with_buffers']:.{_places(vram)}f}" == vram, row
        assert float(f"{row['flops']:.2e}") == float(paper["flops"])
        assert row["paper"] == {
            "parameters": pytest.approx(float(millions) * 1e6),
            "vram": float(vram),
            "flops": float(paper["flops"]),
        }


def test_only_one_row_needs_more_than_its_weights() -> None:
    rows = {row["architecture"]: row for row in table1()}
    (other,) = [name for name, row in rows.items() if row["vram"] != row["vram_with_buffers"]]
    assert f"{rows[other]['vram']:.2f}" == "12.31" and "12.31" in rows[other]["note"]
