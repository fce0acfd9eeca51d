"""A handful of small artifacts of several methods, and a real server over them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import posology
from posology.tasks.prepared import PreparedTask

KINDS = {
    "lora-class": ("lora", "classification"),
    "rslora-tags": ("rslora", "tagging"),
    "ia3-class": ("ia3", "classification"),
    "ia3-tags": ("ia3", "tagging"),
    "head-class": ("head", "classification"),
    "head-tags": ("head", "tagging"),
    "full-class": ("full", "classification"),
    "prefix-tags": ("prefix", "tagging"),
}
TEXTS = [
    "patient no pain", "fever", "the patient fever pain abc def " * 9, "a", "   ", "abc " * 50, "é\U0001f600 fever, pain-no",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where a namespace has not even loopback, no server can be asked anything."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError:
        skip = pytest.mark.skip(reason="no loopback interface is up here: servers cannot be reached")
        for item in items:
            if item.path.parent == Path(__file__).parent and item.path.stem in (
                "test_server",
                "test_page",
                "test_fuzz",
            ):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def artifacts(
    tmp_path_factory: pytest.TempPathFactory, backbone: Path, classification: PreparedTask, tagging: PreparedTask
) -> Path:
    """A folder of artifacts by name, one for each of `KINDS`, in float32 and with short windows."""
    folder = tmp_path_factory.mktemp("artifacts")
    overrides = {"precision": "fp32", "epochs": 2, "max_length": 24, "overlap": 8, "learning_rate": 0.02}
    for name, (method, task) in KINDS.items():
        data = {"classification": classification, "tagging": tagging}[task].folder
        posology.train(data, str(backbone), method, folder / name, overrides=overrides)
    return folder


class Server:
    """`posology serve` as a process of its own.

    Attributes:
        process, url: of it.
        output: the file with all that it writes to stdout and stderr.
    """

    def __init__(self, folder: Path, arguments: Sequence[str]):
        from tests.ship.serve.processes import launch

        self.output = folder / "output"
        self.process = launch(["serve", *arguments, "--port", "0"], self.output)
        self.url = self._said("listening on ").split()[0]

    def _said(self, what: str) -> str:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            text = self.text()
            if what in text and "\n" in text.split(what, 1)[1]:
                return text.split(what, 1)[1]
            assert self.process.is_alive(), text
            time.sleep(0.05)
        raise AssertionError(f"it never said {what!r}: {self.text()}")

    def ready(self) -> Server:
        """Waits until the models are loaded."""
        self._said("ready: ")
        return self

    def text(self) -> str:
        """All that it has written."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def client(self, **options: Any) -> Any:
        """A client of it."""
        import httpx

        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def stop(self) -> int | None:
        """Asks it to end, and waits until it has."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int | None:
        """Its exit code."""
        self.process.join(60)
        return self.process.exitcode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers, which end with the test."""
    servers: list[Server] = []

    def run(*arguments: object) -> Server:
        servers.append(Server(tmp_path, [str(argument) for argument in arguments]))
        return servers[-1]

    yield run
    for server in servers:
        if server.process.is_alive():
            server.process.kill()
            server.process.join()


def body(*texts: str, **more: Any) -> dict[str, Any]:
    """A request."""
    return {"documents": [{"id": str(number), "text": text} for number, text in enumerate(texts)], **more}
