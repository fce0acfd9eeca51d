"""The page in a browser: what a reader does with it, and what must never happen there."""

from __future__ import annotations

import json
from typing import Any

from tests.report.browser import Browser
from tests.ship.serve.standin import StandIn

READ = """(selector => {
  const copy = document.querySelector(selector).cloneNode(true);
  copy.querySelectorAll('.chip').forEach(chip => chip.remove());
  return copy.textContent;
})"""


def show(browser: Browser, server: StandIn) -> None:
    browser.open(server.address)
    assert browser.wait("document.querySelector('.model, #token-panel:not([hidden])') !== null", 15)


def check_quiet(browser: Browser, server: StandIn) -> None:
    stored = "[localStorage.length, sessionStorage.length, document.cookie, location.search + location.hash]"
    assert browser.evaluate(stored) == [0, 0, "", ""]
    assert [one for one in browser.requests if not one.startswith((server.address, "blob:"))] == []
    # That an answer was no 2xx is logged by the browser itself.
    assert [one for one in browser.complaints if '"source": "network"' not in one] == []


def of(browser: Browser, selector: str) -> list[str]:
    return browser.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(one => one.textContent)")


def click(browser: Browser, selector: str) -> None:
    browser.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


def visible(browser: Browser, selector: str) -> bool:
    return bool(browser.evaluate(f"document.querySelector({json.dumps(selector)})?.checkVisibility() ?? false"))


def write(browser: Browser, text: str, field: str = "#text") -> None:
    """As by hand: what was there is selected, and typed over."""
    browser.evaluate(f"document.querySelector('{field}').select(); document.querySelector('{field}').focus()")
    browser.call("Input.insertText", text=text)


def press_run(browser: Browser) -> None:
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 2}
    browser.call("Input.dispatchKeyEvent", type="keyDown", **key)
    browser.call("Input.dispatchKeyEvent", type="keyUp", **key)


def run(browser: Browser, text: str | None = None) -> None:
    if text is not None:
        write(browser, text)
    press_run(browser)
    assert browser.wait("/ in [\\d.]+ s\\.$/.test(document.querySelector('#status').textContent)", 10), of(
        browser, "#problems"
    )


def awaited(browser: Browser, expression: str) -> Any:
    answer = browser.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in answer, answer["exceptionDetails"]
    return answer["result"].get("value")


def choose(browser: Browser, *names: str) -> None:
    browser.evaluate(
        f"document.querySelectorAll('.model input').forEach(box => {{ if (box.checked !== {json.dumps(names)}.includes(box.value)) box.click() }})"
    )
