"""A real server: a process, sockets, signals."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

from posology.corpus.document import Document
from posology.corpus.tags import words_of
from posology.engine.artifact import load
from posology.engine.predict import rows_of
from tests.ship.serve.conftest import TEXTS, Server, body

Start = Callable[..., Server]
PLANTED = "Xanthippe Quartermaine"


def expected(folder: Path, text: str) -> dict[str, Any]:
    """What `posology predict` says."""
    model = load(folder)
    answers = model.answer([Document("0", text, words=words_of(text))])
    return rows_of(model, answers)[0]


def same(ours: Any, theirs: Any) -> None:
    """Equal but for rounding."""
    if isinstance(theirs, dict):
        for key, value in theirs.items():
            same(ours[key], value)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == (pytest.approx(theirs, abs=1e-4) if isinstance(theirs, float) else theirs)


def test_it_answers_as_predict_does_adds_removes_and_ends(start: Start, artifacts: Path, tmp_path: Path) -> None:
    served = [artifacts / name for name in ("lora-class", "head-class", "ia3-tags", "rslora-tags")]
    server = start(*served, "--artifacts", artifacts, "--audit", tmp_path / "audit").ready()
    with server.client() as client:
        for path, names in {
            "/v1/classify": ["lora-class", "head-class"],
            "/v1/entities": ["ia3-tags", "rslora-tags"],
        }.items():
            answer = client.post(path, json=body(*TEXTS))
            assert answer.status_code == 200
            for text, document in zip(TEXTS, answer.json()["documents"], strict=True):
                assert [own["model"] for own in document["results"]] == names
                for own in document["results"]:
                    same(own, expected(artifacts / own["model"], text))
        listed = client.get("/v1/models").json()
        assert [own["name"] for own in listed["models"]] == [folder.name for folder in served]
        record = json.loads((artifacts / "lora-class" / "posology.json").read_text())
        assert listed["backbone"]["sha256"] == record["backbone"]["sha256"]
        assert listed["backbone"]["parameters"] == record["backbone"]["parameters"]
        same(listed["models"][0], {"task": "complaint", "metric": "macro_f1", **record["test"]["metrics"]["macro_f1"]})
        _redact(client)
        _change(client)
        _refuse(client)
        _look(client)
    assert server.stop() == 0
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    assert [line["what"] for line in lines[:2]] == ["classify", "entities"]
    assert {"redact", "add", "remove"} <= {line["what"] for line in lines}
    assert "fever" not in (tmp_path / "audit").read_text()


def _redact(client: Any) -> None:
    text = "\U0001f600 fever and no pain"
    found = client.post("/v1/entities", json=body(text, models=["ia3-tags"])).json()["documents"][0]["results"][0][
        "spans"
    ]
    for style in ("tags", "asterisks", "surrogates"):
        request = {"documents": [{"id": "7", "text": text, "group": "g"}], "model": "ia3-tags", "style": style}
        answer = client.post("/v1/redact", json=request)
        assert answer.status_code == 200
        (document,) = answer.json()["documents"]
        assert document["id"] == "7" and [own["start"] for own in document["spans"]] == [own["start"] for own in found]
        if style == "tags":
            parts, read = [], 0
            for span in found:
                parts += [text[read : span["start"]], f"[{span['label']}]"]
                read = span["end"]
            assert document["text"] == "".join([*parts, text[read:]])


def _change(client: Any) -> None:
    assert client.put("/v1/models/new", json={"artifact": "full-class"}).status_code == 201
    assert client.put("/v1/models/new", json={"artifact": "ia3-class"}).status_code == 200
    answer = client.post("/v1/classify", json=body("fever", models=["new"])).json()
    assert answer["documents"][0]["results"][0]["model"] == "new"
    assert client.delete("/v1/models/new").status_code == 204
    assert client.delete("/v1/models/new").status_code == 404
    assert client.post("/v1/classify", json=body("fever", models=["new"])).status_code == 404
    for name in ("..", "../lora-class", "/etc", "lora-class/..", "", ".", "a\0b", "nothing"):
        assert client.put("/v1/models/x", json={"artifact": name}).status_code in (404, 422)
    for name in ("..%2f..%2fetc", "%2e%2e", "a%2fb", "a%00b", "x" * 200):
        assert client.put(f"/v1/models/{name}", json={"artifact": "lora-class"}).status_code in (404, 405, 422)
    assert len(client.get("/v1/models").json()["models"]) == 4


def _refuse(client: Any) -> None:
    def status(content: bytes | str, path: str = "/v1/classify") -> int:
        answer = client.post(path, content=content, headers={"content-type": "application/json"})
        assert PLANTED not in answer.text and "detail" in answer.json()
        return int(answer.status_code)

    assert status(f'{{"documents": "{PLANTED}') == 400
    assert status(b"\xff\xfe" + PLANTED.encode()) == 400
    assert status("[" * 100_000) == 400
    assert status(f'{{"documents": "{PLANTED}"}}') == 422
    assert status(json.dumps(body(PLANTED, models=[PLANTED]))) == 422
    assert status(json.dumps(body(PLANTED, models=["Quartermaine"]))) == 404
    assert status(json.dumps(body(PLANTED, models=["ia3-tags"]))) == 422
    assert status(json.dumps(body(PLANTED, **{PLANTED: 1}))) == 422
    assert status(json.dumps({"documents": [{"id": "1", "text": PLANTED, PLANTED: 1}]})) == 422
    assert (
        status(json.dumps({"documents": [{"id": "1", "text": PLANTED, "text_pair": "x"}], "models": ["lora-class"]}))
        == 422
    )
    assert status(json.dumps({"documents": [{"id": "1", "text": [PLANTED]}]})) == 422
    assert status('{"documents": [{"id": "1", "text": "' + PLANTED + ' \\ud800"}]}') == 422
    assert status(json.dumps(body(PLANTED, style=PLANTED, model="ia3-tags")), "/v1/redact") == 422
    assert client.get(f"/{PLANTED}?{PLANTED}").status_code == 404
    assert client.post("/v1/classify", content=body("x").__repr__()).status_code == 415
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403


def _look(client: Any) -> None:
    for path in ("/", "/page.js", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-security-policy"].startswith("default-src 'none'")
    etag = client.get("/").headers["etag"]
    assert client.get("/", headers={"if-none-match": etag}).status_code == 304
    metrics = client.get("/metrics").text
    assert 'posology_requests_total{method="POST",route="/v1/classify",status="200"}' in metrics
    assert "posology_models 4.0" in metrics and PLANTED not in metrics
    assert client.get("/openapi.json").json()["paths"]["/v1/classify"]["post"]["requestBody"]


def test_planted_text_is_nowhere_in_what_it_writes(start: Start, artifacts: Path, tmp_path: Path) -> None:
    """In no log, no audit and no error, whatever is done to it."""
    server = start(artifacts / "lora-class", artifacts / "ia3-tags", "--audit", tmp_path / "audit").ready()
    address = server.url.removeprefix("http://").split(":")
    with server.client() as client:
        client.post("/v1/classify", json=body(PLANTED + " has a fever"))
        client.post("/v1/entities", json=body(PLANTED + " has a fever"))
        client.post("/v1/redact", json=body(PLANTED, model="ia3-tags"))
        _refuse(client)
        for raw in (
            f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\n{PLANTED}: {PLANTED}\r\n\r\n",
            f"{PLANTED}\r\n\r\n",
            f"GET /{PLANTED.replace(' ', '%20')}?{PLANTED.replace(' ', '+')} HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n"
            + PLANTED,
        ):
            with socket.create_connection((address[0], int(address[1])), timeout=10) as connection:
                connection.sendall(raw.encode())
                connection.settimeout(0.3)
                with contextlib.suppress(TimeoutError):
                    assert PLANTED.encode() not in connection.recv(65536)
        assert client.get("/healthz").status_code == 200
    assert server.stop() == 0
    written = server.text() + (tmp_path / "audit").read_text()
    assert all(part not in written for part in (*PLANTED.split(), "fever")), written


def test_overload_is_refused_and_passes(start: Start, artifacts: Path) -> None:
    server = start(artifacts / "lora-class", "--max-waiting", 3000).ready()
    text = "fever " * 400
    with server.client() as client:
        assert client.post("/v1/classify", json=body(*[text] * 10)).status_code == 413
        found: list[Any] = []

        def ask() -> None:
            with server.client() as own:
                found.append(own.post("/v1/classify", json=body(text)))

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = {answer.status_code for answer in found}
        assert statuses == {200, 429}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in found if answer.status_code == 429)
        assert client.post("/v1/classify", json=body(text)).status_code == 200


def test_what_takes_too_long_is_not_answered(start: Start, artifacts: Path) -> None:
    server = start(artifacts / "lora-class", artifacts / "ia3-tags", "--timeout-seconds", 0.001).ready()
    with server.client() as client:
        assert client.post("/v1/classify", json=body("fever " * 2000)).status_code == 504
        assert client.post("/v1/redact", json=body("fever " * 2000, model="ia3-tags")).status_code == 504
        assert client.get("/healthz").status_code == 200


def test_models_are_swapped_under_load_without_a_failed_request(start: Start, artifacts: Path) -> None:
    server = start(f"m={artifacts / 'lora-class'}", artifacts / "head-class", "--artifacts", artifacts).ready()
    text = "no fever pain"
    either = [expected(artifacts / name, text) for name in ("lora-class", "ia3-class")]
    done, answers = threading.Event(), []

    def ask() -> None:
        with server.client() as client:
            while not done.is_set():
                answers.append(client.post("/v1/classify", json=body(text, models=["m", "head-class"])))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    with server.client() as client:
        for number in range(8):
            name = ("ia3-class", "lora-class")[number % 2]
            assert client.put("/v1/models/m", json={"artifact": name}).status_code == 200
            assert client.put("/v1/models/other", json={"artifact": "ia3-tags"}).status_code == 201
            assert client.delete("/v1/models/other").status_code == 204
    done.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 20 and {answer.status_code for answer in answers} == {200}
    probabilities = np.array(
        [answer.json()["documents"][0]["results"][0]["probabilities"]["pain"] for answer in answers]
    )
    close = [np.abs(probabilities - own["probabilities"]["pain"]) < 1e-4 for own in either]
    assert (close[0] | close[1]).all() and close[0].any() and close[1].any()


def test_it_ends_when_what_it_has_begun_is_done(start: Start, artifacts: Path) -> None:
    server = start(artifacts / "full-class").ready()
    answers: list[Any] = []

    def ask() -> None:
        with server.client() as client:
            answers.append(client.post("/v1/classify", json=body(*["fever pain " * 200] * 40)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    with server.client() as client:
        while (
            "posology_row_tokens_count 0.0" in client.get("/metrics").text or client.get("/metrics").status_code != 200
        ):
            time.sleep(0.01)
    assert server.stop() == 0
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert "ended" in server.text()


def test_tokens_and_tls(start: Start, artifacts: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH, which makes the certificate")
    secret, key, certificate = "correct-horse-battery", tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*made.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    (tmp_path / "tokens").write_text(f"ward-7 {secret}\n")
    server = start(
        artifacts / "lora-class", "--token-file", tmp_path / "tokens", "--audit", tmp_path / "audit",
        "--tls-certificate", certificate, "--tls-key", key,
    ).ready()  # fmt: skip
    assert server.url.startswith("https://")
    with server.client(verify=ssl.create_default_context(cafile=str(certificate))) as client:
        assert client.get("/").status_code == client.get("/healthz").status_code == 200
        assert "strict-transport-security" in client.get("/").headers
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 401
        assert client.post("/v1/classify", json=body("fever")).status_code == 401
        allowed = {"authorization": f"Bearer {secret}"}
        assert client.post("/v1/classify", json=body("fever"), headers=allowed).status_code == 200
        assert client.get("/openapi.json", headers=allowed).json()["security"] == [{"token": []}]
    assert server.stop() == 0
    assert json.loads((tmp_path / "audit").read_text())["who"] == "ward-7"
    assert secret not in server.text() + (tmp_path / "audit").read_text()


@pytest.mark.slow
def test_slow_clients_are_closed(start: Start, artifacts: Path) -> None:
    server = start(artifacts / "lora-class").ready()
    host, port = server.url.removeprefix("http://").split(":")
    slow = [
        b"",
        b"POST /v1/classify HT",
        b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal",
    ]
    connections = [socket.create_connection((host, int(port)), timeout=30) for _ in slow]
    begin = time.monotonic()
    for connection, sent in zip(connections, slow, strict=True):
        connection.sendall(sent)
    said = []
    for connection in connections:
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        said.append(b"".join(parts))
    assert 5 < time.monotonic() - begin < 25
    assert said[0] == said[1] == b"" and b" 408 " in said[2] and b" 200 " in said[3]
    with server.client() as client:
        assert client.post("/v1/classify", json=body("fever")).status_code == 200


def test_a_model_that_cannot_be_loaded_ends_it(start: Start, artifacts: Path, tmp_path: Path) -> None:
    shutil.copytree(artifacts / "lora-class", tmp_path / "damaged")
    (tmp_path / "damaged" / "adapter_model.safetensors").unlink()
    server = start(tmp_path / "damaged")
    assert server.wait() == 2
    assert "cannot be loaded" in server.text() and "Traceback" not in server.text()
