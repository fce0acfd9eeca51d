from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import posology
from posology.ship.serve.page import POLICY, files
from posology.tasks.prepared import PreparedTask
from tests.report.browser import Browser
from tests.ship.serve.pages import READ, awaited, check_quiet, choose, click, of, press_run, run, show, visible, write
from tests.ship.serve.standin import MODELS, Fault, StandIn, classify, redact, spans_of

NOTE = "Mr. Corell Garenby came on 2116-07-07 with fever and chronic kidney disease; lisinopril was held. Call (610) 373-5889."
FACES = "👩‍⚕️ Zoë 🙂🙂 has 𝒳 fever since 2116-07-07 🙂, chronic kidney disease. 𝒳"
HOSTILE = '<img src=x onerror="console.error(1)"><b>fever</b> & </textarea><script>console.error(2)</script> 2116-07-07'


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as one:
        yield one


@pytest.fixture(scope="module")
def shared() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.fixture
def page(shared: Browser, server: StandIn) -> Iterator[Browser]:
    """The page with its models listed. Whatever a test does: nothing is asked of others, logged or stored."""
    show(shared, server)
    yield shared
    check_quiet(shared, server)


def named(name: str) -> dict[str, Any]:
    return next(model for model in MODELS if model["name"] == name)


# ---- the files ----


def test_files_are_what_the_page_names() -> None:
    found = files()
    assert found["/"].content_type == "text/html; charset=utf-8"
    html = found["/"].content.decode()
    wanted = set(re.findall(r'(?:src|href)="([^"#]+)"', html)) - {"openapi.json"}
    for name, file in found.items():
        if name.endswith(".js"):
            wanted |= set(re.findall(r'from "\./([^"]+)"', file.content.decode()))
    assert {f"/{name}" for name in wanted} == set(found) - {"/"}
    assert len({file.etag for file in found.values()}) == len(found)
    assert all(re.fullmatch(r'"[0-9a-f]{32}"', file.etag) for file in found.values())


def test_nothing_is_inline_or_from_outside() -> None:
    for name, file in files().items():
        text = file.content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|innerHTML|insertAdjacentHTML|document\.write|eval\(", text), (
            name
        )
        assert not re.search(r"localStorage|sessionStorage|indexedDB|document\.cookie", text), name
    html = files()["/"].content.decode()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]* src=)", html)
    assert "'unsafe" not in POLICY and "'none'" in POLICY


# ---- the main job ----


def test_a_note_is_typed_and_read(page: Browser, server: StandIn) -> None:
    assert visible(page, "#empty")
    run(page, NOTE)
    assert not visible(page, "#empty")
    document = {"id": "1", "text": NOTE}
    for number, name in enumerate(("triage", "specialty")):
        expected = classify(named(name), document)
        card = f"#labels .card:nth-of-type({number + 1}) "
        assert of(page, card + ".verdict > *") == [expected["label"], f"{100 * expected['score']:.1f} %"]
        ranked = sorted(expected["probabilities"].items(), key=lambda pair: (-pair[1], pair[0]))
        assert of(page, card + ".bars .name") == [label for label, _ in ranked]
        assert of(page, card + ".bars .share") == [f"{100 * share:.1f} %" for _, share in ranked]
    widths = page.evaluate(
        "[...document.querySelectorAll('#labels .card:first-of-type .fill')].map(f => f.offsetWidth / f.parentNode.offsetWidth)"
    )
    assert widths == pytest.approx(
        sorted(classify(named("triage"), document)["probabilities"].values())[::-1], abs=0.02
    )
    assert "from 30.0 % on" in of(page, "#labels .remark")[0] and "1.42" in of(page, "#labels .remark")[0]
    found = [one for name in ("findings", "organs", "deid") for one in spans_of(name, NOTE)]
    chips = sorted(re.match(r"\xa0(\S+)\xa0(\S+)", chip).groups() for chip in of(page, "#entities .chip"))  # type: ignore[union-attr]
    assert chips == sorted((span["label"], f"{span['score']:.2f}") for span in found)
    assert page.evaluate(READ + "('#entities .reading')") == NOTE
    assert of(page, "#redacted .reading") == [redact(document, "deid", "tags")["text"]]
    assert of(page, "#redacted .types .count") == ["1", "1", "1"]
    assert {path for path, _ in server.asked} == {"/v1/models", "/v1/classify", "/v1/entities", "/v1/redact"}
    assert f"{len(found)} entities" in of(page, "#status")[0]


def test_offsets_are_code_points(page: Browser) -> None:
    run(page, FACES)
    assert page.evaluate(READ + "('#entities .reading')") == FACES
    rows = page.evaluate(
        "[...document.querySelectorAll('#entities tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    got = sorted((words, label, place, model) for words, label, _, place, model in rows)
    expected = sorted(
        (FACES[span["start"] : span["end"]], span["label"], f"{span['start']}–{span['end']}", name)
        for name in ("findings", "organs", "deid")
        for span in spans_of(name, FACES)
    )
    assert got == expected and any(words == "Zoë" for words, *_ in got)
    for style in ("surrogates", "asterisks", "tags"):
        click(page, f"input[value={style}]")
        assert page.wait(f"document.querySelector('#status').textContent.includes('by {style}')")
        assert of(page, "#redacted .reading") == [redact({"id": "1", "text": FACES}, "deid", style)["text"]]
        assert len(of(page, "#redacted mark")) == len(spans_of("deid", FACES))
    assert of(page, "#redacted mark") == ["[NAME]", "[DATE]"]


def test_offsets_and_replacements_for_any_text(page: Browser) -> None:
    rng = random.Random(5)
    for _ in range(40):
        text = "".join(rng.choice("ab \n🙂𝒳é") for _ in range(rng.randrange(1, 40)))
        points = list(range(len(text) + 1))
        units = awaited(page, f"import('./text.js').then(m => {points}.map(m.unitsOf({json.dumps(text)})))")
        assert units == [len(text[:point].encode("utf-16-le")) // 2 for point in points]
        cuts = sorted(rng.sample(points, min(len(points), 4)))
        spans = [{"start": a, "end": b, "label": "X"} for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
        after, here, puts = "", 0, []
        for span in spans:
            puts.append("[X]" if rng.random() < 0.5 else "*" * (span["end"] - span["start"]))
            after += text[here : span["start"]] + puts[-1]
            here = span["end"]
        after += text[here:]
        call = f"m.replacements({json.dumps(text)}, {json.dumps(after)}, {json.dumps(spans)})"
        found = awaited(
            page, f"import('./redacted.js').then(m => {call}.map(([a, b]) => {json.dumps(after)}.slice(a, b)))"
        )
        assert found == puts


def test_overlaps_keep_every_span(page: Browser) -> None:
    choose(page, "findings", "organs")
    run(page, "He has chronic kidney disease.")
    pieces = page.evaluate("[...document.querySelectorAll('#entities mark')].map(m => m.firstChild.textContent)")
    assert pieces == ["chronic ", "kidney", " disease"]
    lines = page.evaluate(
        "[...document.querySelectorAll('#entities mark')].map(m => m.style.backgroundPosition.split(',').length)"
    )
    assert lines == [2, 3, 1]
    assert (
        page.evaluate("new Set([...document.querySelectorAll('#entities mark')].map(m => m.style.paddingBottom)).size")
        == 1
    )
    click(page, "#entities .type[aria-pressed]")
    assert of(page, "#entities .type[aria-pressed=false]") == ["problem1"]
    assert page.evaluate("[...document.querySelectorAll('#entities mark')].map(m => m.firstChild.textContent)") == [
        "chronic ",
        "kidney",
    ]


def test_models_are_switched(page: Browser, server: StandIn) -> None:
    run(page, NOTE)
    assert not visible(page, "#stale")
    choose(page, "specialty", "same-topic")
    page.evaluate("redactor.value = ''; redactor.dispatchEvent(new Event('change'))")
    assert visible(page, "#stale") and visible(page, "#pair")
    server.asked.clear()
    press_run(page)
    assert of(page, "#advice") == ["same-topic wants a second text."] and server.asked == []
    write(page, "fever and lisinopril", "#pair")
    press_run(page)
    assert page.wait("document.querySelector('#entities').hidden && document.querySelector('#redacted').hidden")
    assert {(path, *body["models"], body["documents"][0].get("text_pair")) for path, body in server.asked} == {
        ("/v1/classify", "specialty", None), ("/v1/classify", "same-topic", "fever and lisinopril"),
    }  # fmt: skip
    assert of(page, "#labels h4") == ["specialty", "same-topic"]
    assert not visible(page, "#stale")
    choose(page)
    press_run(page)
    assert of(page, "#advice") == ["Choose a model."]


def test_added_and_removed_models_appear_on_refresh(page: Browser, server: StandIn) -> None:
    choose(page, "triage")
    server.models = [*server.models[:1], *({**server.models[1], "name": f"more-{n}"} for n in range(9))]
    click(page, "#refresh")
    assert page.wait("document.querySelectorAll('.model').length === 10")
    assert page.evaluate("[...document.querySelectorAll('.model input:checked')].map(box => box.value)") == ["triage"]
    assert visible(page, "#find") and not visible(page, "#redaction")
    page.evaluate("document.querySelector('#find').value = 'more-3'; document.querySelector('#find').oninput()")
    assert page.evaluate("document.querySelectorAll('.model:not([hidden])').length") == 1
    server.models = []
    click(page, "#refresh")
    assert page.wait("document.querySelector('#no-models').textContent.includes('posology serve')")


def test_answers_can_be_taken_away(page: Browser, server: StandIn, tmp_path: Path) -> None:
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    click(page, "#example")
    run(page)
    text = page.evaluate("document.querySelector('#text').value")
    assert "Corell Garenby" in text and of(page, "#about-text") == ["A made-up note: nobody in it exists."]
    click(page, "#save-json")
    click(page, ".save-text")
    saved = [tmp_path / "example.posology.json", tmp_path / "example.redacted.txt"]
    end = time.monotonic() + 10
    while not all(path.exists() for path in saved) and time.monotonic() < end:
        time.sleep(0.05)
    answers = json.loads(saved[0].read_text())
    assert [one["model"] for one in answers["classify"]["documents"][0]["results"]] == ["triage", "specialty"]
    assert answers["entities"]["documents"][0]["results"][2]["spans"] == spans_of("deid", text)
    assert saved[1].read_text() == redact({"id": "1", "text": text}, "deid", "tags")["text"]
    page.call("Page.bringToFront")
    click(page, ".copy-text")
    assert page.wait("document.querySelector('#status').textContent.includes('clipboard')")
    assert awaited(page, "navigator.clipboard.readText()") == saved[1].read_text()


# ---- files, tokens, faults ----


def give(browser: Browser, path: Path) -> None:
    answer = browser.call("Runtime.evaluate", expression="document.querySelector('#file')")
    browser.call("DOM.setFileInputFiles", files=[str(path)], objectId=answer["result"]["objectId"])


def test_files_are_opened(page: Browser, tmp_path: Path) -> None:
    note = tmp_path / "letter.txt"
    note.write_bytes("\ufeffZoë 🙂 fever\r\nagain".encode())
    give(page, note)
    assert page.wait("document.querySelector('#text').value === 'Zoë 🙂 fever\\nagain'")
    assert of(page, "#about-text") == ["letter.txt"]
    note.write_bytes("Zoë".encode("windows-1252"))
    give(page, note)
    assert page.wait("document.querySelector('#text').value === 'Zoë'")
    assert "Windows-1252" in of(page, "#about-text")[0]
    for content, words in ((b"a\0b", "no text file"), (b" \n", "empty"), (b"a" * (9 << 20), "up to 8")):
        note.write_bytes(content)
        give(page, note)
        assert page.wait(f"document.querySelector('#problems').textContent.includes('{words}')"), words
        assert page.evaluate("document.querySelector('#text').value") == "Zoë"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(413), "too large"),
        (
            Fault(422, {}, {"detail": [{"loc": ["body", "documents"], "msg": "too long"}]}),
            "It says: body.documents: too long",
        ),
        (Fault(422, {}, {"detail": "labels of pairs"}), "It says: labels of pairs"),
        (Fault(404), "no longer there"),
        (Fault(500, {}, {"detail": "internal error"}), "failed (500)"),
        (Fault(503, {}, "no object"), "starting, stopping or too busy"),
        (Fault(504), "longer than this server allows"),
    ],
)
def test_faults_are_told_and_passed(page: Browser, server: StandIn, fault: Fault, words: str) -> None:
    choose(page, "triage")
    page.evaluate("redactor.value = ''")
    server.faults["/v1/classify"] = fault
    write(page, NOTE)
    press_run(page)
    assert page.wait(f"document.querySelector('#problems').textContent.includes({json.dumps(words)})"), of(
        page, "#problems"
    )
    assert of(page, "#run-words") == ["Run"] and not visible(page, "#labels")
    run(page)
    assert of(page, "#problems") == [""] and of(page, "#labels h4") == ["triage"]


def test_what_did_come_is_shown_beside_a_fault(page: Browser, server: StandIn) -> None:
    server.faults["/v1/entities"] = Fault(504)
    run(page, NOTE)
    assert visible(page, "#labels") and visible(page, "#redacted") and not visible(page, "#entities")
    assert "longer than this server allows" in of(page, "#problems")[0]


def test_a_busy_server_is_waited_for(page: Browser, server: StandIn) -> None:
    server.faults["/v1/classify"] = Fault(429, {"Retry-After": "2"})
    choose(page, "triage")
    page.evaluate("redactor.value = ''")
    write(page, NOTE)
    press_run(page)
    for words in ("Wait 2 s", "Wait 1 s"):
        assert page.wait(f"document.querySelector('#run-words').textContent === '{words}'"), words
    asked = len(server.asked)
    press_run(page)
    assert len(server.asked) == asked
    assert page.wait("document.querySelector('#run-words').textContent === 'Run'")
    run(page)


def test_a_token_is_asked_for_and_not_stored(shared: Browser) -> None:
    with StandIn(token="let me in") as server:
        show(shared, server)
        assert visible(shared, "#token") and not visible(shared, ".model") and of(shared, "#problems") == [""]
        write(shared, "wrong", "#token")
        shared.press("Enter")
        assert shared.wait("document.querySelector('#problems').textContent.includes('does not know this token')")
        write(shared, "let me in", "#token")
        shared.press("Enter")
        assert shared.wait("document.querySelector('.model') !== null")
        assert not visible(shared, "#token")
        run(shared, NOTE)
        server.token = "another"
        press_run(shared)
        assert shared.wait("document.activeElement.id === 'token'")
        check_quiet(shared, server)


def test_models_that_are_loading_are_waited_for(shared: Browser) -> None:
    with StandIn() as server:
        server.faults["/v1/models"] = Fault(503, {"Retry-After": "1"}, {"detail": "the models are being loaded"})
        shared.open(server.address)
        assert shared.wait("document.querySelector('#no-models').textContent.includes('loading')")
        assert shared.wait("document.querySelectorAll('.model').length === 6")
        check_quiet(shared, server)


def test_a_server_that_is_gone_and_one_that_is_slow(page: Browser, server: StandIn) -> None:
    server.held.clear()
    write(page, NOTE)
    press_run(page)
    assert page.wait("document.querySelector('#results').ariaBusy === 'true'") and of(page, "#run-words") == ["Working"]
    click(page, "#stop")
    assert page.wait("document.querySelector('#status').textContent === 'Stopped.'")
    assert of(page, "#run-words") == ["Run"] and of(page, "#problems") == [""]
    # The browser keeps these connections: an answer over one of them would not come from a server that is gone.
    asked = "fetch('/', {cache: 'no-store', credentials: 'omit'}).then(answer => answer.text())"
    awaited(page, f"Promise.all(Array.from({{length: 6}}, () => {asked})).then(texts => texts.length)")
    server.close()
    press_run(page)
    assert page.wait("document.querySelector('#problems').textContent.includes('No answer from the server')", 10)


def test_text_and_names_are_never_markup(shared: Browser) -> None:
    with StandIn() as server:
        for model in server.models:
            model["task"] = HOSTILE
        show(shared, server)
        run(shared, HOSTILE)
        assert shared.evaluate(READ + "('#entities .reading')") == HOSTILE
        assert (
            shared.evaluate("document.querySelectorAll('main img, main script, .model b > b, .reading b').length") == 0
        )
        check_quiet(shared, server)


# ---- how it looks and is reached ----


def test_every_control_is_reached_by_tab_and_shows_it(page: Browser) -> None:
    run(page, NOTE)
    wanted = set(page.evaluate("""[...document.querySelectorAll('button, select, textarea, input, summary, [tabindex="0"]')]
      .filter(e => e.checkVisibility() && !e.disabled && e.type !== 'file' && !(e.type === 'radio' && !e.checked))
      .map((e, i) => (e.dataset.n = i, i))"""))  # fmt: skip
    page.evaluate("document.activeElement.blur(); getSelection().collapse(document.body, 0)")
    reached: set[int] = set()
    for _ in range(len(wanted) + 8):
        page.press("Tab")
        number, outlined = page.evaluate("""(e => {
          const shown = [e, e.nextElementSibling, e.parentElement].filter(Boolean);
          return [e.dataset.n ?? null, shown.some(o => getComputedStyle(o).outlineStyle === 'solid')];
        })(document.activeElement)""")
        if number is not None:
            reached.add(int(number))
            assert outlined, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
    assert reached == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(server: StandIn, scheme: str) -> None:
    with Browser(360, 740, scheme) as browser:
        show(browser, server)
        click(browser, "#example")
        click(browser, "input[value=same-topic]")
        write(browser, "fever", "#pair")
        click(browser, "#run")
        assert browser.wait("!document.querySelector('#redacted').hidden")
        click(browser, "#entities summary")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth && innerWidth === 360")
        assert browser.wait("document.querySelector('#results').getBoundingClientRect().top < 200")
        ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 23, 28)"}[scheme]
        click(browser, ".theme")
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") != ground
        check_quiet(browser, server)


def test_print_and_reduced_motion(page: Browser) -> None:
    run(page, NOTE)
    assert page.evaluate("getComputedStyle(document.querySelector('.fill')).transitionDuration") != "0s"
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    assert page.evaluate("getComputedStyle(document.querySelector('.fill')).transitionDuration") == "0s"
    page.call("Emulation.setEmulatedMedia", media="print")
    assert visible(page, "#labels") and visible(page, "#entities .reading") and not visible(page, "#ask")
    page.call("Emulation.setEmulatedMedia", media="", features=[])


# ---- against the real server ----


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory, backbone: Path, tagging: PreparedTask) -> Path:
    """One that has learned long enough to find something."""
    folder = tmp_path_factory.mktemp("tagger") / "mentions"
    overrides = {"precision": "fp32", "epochs": 12, "max_length": 24, "overlap": 8, "learning_rate": 0.02}
    posology.train(tagging.folder, str(backbone), "lora", folder, overrides=overrides)
    return folder


@pytest.mark.slow  # it trains a tagger until that finds something
def test_the_real_server(
    shared: Browser, start: Callable[..., Any], artifacts: Path, tagger: Path, tmp_path: Path
) -> None:
    for name in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
        pytest.importorskip(name)
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-this-test\n")
    tokens.chmod(0o600)
    real = start(artifacts / "lora-class", artifacts / "head-class", tagger, "--token-file", tokens).ready()
    shared.open(real.url.rstrip("/") + "/")
    assert shared.wait("document.querySelector('#token').checkVisibility()", 15)
    write(shared, "a-token-of-this-test", "#token")
    shared.press("Enter")
    assert shared.wait("document.querySelectorAll('.model').length === 3", 15), of(shared, "#problems")
    text = "🙂 the patient has fever 𝒳 and no pain, abc fever"
    run(shared, text)
    with real.client(headers={"Authorization": "Bearer a-token-of-this-test"}) as client:
        document = {"id": "1", "text": text}
        classified = client.post("/v1/classify", json={"documents": [document]}).json()["documents"][0]["results"]
        (tagged,) = client.post("/v1/entities", json={"documents": [document]}).json()["documents"][0]["results"]
        assert of(shared, "#labels .verdict b") == [one["label"] for one in classified]
        assert of(shared, "#labels .verdict span") == [f"{100 * one['score']:.1f} %" for one in classified]
        assert tagged["spans"], "the tagger finds nothing, and nothing is shown that could be wrong"
        rows = "[...document.querySelectorAll('#entities tbody tr')].map(r => r.cells[0].textContent)"
        assert shared.evaluate(rows) == [text[span["start"] : span["end"]] for span in tagged["spans"]]
        shared.evaluate("redactor.value = 'mentions'; redactor.dispatchEvent(new Event('change'))")
        run(shared)
        for style in ("asterisks", "surrogates", "tags"):
            click(shared, f"input[value={style}]")
            assert shared.wait(f"document.querySelector('#status').textContent.includes('by {style}')")
            body = {"documents": [document], "model": "mentions", "style": style}
            (redacted,) = client.post("/v1/redact", json=body).json()["documents"]
            assert of(shared, "#redacted .reading") == [redacted["text"]]
            assert len(of(shared, "#redacted mark")) == len(redacted["spans"])
    assert [one for one in shared.requests if not one.startswith((real.url, "blob:"))] == []
    assert [one for one in shared.complaints if '"source": "network"' not in one] == []
    assert text not in real.text() and "fever" not in real.text()
    assert real.stop() == 0
