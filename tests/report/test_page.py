from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from posology.report.chart import METHOD_ORDER, Markers, chart
from posology.report.page import RunRow, comparison_table, write_page
from posology.report.runs import bytes_text, compare, count_text, duration_text, headline
from tests.report.browser import Browser

VOID = {"meta", "input", "br", "hr", "link", "img"}
HOSTILE = "</script><b onclick=alert(1)>\"'&"


def row(method: str, value: float, trainable: int, *, backbone: str = "minilm", half: float = 0.02, **other) -> RunRow:
    defaults = {"task": "triage", "kind": "sequence-classification", "backbone_parameters": 22_713_216,
                "metric": "macro_f1", "adapter_bytes": trainable * 4, "seconds": 40.0, "examples_per_second": 20.0,
                "seed": 7, "coverage": 1.0}  # fmt: skip
    return RunRow(method=method, backbone=backbone, value=value, low=value - half, high=value + half,
                  trainable_parameters=trainable, **(defaults | other))  # fmt: skip


def runs() -> list[RunRow]:
    small = {"backbone": "minilm:3", "backbone_parameters": 17_389_824}
    triage = [
        row("full", 0.81, 22_713_216),
        row("lora", 0.80, 119_808),
        row("lora", 0.79, 59_904, adapter_bytes=210_000, **small),
        row("head", 0.60, 1_925, **small),
    ]
    findings = [
        replace(run, task="findings", kind="token-classification", metric="entity_f1", value=run.value - 0.1,
                low=run.low - 0.1, high=run.high - 0.1, extra={"device": "cpu"})
        for run in triage
    ]  # fmt: skip
    return triage + findings


class Page(HTMLParser):
    """Checks on the way that every tag that opens is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.text.append((self.stack[-1] if self.stack else "", data))

    def having(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.seen if name == tag and wanted.items() <= attrs.items()]

    @property
    def data(self) -> dict:
        assert len(self.having("script", type="application/json")) == 1
        return json.loads(next(text for tag, text in self.text if tag == "script" and text.startswith("{")))


def written(tmp_path: Path, rows: list[RunRow], notes: tuple[str, ...] = (), title: str = "Demo") -> str:
    path = tmp_path / "report" / "index.html"
    assert write_page(path, title, rows, list(notes)) == path
    return path.read_text(encoding="utf-8")


def test_page_shows_every_run_in_table_chart_and_data(tmp_path: Path) -> None:
    page = Page(written(tmp_path, runs(), ("Two cores.",)))
    points = [attrs["data-run"] for _, attrs in page.seen if (attrs.get("class") or "").startswith("point ")]
    assert len(page.having("tr")) == 1 + 8
    assert sorted(points) == [str(number) for number in range(8)]
    assert all(
        attrs.get("tabindex") == "0" for _, attrs in page.seen if (attrs.get("class") or "").startswith("point ")
    )
    assert [(run["task"], run["method"], run["value"]) for run in page.data["runs"][:2]] == [
        ("triage", "full", 0.81), ("triage", "lora", 0.8)]  # fmt: skip
    assert len([1 for tag, text in page.text if tag == "td" and text == "22,713,216"]) == 2
    assert any("Two cores." in text for _, text in page.text)
    assert (tmp_path / "report" / "index.html").stat().st_mode & 0o077 == 0


def test_page_marks_best_and_best_efficient_run_of_each_task(tmp_path: Path) -> None:
    page = Page(written(tmp_path, runs()))
    scores = [attrs["class"] for attrs in page.having("td") if "score" in (attrs.get("class") or "").split()]
    assert [("best" in value, "efficient" in value) for value in scores] == [
        (True, False), (False, True), (False, False), (False, False)] * 2  # fmt: skip


def test_page_refers_to_nothing_outside_and_its_policy_fits_it(tmp_path: Path) -> None:
    text = written(tmp_path, runs())
    page = Page(text)
    assert not re.search(r"https?://|//[a-z]+\.|\bsrc=|\bhref=|url\(|@import", text)
    (policy,) = (
        attrs["content"] for attrs in page.having("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    # Inline style attributes and handlers would be blocked by it.
    assert not any(name == "style" or name.startswith("on") for _, attrs in page.seen for name in attrs)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    hostile = [
        replace(
            run, task=HOSTILE, backbone=HOSTILE + run.backbone, method=HOSTILE + run.method, extra={HOSTILE: HOSTILE}
        )
        for run in runs()[:4]
    ]
    page = Page(written(tmp_path, hostile, (HOSTILE,), title=HOSTILE))
    assert not any("onclick" in attrs for _, attrs in page.seen)
    assert len(page.having("script")) == 2
    assert page.data["runs"][0]["extra"] == {HOSTILE: HOSTILE}
    assert ("title", HOSTILE + " · Posology") in page.text
    assert "[bold]" in comparison_table([replace(runs()[0], method="[bold]")])


def test_undefined_scores_and_one_run(tmp_path: Path) -> None:
    undefined = replace(
        runs()[0], value=math.nan, low=math.nan, high=math.nan, method="ia3", examples_per_second=math.nan
    )
    page = Page(written(tmp_path, [undefined, runs()[0]]))
    assert page.data["runs"][1]["value"] is None
    assert "NaN" not in "".join(text for tag, text in page.text if tag == "script" and text.startswith("{"))
    assert not any(text.strip() == "nan" for _, text in page.text)
    (comparison,) = compare([undefined])
    assert comparison.best is None
    assert comparison.cheapest is None
    assert headline(comparison) == ["No run has a defined macro-F1, so there is nothing to compare."]
    assert len(Page(written(tmp_path, [undefined])).having("figure")) == 0
    (comparison,) = compare(runs()[:1])
    assert headline(comparison)[1].startswith("It is the only run")
    with pytest.raises(ValueError, match="at least one run"):
        write_page(tmp_path / "none.html", "Nothing", [], [])


def test_headline_names_the_cheapest_run_inside_the_noise() -> None:
    triage, findings = compare(runs())
    assert (triage.best, triage.cheapest) == (runs()[0], runs()[2])
    assert headline(triage) == [
        "full on minilm scores highest, with macro-F1 0.810 (0.790 to 0.830), 22.7 M trainable parameters and 40 s of training.",
        "lora on minilm:3 (59.9 k trainable parameters, 210 kB) is not distinguishable from the best, at 0.790 "
        "(0.770 to 0.810), and trains 379 times fewer parameters.",
        "1 of 4 runs is clearly lower than the best.",
    ]
    assert headline(findings)[0].startswith("full on minilm scores highest, with entity F1 0.710")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row("full", 0.9, 10**7), row("lora", 0.8, 10**5), row("head", 0.7, 10**3)],
         "It is clearly ahead of every other run; the next, lora on minilm, reaches 0.800 (0.780 to 0.820)."),
        ([row("full", 0.79, 10**7), row("lora", 0.80, 10**5), row("head", 0.7, 10**3)], "Every cheaper run is clearly lower."),
        ([row("full", 0.79, 10**7), row("lora", 0.80, 10**5), row("ia3", 0.7, 10**6)], "It is also the cheapest run."),
        ([row("full", 0.79, 10**7), row("lora", 0.80, 10**5)],
         "The intervals of all 2 runs overlap that of the best: this test set cannot rank them."),
    ],
)  # fmt: skip
def test_headline_of_other_outcomes(rows: list[RunRow], sentence: str) -> None:
    (comparison,) = compare(rows)
    assert sentence in headline(comparison)


def test_intervals_that_only_touch_count_as_overlapping_and_equals_go_to_the_cheaper() -> None:
    touching = [row("full", 0.75, 100, half=0.25), row("lora", 0.25, 10, half=0.25), row("ia3", 0.24, 5, half=0.25)]
    (comparison,) = compare(touching)
    assert comparison.cheapest is touching[1]
    equal = [row("full", 0.8, 100), row("lora", 0.8, 10)]
    assert compare(equal)[0].best is equal[1]


def test_seeds_are_named_where_there_are_several() -> None:
    (comparison,) = compare([row("lora", 0.8, 100, seed=1), row("lora", 0.81, 100, seed=2), row("ia3", 0.5, 10)])
    assert headline(comparison)[0].startswith("lora on minilm with seed 2 scores highest")


def test_chart_places_points_on_their_axes() -> None:
    rows = [row("head", 0.6, 0), row("lora", 0.8, 10**4), row("full", 0.9, 10**8)]
    (comparison,) = compare(rows)
    drawn = chart(comparison, Markers(rows), range(3))
    assert drawn is not None
    x, y = [point.x for point in drawn.points], [point.y for point in drawn.points]
    assert [point.run.method for point in drawn.points] == ["head", "lora", "full"]
    assert x[1] == pytest.approx((x[0] + x[2]) / 2)
    assert (y[0] - y[1]) / (y[1] - y[2]) == pytest.approx(2)
    assert all(0 <= position <= 100 for position in x)
    assert all(point.top < point.y < point.bottom for point in drawn.points)
    assert dict((text, position) for position, text in drawn.x_ticks)["10 k"] == pytest.approx(x[1])
    ticks = {text: position for position, text in drawn.y_ticks}
    assert y[1] == pytest.approx(ticks["0.8"])


def test_chart_survives_equal_scores_and_sets_equal_costs_apart() -> None:
    rows = [row("lora", 0.8, 1000, half=0.0, seed=seed) for seed in range(3)]
    (comparison,) = compare(rows)
    drawn = chart(comparison, Markers(rows), range(3))
    assert drawn is not None
    assert len({point.dx for point in drawn.points}) == 3
    assert sum(point.dx for point in drawn.points) == pytest.approx(0)
    assert len(drawn.y_ticks) >= 2


def test_every_method_has_its_own_colour_and_shape_wherever_it_appears() -> None:
    rows = [row(method, 0.8, 10) for method in (*METHOD_ORDER, "another", "vera")]
    markers = Markers(rows)
    looks = {(markers(run.method, "minilm").colour, markers(run.method, "minilm").shape) for run in rows}
    assert len(looks) == len(rows)
    assert Markers(rows[3:4])("head", "minilm") == markers("head", "minilm")
    both = Markers([row("lora", 0.8, 1, backbone="small", backbone_parameters=5), row("lora", 0.8, 1)])
    assert both.backbones == {"minilm": "solid", "small": "hollow"}


def test_comparison_table_is_plain_text_with_every_run() -> None:
    text = comparison_table(runs())
    assert "\x1b" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["*", "full", "minilm", "0.810", "(0.790", "to", "0.830)", "22,713,216", "40.0", "90.9", "MB"] in lines
    assert ["=", "lora", "minilm:3", "0.790", "(0.770", "to", "0.810)", "59,904", "40.0", "210", "kB"] in lines
    assert ["head", "minilm:3", "0.600", "(0.580", "to", "0.620)", "1,925", "40.0", "7.7", "kB"] in lines
    assert sum("head" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count_text(0), "0"), (count_text(999), "999"), (count_text(999.6), "1 k"), (count_text(1000), "1 k"),
        (count_text(59_904), "59.9 k"), (count_text(999_600), "1 M"), (count_text(6_738_415_616), "6.74 G"),
        (bytes_text(209_700), "210 kB"), (bytes_text(90_852_864), "90.9 MB"), (bytes_text(12), "12 bytes"),
        (duration_text(8.24), "8.2 s"), (duration_text(75), "75 s"), (duration_text(725), "12 min 5 s"),
        (duration_text(12_000), "3 h 20 min"), (duration_text(math.nan), "–"),
    ],
)  # fmt: skip
def test_numbers_in_words(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_page_in_a_browser(tmp_path: Path, width: int) -> None:
    written(tmp_path, runs())
    path = tmp_path / "report" / "index.html"
    column = "[...document.querySelectorAll('tbody tr:not([hidden])')].map(row => row.cells[4].textContent)"
    with Browser(width=width) as browser:
        browser.open(path)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.evaluate("document.querySelector('th[data-key=trainable_parameters] button').focus()")
        browser.press("Enter")
        assert browser.evaluate(column) == ["22,713,216"] * 2 + ["119,808"] * 2 + ["59,904"] * 2 + ["1,925"] * 2
        browser.press("Enter")
        assert browser.evaluate(column)[0] == "1,925"
        sorts = "[...document.querySelectorAll('th')].map(th => th.getAttribute('aria-sort')).filter(v => v !== 'none')"
        assert browser.evaluate(sorts) == ["ascending"]

        browser.evaluate(
            "document.querySelector('[name=words]').value = 'LORA minilm:3';"
            "document.querySelector('[name=task]').value = 'triage';"
            "document.querySelector('.filters').dispatchEvent(new Event('input'))"
        )
        assert browser.evaluate(column) == ["59,904"]
        assert browser.evaluate("document.querySelector('output').value") == "1 of 8 runs"
        assert browser.evaluate("document.querySelectorAll('.point.away').length") == 7

        browser.evaluate("document.querySelector('.point:not(.away)').focus()")
        tip = browser.evaluate(
            "document.querySelector('.tip').hidden ? '' : document.querySelector('.tip').textContent"
        )
        assert tip.startswith("lora on minilm:3")
        assert "0.790 (0.770 to 0.810)" in tip
        assert browser.evaluate(
            "(box => box.left >= 0 && box.right <= innerWidth)(document.querySelector('.tip').getBoundingClientRect())"
        )
        assert browser.complaints == []
        assert browser.requests == [path.resolve().as_uri()]
