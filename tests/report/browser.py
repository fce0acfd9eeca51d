"""A headless Chromium driven over its debugging pipe, without any further package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


_CONTRAST = """
(() => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
      .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)" && colour !== "transparent") return colour;
    }
  };
  const low = [];
  for (const element of document.querySelectorAll("main *, footer *, header *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (!element.getClientRects().length || element.closest("noscript, :disabled, option")) continue;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${element.tagName}.${element.className}: ${ink}`);
  }
  const ground = light(getComputedStyle(document.querySelector("figure")).backgroundColor);
  for (let number = 0; number < 8; number += 1) {
    const probe = document.createElement("span");
    probe.style.color = `var(--c${number})`;
    document.body.append(probe);
    const [a, b] = [light(getComputedStyle(probe).color), ground].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 3) low.push(`--c${number}`);
    probe.remove();
  }
  return low;
})()
"""


class Browser:
    """One page. Every message the page logs (policy violations and script errors too) is kept in `complaints`."""

    def __init__(self, width: int = 1280, height: int = 900, scheme: str = "light"):
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip(f"no browser found: tried {', '.join(NAMES)}")
        self._profile = tempfile.mkdtemp()
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()

        def pipes_at_3_and_4() -> None:
            # First out of the way, as either could already be 3 or 4.
            ours = os.dup(reads), os.dup(writes)
            os.dup2(ours[0], 3)
            os.dup2(ours[1], 4)

        self._process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
             "--disable-dev-shm-usage", f"--user-data-dir={self._profile}", "--remote-debugging-pipe", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=pipes_at_3_and_4,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        self._stream = os.fdopen(self._in, "rb")
        self._number, self._session = 0, ""
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        self._stream.close()
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._events.append(answer)

    def _read(self) -> dict[str, Any]:
        buffer = bytearray()
        while (byte := self._stream.read(1)) != b"\0":
            assert byte, "the browser has closed its pipe"
            buffer += byte
        return json.loads(buffer)

    def open(self, page: Path | str) -> None:
        """Opens a file, or an address, and waits until it is loaded."""
        self._events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 5.0) -> bool:
        """Whether an expression becomes true in time."""
        end = time.monotonic() + seconds
        while not (held := bool(self.evaluate(condition))) and time.monotonic() < end:
            time.sleep(0.02)
        return held

    def press(self, key: str) -> None:
        text = {"Enter": "\r"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text if kind == "keyDown" else "",
                      windowsVirtualKeyCode=_KEYS[key])  # fmt: skip

    def hover(self, selector: str) -> None:
        """Moves the mouse over the middle of the first element that fits."""
        self.evaluate(
            f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center', behavior: 'instant'}})"
        )
        box = self.evaluate(f"(b => [b.left + b.width / 2, b.top + b.height / 2])"
                            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())")  # fmt: skip
        for x, y in ((0, 0), box):  # from elsewhere, as a mouse that rests is not noticed
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def low_contrast(self) -> list[str]:
        """Texts below 4.5:1 against what is behind them, and colours of marks below 3:1 (WCAG 2.2, AA)."""
        return self.evaluate(_CONTRAST)

    def screenshot(self, path: Path) -> None:
        import base64

        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    @property
    def complaints(self) -> list[str]:
        """What the page has logged, thrown or been refused, as text."""
        names = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self._events if event.get("method") in names]

    @property
    def requests(self) -> list[str]:
        """Addresses the page has asked for."""
        sent = [event for event in self._events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]
