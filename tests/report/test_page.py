from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from posology.report.page import write_page
from posology.report.page.content import FIRST_ROWS, RUNS_PER_BLOCK, SHOWN_DIFFERENCES, plain_text
from posology.report.page.curves import LINES, POINTS, curves, thinned
from posology.report.page.markers import COLOURS, METHOD_ORDER, SHAPES, backbones, methods
from posology.report.results import Configuration, Difference, Results, Run, Score, TaskResults
from tests.report.browser import Browser

VOID = {"meta", "input", "br", "hr", "link", "img"}
HOSTILE = "</script><b onclick=alert(1)>\"'&<!--"
SIZES = {"minilm": 22_713_216, "minilm:3": 17_389_824, "tiny": 4_000_000}


def run(method: str, value: float | None, trainable: int, backbone: str | None = "minilm", **other: Any) -> Run:
    seed = other.get("seed", 7)
    score = Score(None) if value is None else Score(value, value - 0.02, value + 0.02)
    defaults: dict[str, Any] = {
        "key": f"{method}-{backbone}-{value}-{seed}-{other.get('shots')}".replace(":", "_"), "studies": ("table 3",),
        "task": "triage", "kind": "sequence-classification", "metric": "macro_f1", "backbone": backbone,
        "backbone_parameters": SIZES.get(backbone or "", 0), "domain": "general", "method": method, "seed": seed,
        "shots": None, "max_seconds": None, "overrides": {"epochs": 2},
        "scores": {"macro_f1": score, "accuracy": Score(0.9)}, "validation": value,
        "per_label": {"urgent": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 40},
                      "other": {"precision": None, "recall": 0.0, "f1": None, "support": 4}},
        "curve": tuple({"step": 8.0 * n, "epoch": float(n), "seconds": 5.0 * n, "loss": 2.0 / n, "score": 0.1 * n}
                       for n in (1, 2, 3)),
        "trainable_parameters": trainable, "adapter_bytes": trainable * 4, "seconds": 40.0 + trainable / 1e6,
        "cost": 0.002, "currency": "EUR", "artifact": Path("/home/someone/ledger.runs/0"), "peak_memory": 500_000_000,
        "recipe": {"epochs": 2, "rank": 8, "targets": ["query", "value"]},
    }  # fmt: skip
    return Run(**(defaults | other))


def configuration(*runs: Run, name: str = "") -> Configuration:
    values = [run.score.value for run in runs if run.score.value is not None]
    if not values:
        return Configuration(name or runs[0].name, runs, None, None, Score(None))
    mean, score = statistics.mean(values), runs[0].score
    assert score.value is not None
    assert score.low is not None
    half = score.value - score.low
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Configuration(
        name or runs[0].name, runs, statistics.median(values), sd, Score(mean, mean - half, mean + half)
    )


def task(name: str, *configurations: Configuration, **other: Any) -> TaskResults:
    best = configurations[0].name
    differences = tuple(
        Difference(best, each.name, 0.01 * n, -0.002, 0.02 * n, 0.04, 0.02 if n == 3 else 0.4, f"{best} against {each.name}.")
        for n, each in enumerate(configurations[1:], start=1)
    )  # fmt: skip
    first = configurations[0].first
    return TaskResults(
        name, first.kind, first.metric, ("urgent", "other"), configurations, differences,
        (f"{best} scores highest.", "Nothing smaller is as good.", "Seven groups are few."),
        **({"best": best, "cheapest": best, "counts": {"train": 1200, "test": 300}} | other),
    )  # fmt: skip


def results() -> Results:
    triage = [
        configuration(run("full", 0.81, 22_713_216), run("full", 0.83, 22_713_216, seed=8)),
        configuration(run("lora", 0.80, 119_808)),
        configuration(run("lora", 0.79, 59_904, "minilm:3", cost=None, measures={"latency_p50_ms": 3.25})),
        configuration(run("head", 0.60, 1_925, "minilm:3")),
        configuration(run("tf-idf", None, 0, None), name="tf-idf"),
    ]
    ner = {"task": "findings", "kind": "token-classification", "metric": "entity_f1"}
    findings = [
        configuration(
            run(method, value, trainable, key=f"ner-{method}", scores={"entity_f1": Score(value, 0.5, 0.9)}, **ner)
        )
        for method, value, trainable in (("full", 0.75, 22_713_216), ("lora", 0.7, 119_808))
    ]
    return Results("Demo", (task("triage", *triage), task("findings", *findings)), ("Two cores.",))


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
    def words(self) -> str:
        """What a reader sees without scripts."""
        return " ".join(" ".join(text for tag, text in self.text if tag not in ("script", "style")).split())

    @property
    def json(self) -> list[Any]:
        return [json.loads(text) for tag, text in self.text if tag == "script" and text[:1] in "{["]


def written(tmp_path: Path, shown: Results) -> str:
    path = tmp_path / "report" / "index.html"
    assert write_page(path, shown) == path
    return path.read_text(encoding="utf-8")


def test_page_reads_without_scripts(tmp_path: Path) -> None:
    page = Page(written(tmp_path, results()))
    for words in (
        "8 runs, 7 configurations, 2 tasks", "full on minilm scores highest.", "Seven groups are few.", "Two cores.",
        "documents: train 1,200, test 300", "0.820 0.800–0.840 best smallest 22.7 M 90.9 MB 63 s 0.0020",
        "lora on minilm +1.0 -0.2 to +2.0 0.040 0.400 not shown", "head on minilm:3 +3.0 -0.2 to +6.0 0.040 0.020 shown",
    ):  # fmt: skip
        assert words in page.words
    assert len(page.having("th", scope="row")) == 7
    assert (tmp_path / "report" / "index.html").stat().st_mode & 0o077 == 0


def test_rows_and_cards_hold_every_run(tmp_path: Path) -> None:
    data, cards = Page(written(tmp_path, results())).json
    full, lora, small, _, none, *_ = data["rows"]
    assert full["score"] == [0.82, 0.8, 0.84]
    assert full["spread"] == "2 seeds: median 0.820, standard deviation 0.014"
    assert (full["first"], lora["first"]) == (0, 2)
    assert [len(row["keys"]) for row in data["rows"]] == [2, 1, 1, 1, 1, 1, 1]
    assert full["bar"] == [
        pytest.approx(5 + 90 * 0.24 / 0.26, abs=0.1),
        pytest.approx(5 + 90 * 0.22 / 0.26, abs=0.1),
        95,
    ]
    axes = [measure["axis"] for measure in data["measures"]]
    assert small["values"][axes.index("cost of training, EUR")] is None
    assert small["texts"][axes.index("latency of one document")] == "3.2 ms"
    assert (none["score"], none["bar"]) == ([None] * 3, [None] * 3)
    assert [card["seed"] for card in cards[:3]] == [7, 8, 7]
    assert cards[0]["scores"] == [[0.81, 0.79, 0.83], [0.9, None, None]]
    assert cards[0]["labels"] == [[0.5, 0.25, 0.3333, 40], [None, 0, None, 4]]
    assert cards[0]["curve"][1] == [10, 1, 0.2]
    assert cards[0]["overrides"] == {"epochs": "2"}
    assert dict(zip(data["asked"], cards[0]["asked"], strict=True))["recipe"] == "standard"
    assert data["recipe"] == {"epochs": "2", "rank": "8", "targets": "query, value"}
    assert cards[0]["recipe"] == {}
    assert data["tasks"][0]["metrics"] == ["macro-F1", "accuracy"]
    assert data["tasks"][0]["said"][0] == ["full on minilm", "lora on minilm", "full on minilm against lora on minilm."]


def test_page_refers_to_nothing_outside_and_its_policy_fits_it(tmp_path: Path) -> None:
    text = written(tmp_path, results())
    page = Page(text)
    outside = re.findall(r"https?://[^\s\"'<]*|\bsrc=|url\(|@import", text)
    assert outside == ["http://www.w3.org/2000/svg"]  # the name of a namespace
    assert all((attrs["href"] or "").startswith("#") for _, attrs in page.seen if "href" in attrs)
    assert "someone" not in text
    (policy,) = (
        attrs["content"] for attrs in page.having("meta") if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    # Inline style attributes and handlers would be blocked by it.
    assert not any(name == "style" or name.startswith("on") for _, attrs in page.seen for name in attrs)


def hostile() -> Results:
    bad = configuration(
        run("lora" + HOSTILE, 0.8, 10, "tiny" + HOSTILE, key="0" * 32, studies=(HOSTILE,), overrides={HOSTILE: HOSTILE},
            per_label={HOSTILE: {"f1": 0.5, "support": 1}}, shots=8, domain=HOSTILE),
        name=HOSTILE,
    )  # fmt: skip
    other = configuration(run("full", 0.7, 100))
    return Results(HOSTILE, (replace(task(HOSTILE, bad, other), sentences=(HOSTILE,)),), (HOSTILE,))


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    page = Page(written(tmp_path, hostile()))
    assert not any("onclick" in attrs for _, attrs in page.seen)
    assert len(page.having("script")) == 3
    data, cards = page.json
    assert data["rows"][0]["name"] == HOSTILE
    assert cards[0]["overrides"] == {HOSTILE: HOSTILE}
    assert ("title", HOSTILE + " · Posology") in page.text


@pytest.mark.parametrize(
    ("value", "text"),
    [("/home/someone/models/bert", "bert"), ("C:\\Users\\someone\\bert", "bert"), ("owner/bert", "owner/bert"),
     (0.0003, "0.0003"), (True, "True"), (None, "none"), (["query", "/home/someone"], "query, someone")],
)  # fmt: skip
def test_settings_do_not_name_folders(value: object, text: str) -> None:
    assert plain_text(value) == text


def test_undefined_scores_and_nothing_at_all(tmp_path: Path) -> None:
    undefined = configuration(
        run(
            "ia3",
            None,
            10,
            validation=None,
            per_label={},
            recipe={},
            curve=({"step": 1.0, "seconds": 1.0, "loss": math.nan},),
        )
    )
    shown = Results("None", (task("triage", undefined, best=None, cheapest=None),), ())
    data, cards = Page(written(tmp_path, shown)).json
    assert data["rows"][0]["score"] == [None, None, None]
    assert cards[0]["curve"] == [[1, None, None]]
    assert (cards[0]["scores"][0], cards[0]["validation"], "recipe" in cards[0]) == ([None] * 3, "–", False)
    assert "0 runs, 0 configurations, 0 tasks" in Page(written(tmp_path, Results("Empty", (), ()))).words


def test_many_runs_are_read_in_blocks(tmp_path: Path) -> None:
    count = 2 * RUNS_PER_BLOCK + 30
    many = [
        configuration(run("lora", 0.5 + n / 1000, n + 1, key=f"{n:032x}"), name=f"lora on minilm, rank={n}")
        for n in range(count, 0, -1)
    ]
    text = written(tmp_path, Results("Many", (task("triage", *many),), ()))
    page = Page(text)
    data, *blocks = page.json
    assert [len(block) for block in blocks] == [RUNS_PER_BLOCK, RUNS_PER_BLOCK, 30]
    assert len(data["rows"]) == count
    assert len(page.having("th", scope="row")) == FIRST_ROWS
    assert len(data["tasks"][0]["said"]) == count - 1
    assert f"{count - 1 - SHOWN_DIFFERENCES} more comparisons" in page.words
    assert sum(len(json.dumps(block)) for block in blocks) / count < 1400


def test_curves_over_shots_and_time() -> None:
    def few(method: str, shots: int | None, value: float, **other: Any) -> Configuration:
        return configuration(run(method, value, 100, shots=shots, **other), name=f"{method} {shots} {value}")

    made = [few("lora", None, 0.8), few("lora", 64, 0.7), few("lora", 16, 0.6), few("full", 16, 0.5),
            few("lora", 16, 0.55, overrides={"epochs": 9}), few("lora", 64, 0.65, overrides={"epochs": 9})]  # fmt: skip
    shots, during = curves(task("triage", *made))
    assert shots["title"] == "Score by labelled examples"
    assert [[point[0] for point in line["points"]] for line in shots["lines"]] == [[16, 64, None], [16, 64]]
    assert [line["name"] for line in shots["lines"]] == ["lora on minilm, epochs=2", "lora on minilm, epochs=9"]
    assert shots["lines"][0]["points"][0] == [16, 0.6, pytest.approx(0.58), pytest.approx(0.62), made[2].first.key]
    assert [line["name"] for line in during["lines"]] == ["lora on minilm", "full on minilm"]
    assert during["lines"][0]["points"][0] == [5.0, 0.1, None, None, made[0].first.key]
    timed = [configuration(run("full", 0.5, 1, max_seconds=limit, curve=())) for limit in (10.0, 60.0)]
    (budget,) = curves(task("triage", *timed))
    assert (budget["unit"], [point[0] for point in budget["lines"][0]["points"]]) == ("seconds", [10.0, 60.0])
    many = [configuration(run(f"m{n}", 0.5, 1)) for n in range(20)]
    assert len(curves(task("triage", *many))[0]["lines"]) == LINES


def test_thinned_curves_keep_both_ends() -> None:
    assert thinned(range(POINTS)) == list(range(POINTS))
    few = thinned(range(1000))
    assert (len(few), few[0], few[-1]) == (POINTS, 0, 999)
    assert max(b - a for a, b in itertools.pairwise(few)) <= 27


def test_every_method_has_its_own_colour_and_shape_wherever_it_appears() -> None:
    assert math.gcd(COLOURS, len(SHAPES)) == 1
    runs = [run(method, 0.8, 10) for method in (*METHOD_ORDER, "another", "vera")]
    runs += [run(method, 0.8, 10, None) for method in ("tf-idf", "dictionary")]
    looks = methods(runs)
    assert len(set(looks.values())) == len(runs)
    assert list(looks)[-2:] == ["dictionary", "tf-idf"]
    assert methods(runs[3:4])["head"] == looks["head"]
    assert backbones([run("lora", 0.8, 1, "tiny"), run("lora", 0.8, 1)]) == {
        "minilm": ("solid", SIZES["minilm"]), "tiny": ("hollow", SIZES["tiny"])}  # fmt: skip


COLUMN = "[...document.querySelectorAll('.board tbody tr')].map(row => row.cells[{}].textContent)"
SMALL = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture(scope="module", params=[360, 1280])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with Browser(width=request.param, scheme="dark" if request.param == 360 else "light") as started:
        yield started


def quiet(browser: Browser, path: Path) -> None:
    """No message, no error, no refusal, and no request but that for the page itself."""
    assert browser.complaints == []
    assert {address.split("#")[0] for address in browser.requests} == {path.resolve().as_uri()}


@pytest.mark.slow
def test_leaderboard_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    written(tmp_path, results())
    path = tmp_path / "report" / "index.html"
    browser.open(path)
    assert browser.evaluate(SMALL)
    browser.evaluate("document.querySelector('th[data-column=score] button').focus()")
    browser.press("Enter")
    assert browser.evaluate(COLUMN.format(3)) == ["0.820", "0.800", "0.790", "0.750", "0.700", "0.600", "–"]
    browser.press("Enter")
    assert browser.evaluate(COLUMN.format(3)) == ["0.600", "0.700", "0.750", "0.790", "0.800", "0.820", "–"]
    sorts = (
        "[...document.querySelectorAll('th')].map(th => th.getAttribute('aria-sort')).filter(v => v && v !== 'none')"
    )
    assert browser.evaluate(sorts) == ["ascending"]
    browser.evaluate("document.querySelector('th[data-column=backbone] button').click()")
    assert browser.evaluate(COLUMN.format(1))[:5] == ["minilm 22.7 M"] * 4 + ["minilm:3 17.4 M"]

    browser.evaluate(
        "form.elements.words.value = 'LORA minilm'; form.elements.task.value = '0';"
        "form.dispatchEvent(new Event('input'))"
    )
    assert browser.evaluate(COLUMN.format(3)) == ["0.800", "0.790"]
    assert browser.evaluate("document.querySelector('output').value") == "2 of 7 configurations"
    browser.evaluate("form.elements.backbone.value = '1'; form.dispatchEvent(new Event('input'))")
    assert browser.evaluate(COLUMN.format(3)) == ["0.790"]
    browser.evaluate("form.elements.words.value = 'nothing'; form.dispatchEvent(new Event('input'))")
    assert browser.evaluate(COLUMN.format(0)) == ["No configuration fits these filters."]
    browser.evaluate("document.querySelector('.filters [type=reset]').click()")
    assert browser.wait("document.querySelector('output').value === '7 configurations'")
    quiet(browser, path)


@pytest.mark.slow
def test_scripts_draw_the_rows_that_were_there_without_them(tmp_path: Path, browser: Browser) -> None:
    written(tmp_path, results())
    path = tmp_path / "report" / "index.html"
    rows = "document.querySelector('.board tbody').innerHTML"
    drawn = []
    for without in (True, False):
        browser.call("Emulation.setScriptExecutionDisabled", value=without)
        browser.open(path)
        drawn.append(re.sub(r"\s*(<|>)\s*", r"\1", browser.evaluate(rows)))
        assert browser.evaluate("document.querySelector('.filters').hidden") is without
        assert browser.evaluate(SMALL)
    assert "lora" in drawn[0]
    assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_charts_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    written(tmp_path, results())
    path = tmp_path / "report" / "index.html"
    browser.open(path)
    assert browser.wait("document.querySelectorAll('#task-0 .tradeoff .point').length === 4")
    assert browser.evaluate(SMALL)
    assert browser.evaluate("[...document.querySelector('.tradeoff select').options].map(o => o.text)") == [
        "trainable parameters", "size beside the backbone", "training time", "cost of training, EUR",
        "peak memory of training"]  # fmt: skip
    front = "document.querySelector('#task-0 .front').getAttribute('d').match(/H/g).length"
    assert browser.evaluate(front) == 4  # head, two lora, full, and on to the edge
    # The keyboard: one point is in the order of tabs, arrows go on, and Enter opens the card.
    tabs = "document.querySelectorAll('#task-0 .tradeoff .point[tabindex=\"0\"]').length"
    assert browser.evaluate(tabs) == 1
    browser.evaluate("document.querySelector('#task-0 .tradeoff .point[tabindex=\"0\"]').focus()")
    tip = "tip.hidden ? '' : tip.textContent"
    assert "head on minilm:3" in browser.evaluate(tip)
    browser.press("ArrowRight")
    assert browser.evaluate(tip).startswith("lora on minilm:3macro-F10.790 (0.770 to 0.810)")
    assert browser.evaluate(tabs) == 1
    assert browser.evaluate("(b => b.left >= 0 && b.right <= innerWidth)(tip.getBoundingClientRect())")
    browser.press("Escape")
    assert browser.evaluate(tip) == ""
    browser.press("Enter")
    assert browser.wait("card.open")
    assert browser.evaluate("document.querySelector('#card-name').textContent") == "lora on minilm:3"
    browser.press("Escape")
    assert browser.wait("!card.open && location.hash === ''")
    assert browser.wait("document.activeElement.matches('.point')")  # the focus is back where it was
    # The mouse.
    browser.hover("#task-0 .tradeoff .point .mark")
    assert browser.wait("tip.textContent.startsWith('head on minilm:3macro-F10.600 (0.580 to 0.620)')")
    # Another axis has only what was measured, and a legend lets the others fade.
    browser.evaluate(
        "s = document.querySelector('.tradeoff select'); s.value = '3'; s.dispatchEvent(new Event('change'))"
    )
    assert browser.evaluate("document.querySelectorAll('#task-0 .tradeoff .point').length") == 3
    browser.evaluate("[...document.querySelectorAll('.legend button')].find(b => b.textContent === 'lora').click()")
    assert browser.evaluate("document.querySelectorAll('#task-0 .tradeoff .point.away').length") == 2
    quiet(browser, path)


@pytest.mark.slow
def test_cards_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    written(tmp_path, results())
    path = tmp_path / "report" / "index.html"
    browser.open(path)
    browser.evaluate("document.querySelector('.board tbody tr:first-child td:last-child').click()")
    assert browser.wait("card.open")
    text = "card.innerText.replace(/\\s+/g, ' ')"
    for words in ("full on minilm", "2 seeds: median 0.820", "full on minilm against lora on minilm.", "table 3",
                  "macro-F1 on test 0.810 (0.790 to 0.830)", "Trainable parameters 22,713,216", "0.0020 EUR",
                  "urgent 0.500 0.250 0.333 40", "other – 0.000 – 4", "Not measured:"):  # fmt: skip
        assert words in browser.evaluate(text)
    assert browser.evaluate("card.scrollWidth <= card.clientWidth")
    assert browser.evaluate("document.querySelectorAll('.spark').length") == 2
    browser.evaluate("document.querySelectorAll('.seeds a')[1].click()")
    assert browser.wait(f"{text}.includes('macro-F1 on test 0.830')")
    browser.evaluate("[...document.querySelectorAll('.bar-top button')].find(b => b.textContent === 'Next').click()")
    assert browser.wait("document.querySelector('#card-name').textContent === 'lora on minilm'")
    browser.evaluate("document.querySelector('.close').click()")
    assert browser.wait("!card.open")
    # An address opens its card; another one opens nothing.
    browser.evaluate("location.hash = '#run-ner-full'")
    assert browser.wait("card.open && document.querySelector('.kicker').textContent === 'findings'")
    browser.evaluate("history.back()")
    assert browser.wait("!card.open")
    quiet(browser, path)


@pytest.mark.slow
def test_colours_follow_the_system_and_the_switch(tmp_path: Path, browser: Browser) -> None:
    written(tmp_path, results())
    path = tmp_path / "report" / "index.html"
    browser.open(path)
    paper = "getComputedStyle(document.body).backgroundColor"
    pressed = "theme.getAttribute('aria-pressed')"
    before, was = browser.evaluate(paper), browser.evaluate(pressed)
    browser.evaluate("theme.click()")
    assert {before, browser.evaluate(paper)} == {"rgb(255, 255, 255)", "rgb(17, 23, 28)"}
    assert {was, browser.evaluate(pressed)} == {"true", "false"}
    quiet(browser, path)


@pytest.mark.slow
def test_text_and_marks_stand_out(tmp_path: Path, browser: Browser) -> None:
    """WCAG 2.2 AA: 4.5:1 for text, 3:1 for the marks of charts."""
    written(tmp_path, results())
    browser.open(tmp_path / "report" / "index.html")
    assert browser.wait("document.querySelectorAll('.point').length > 4")
    assert browser.low_contrast() == []
    browser.evaluate("theme.click()")
    assert browser.low_contrast() == []


@pytest.mark.slow
def test_hostile_text_is_harmless_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    written(tmp_path, hostile())
    path = tmp_path / "report" / "index.html"
    browser.open(path)
    browser.evaluate("document.querySelector('.board tbody a').click()")
    assert browser.wait("card.open")
    assert browser.evaluate("document.querySelectorAll('b[onclick]').length") == 0
    assert browser.evaluate("document.querySelector('#card-name').textContent") == HOSTILE
    assert browser.evaluate(SMALL)
    quiet(browser, path)
