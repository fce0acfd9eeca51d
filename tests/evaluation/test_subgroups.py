from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from posology.errors import UserError
from posology.evaluation.metrics import ClassificationScores, EntityScores, classification_metrics
from posology.evaluation.statistics import classification_intervals, entity_intervals
from posology.evaluation.subgroups import NOT_GIVEN, SMALL, by_column, read_column
from tests.evaluation.generated import classified, found_entities, names


def test_each_value_is_scored_as_if_it_were_all_there_is() -> None:
    gold, probabilities = classified(120, 3)
    patient = np.arange(120) // 2
    values = [["f", "m", None][each % 3 if each < 60 else 0] for each in range(120)]
    result = by_column(ClassificationScores(gold, probabilities), values, names(patient))
    assert list(result) == ["f", "m", NOT_GIVEN]
    for value, found in result.items():
        rows = np.array([(each or NOT_GIVEN) == value for each in values])
        groups = names(patient[rows])
        assert found["documents"] == rows.sum()
        assert found["groups"] == len(set(groups))
        assert found["small"] == (len(set(groups)) < SMALL)
        expected = classification_intervals(gold[rows], probabilities[rows], groups)
        assert {name: found[name] for name in expected} == expected
        assert found["macro_f1"]["value"] == classification_metrics(gold[rows], probabilities[rows])["macro_f1"]
    assert not result["f"]["small"]
    assert result["m"]["small"]


def test_entities_by_value() -> None:
    counts = found_entities(50)
    counts[:10, :, 0] = 0
    values = ["new"] * 10 + ["old"] * 40
    groups = names(np.arange(50))
    result = by_column(EntityScores(counts), values, groups)
    assert result["new"]["entity_f1"]["value"] == 0.0
    assert (result["new"]["small"], result["old"]["small"]) == (True, False)
    assert result["old"]["entity_f1"] == entity_intervals(counts[10:], groups[10:])["entity_f1"]


def test_too_many_values_and_lengths_that_do_not_fit_are_refused() -> None:
    scores = EntityScores(found_entities(60))
    groups = names(np.arange(60))
    with pytest.raises(UserError, match="60 values are too many"):
        by_column(scores, groups, groups)
    with pytest.raises(ValueError, match="59 values and 60 groups were given for 60 documents"):
        by_column(scores, groups[1:], groups)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("key", ["id", "group"])
def test_a_table_is_joined_by_document_or_by_patient(tmp_path: Path, suffix: str, key: str) -> None:
    frame = pl.DataFrame({key: ["3", "1", "9"], "sex": ["f", None, "m"], "year": [2011, 2012, 2013]})
    path = tmp_path / f"table.{suffix}"
    write = {"csv": frame.write_csv, "parquet": frame.write_parquet, "jsonl": frame.write_ndjson}[suffix]
    write(path)
    mine, other = ["1", "2", "3"], ["x", "y", "z"]
    ids, groups = (mine, other) if key == "id" else (other, mine)
    assert read_column(path, "sex", ids, groups) == [None, None, "f"]
    assert read_column(path, "year", ids, groups) == ["2012", None, "2011"]


def test_a_table_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    ids = ["a", "b"]
    with pytest.raises(UserError, match="no such file"):
        read_column(path, "sex", ids, ids)
    with pytest.raises(UserError, match="is no table"):
        read_column(tmp_path / "table.xlsx", "sex", ids, ids)
    path.write_text("id,age\na,3\n")
    with pytest.raises(UserError, match=r"has no column 'sex' .but id, age.*--table"):
        read_column(path, "sex", ids, ids)
    path.write_text("patient,sex\na,f\n")
    with pytest.raises(UserError, match="neither of the columns id and group"):
        read_column(path, "sex", ids, ids)
    path.write_text("id,sex\nc,f\n")
    with pytest.raises(UserError, match="names none of the 2 documents"):
        read_column(path, "sex", ids, ids)
    path.write_text("group,sex\na,f\nb,m\na,m\n")
    with pytest.raises(UserError, match="something else of the same group") as error:
        read_column(path, "sex", ids, ids)
    assert "4" in str(error.value)  # the line, and no value of the table
