"""Tables: the paper's form and values, marks, and text that each format takes as text."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

from posology.report import published, tables
from posology.report.reading import read
from posology.report.results import Results
from posology.report.tables import Table
from tests.report.ledgers import prepared, run, write

PUBLISHED = {
    name: {"here": here, "paper": here, "difference": 0}
    for name, here in (("train", 33_954), ("evaluation", 9_822), ("classes", 2))
}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """The paper's mortality task on its own data, and a task of somebody's."""
    mortality = prepared(
        tmp_path / "mimic-mp", metric="auroc", source={"format": "mimic-iii"}, notes={"published": PUBLISHED}
    )
    own = prepared(tmp_path / "own", kind="token-classification", metric="entity_f1")
    measured = {"measures": {"prediction_tokens_per_second": 100_000 / 36}}  # 100 tokens a document: 1 h for 100,000
    runs = [
        *(run(mortality, "lora", right, backbone="biobert", seed=seed, seconds=3600, **measured)
          for seed, right in ((12, 0.80), (34, 0.85), (56, 0.90))),
        run(mortality, "full", 0.95, backbone="biobert", seconds=7200),
        run(mortality, "head", 0.96, backbone="tinybert"),
        run(mortality, "full", 0.99, backbone="minilm:3", shots=16),
        run(own, "lora", 0.9, backbone="minilm:3", overrides={"rank": 4, "learning_rate": 1e-3}, validation=0.5),
        run(own, "lora", 0.8, backbone="minilm:3", overrides={"rank": 8, "learning_rate": 2e-3}, validation=0.6),
        run(own, "dictionary", 0.6, backbone=None),
    ]  # fmt: skip
    return read(write(tmp_path / "l.db", runs))


def row(table: Table, *first: str) -> dict[str, str]:
    (found,) = (each for each in table.rows if each[: len(first)] == first)
    return dict(zip(table.columns, found, strict=True))


def test_table_3_has_medians_marks_and_the_papers_values_of_the_same_task(results: Results) -> None:
    table = published.scores(results)
    assert table.columns == ("Model", "Method", "mimic-mp (AUROC)", "Paper", "own (entity F1)")
    lora = row(table, "biobert", "LoRA")
    # Two classes of equal size, answers of one confidence: AUROC is about the share that is right.
    values = sorted(
        run.scores["auroc"].value
        for each in results.tasks[0].configurations if each.name == "lora on biobert" for run in each.runs
    )  # fmt: skip
    sd = (sum((value - sum(values) / 3) ** 2 for value in values) / 2) ** 0.5
    assert lora["mimic-mp (AUROC)"] == f"{values[1]:.3f} ({sd:.3f})"
    assert lora["Paper"] == "0.828 (0.002)"
    assert row(table, "biobert", "Full")["Paper"] == "0.819 (0.020)"
    assert row(table, "tinybert", "head")["Paper"] == "–"
    assert not [
        each for each in table.rows if each[0] == "minilm:3" and each[1] == "Full"
    ]  # few shots are not whole data
    # of several recipes that which validation chose, though the other is better on test
    assert row(table, "minilm:3", "LoRA")["own (entity F1)"] == "0.800"
    marks = {(table.rows[line][:2], table.columns[column]): mark for (line, column), mark in table.marks.items()}
    assert marks == {
        (("tinybert", "head"), "mimic-mp (AUROC)"): "best",
        (("biobert", "LoRA"), "mimic-mp (AUROC)"): "peft",  # neither full nor head
        (("minilm:3", "LoRA"), "own (entity F1)"): "both",
    }
    assert [each[0] for each in table.rows] == ["biobert", "biobert", "minilm:3", "tinybert", "no language model"]


def test_the_papers_values_stand_beside_no_other_data(tmp_path: Path) -> None:
    task = prepared(tmp_path / "mimic-mp", metric="auroc", source={"format": "mimic-iii", "synthetic": True},
                    notes={"published": PUBLISHED})  # fmt: skip
    found = read(write(tmp_path / "l.db", [run(task, "lora", 0.8, backbone="biobert")]))
    for table in (published.scores(found), published.domains(found), published.costs(found), published.datasets(found)):
        assert "0.828" not in tables.markdown(table)
        assert "Paper" not in table.columns
    assert "none of these is one of its tasks" in published.scores(found).notes[1]
    assert row(published.datasets(found), "mimic-mp")["Paper: train"] == "–"


def test_table_2_counts_documents(results: Results) -> None:
    first = row(published.datasets(results), "mimic-mp")
    assert (first["Source"], first["Train"], first["Test"], first["Paper: train"]) == (
        "mimic-iii",
        "8",
        "120",
        "33,954",
    )


def test_table_4_is_hours_and_money(results: Results) -> None:
    table = published.costs(results)
    lora = row(table, "mimic-mp", "biobert", "LoRA")
    rate = results.tasks[0].configurations[0].first.cost / results.tasks[0].configurations[0].first.seconds * 3600  # type: ignore[operator]
    assert (lora["Training (h)"], lora["Inference of 100,000 documents (h)"]) == ("1.00", "1.00")
    assert (lora["Training (GBP)"], lora["Total (GBP)"]) == (f"{rate:.2f}", f"{2 * rate:.2f}")
    assert (lora["Paper: training (h)"], lora["Paper: total (GBP)"]) == ("2.16", "4.84")
    full = row(table, "mimic-mp", "biobert", "Full")
    assert (full["Training (h)"], full["Inference of 100,000 documents (h)"], full["Total (GBP)"]) == ("2.00", "–", "–")


def test_table_c5_lists_what_was_used_beside_the_papers_values(results: Results) -> None:
    table = published.hyper_parameters(results)
    assert row(table, "LoRA", "rank") == {
        "Method": "LoRA", "Hyper-parameter": "rank", "Value": "4; 8", "Paper": "8"}  # fmt: skip
    assert row(table, "LoRA", "learning_rate")["Paper"] == "3e-4"


def test_many_values_are_a_range() -> None:
    assert published._listed("learning_rate", [1e-5 * n for n in range(1, 9)]) == "1e-05 to 8e-05 (8 values)"
    assert published._listed("top_layers", [None, 2]) == "all; 2"


def test_table_c6_has_domains(results: Results) -> None:
    table = published.domains(results)
    assert row(table, "biobert", "biomedical", "LoRA")["Paper"] == "0.828"
    assert row(table, "biobert", "biomedical", "Full")["Paper"] == "0.812"
    assert "No backbone of the clinical domain was run." in table.notes[1]


def test_table_1_is_the_papers() -> None:
    table = published.architectures()
    assert [each[0] for each in table.rows][:2] == ["Tiny-BERT", "Mobile-BERT"]
    for each in table.rows:
        assert each[1] == each[2]  # parameters in millions


def test_the_leaderboard_says_what_stands_beside_the_best(results: Results) -> None:
    table = tables.leaderboard(results)
    own = [dict(zip(table.columns, each, strict=True)) for each in table.rows if each[0] == "own"]
    assert [each["Configuration"] for each in own] == [
        "lora on minilm:3, rank=4", "lora on minilm:3, rank=8", "dictionary"]  # fmt: skip
    assert [each["Beside the best"] for each in own][::2] == ["best", "worse"]
    assert own[0]["Score"] == "0.900"
    (best,) = (mark for (line, _), mark in table.marks.items() if table.rows[line][2] == "lora on minilm:3, rank=4")
    assert best == "both"
    comparisons = tables.comparisons(results)
    assert row(comparisons, "own", "lora on minilm:3, rank=4", "dictionary")["Difference"] == "0.300"


HOSTILE = r"a_b & 50% $x$ #1 {y} ~z^ \cmd | *s* <i> [o] `c`"


@pytest.fixture
def hostile() -> Table:
    return Table(
        "odd", HOSTILE, ("Name", HOSTILE), (("[x] plain", "1.5"), (HOSTILE, "–")), {(0, 1): "both"}, (HOSTILE,)
    )


def test_markdown_keeps_text_as_text(hostile: Table) -> None:
    text = tables.markdown(hostile)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}
    assert r"a\_b & 50% $x$ #1 {y} ~z^ \\cmd \| \*s\* \<i\> \[o\] \`c\`" in text
    assert lines[2].endswith("| <u>**1.5**</u> |")
    assert lines[1] == "| --- | --: |"


def test_latex_keeps_text_as_text(hostile: Table) -> None:
    text = tables.latex(hostile)
    body = text[text.index(r"\toprule") : text.index(r"\end{longtable}")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {1}
    assert r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{}z\textasciicircum{} \textbackslash{}cmd" in text
    assert r"\underline{\textbf{1.5}}" in text
    assert "\n{[}x{]} plain" in text  # else it would be the optional argument of the line break before it
    escaped = re.sub(r"\\[{}]", "", text)
    assert escaped.count("{") == escaped.count("}")
    assert text.count(r"\begin{longtable}{lr}") == text.count(r"\end{longtable}") == 1
    assert text.isascii()
    document = tables.latex_document([hostile])
    assert r"\usepackage{booktabs,longtable}" in document
    assert r"\input{odd.tex}" in document


def test_csv_reads_back(hostile: Table) -> None:
    rows = list(csv.reader(io.StringIO(tables.as_csv(hostile))))
    assert rows == [["Name", HOSTILE], ["[x] plain", "1.5"], [HOSTILE, ""]]


def test_every_table_has_its_columns_in_every_form(results: Results, tmp_path: Path) -> None:
    written = tables.write_tables(results, tmp_path)
    assert len(written) == 3 * 8 + 1
    for table in tables.all_tables(results):
        text = (tmp_path / f"{table.name}.tex").read_text(encoding="utf-8")
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        for line in (line for line in body.splitlines() if line.endswith(r"\\")):
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.columns) - 1
    with pytest.raises(ValueError, match="a row of 1 cells under 2 headings"):
        Table("t", "t", ("a", "b"), (("x",),))


def test_numbers_as_text() -> None:
    from posology.report import text

    cases: list[tuple[Any, str]] = [
        (text.money_text(12.3, "EUR"), "12.30 EUR"), (text.money_text(0.00042, "EUR"), "0.00042 EUR"),
        (text.money_text(None, "EUR"), "–"), (text.money_text(0.0, "EUR"), "0.00 EUR"),
        (text.figures_text(0.0094), "0.0094"), (text.points_text(-0.0081), "-0.8"), (text.points_text(0.0161), "+1.6"),
        (text.points_text(-0.0001), "0.0"), (text.count_text(999.6), "1 k"), (text.count_text(22_713_216), "22.7 M"),
        (text.bytes_text(210_000), "210 kB"), (text.bytes_text(None), "–"), (text.duration_text(9.96), "10 s"),
        (text.duration_text(725), "12 min 5 s"), (text.duration_text(float("nan")), "–"),
        (text.flops_text(1.2e12), "1.2 TFLOP"), (text.metric_label("auroc"), "AUROC"),
        (text.score_text(results_score(0.8123, 0.7741, 0.8462)), "0.812 (0.774 to 0.846)"),
        (text.score_text(results_score(None)), "–"), (text.score_text(results_score(0.5)), "0.500"),
        (text.decimal_text(1234.54), "1,234.5"), (text.decimal_text(None), "–"),
    ]  # fmt: skip
    for found, wanted in cases:
        assert found == wanted


def results_score(*values: float | None) -> Any:
    from posology.report.results import Score

    return Score(*values)
