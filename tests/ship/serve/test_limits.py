"""Who may ask, how much and how fast, without a server around it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from posology.errors import UserError
from posology.ship.serve.audit import Audit
from posology.ship.serve.command import serve
from posology.ship.serve.limits import Guard, Rate, Refusal, Settings, Tokens

SECRET = "s3cret-" * 4


def tokens(folder: Path, text: str) -> Tokens:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(0o600)
    return Tokens(path)


def test_tokens_by_name(tmp_path: Path) -> None:
    known = tokens(tmp_path, f"# who\n\nward-7 {SECRET}\n{'x' * 20}  # no name\n")
    assert known.name(SECRET.encode()) == "ward-7" and known.name(b"x" * 20) == "token-2"
    assert known.name(SECRET[:-1].encode()) is None and known.name(b"") is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "short", "a b " + SECRET, "ä" * 20])
def test_files_that_hold_no_token(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError) as error:
        tokens(tmp_path, text)
    assert SECRET not in str(error.value)


def test_a_rate_is_spent_and_comes_back() -> None:
    now = [100.0]
    rate = Rate(6, lambda: now[0])
    assert [rate.take("a") for _ in range(6)] == [None] * 6
    assert rate.take("a") == 10 and rate.take("b") is None
    now[0] += 10.0
    assert rate.take("a") is None and rate.take("a") == 10
    now[0] += 3600
    assert [rate.take("a") for _ in range(7)] == [None] * 6 + [10]


class Client:
    """Sends one request through a guard."""

    def __init__(self, settings: Settings, app: Any = None):
        self.seen: list[Any] = []
        self.watched: list[Any] = []
        self.guard = Guard(app or self._app, settings, lambda *given: self.watched.append(given))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append((scope["state"]["who"], (await receive())["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"no-cache")]})
        await send({"type": "http.response.body", "body": b"{}"})

    def ask(self, *parts: bytes, method: str = "POST", path: str = "/v1/x", stall: bool = False, **headers: str) -> Any:
        """Status, headers and body of the answer."""
        given = {"host": "localhost:80", "content-type": "application/json", **headers}
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
        scope = {"type": "http", "method": method, "path": path, "headers": named, "client": ("10.0.0.1", 1)}
        coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if coming and not stall:
            coming[-1]["more_body"] = False
        sent: list[Any] = []

        async def receive() -> Any:
            if coming:
                return coming.pop(0)
            await asyncio.sleep(20)

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.guard(scope, receive, send))
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def test_every_answer_has_the_headers() -> None:
    client = Client(Settings(https=True))
    for _, headers, _ in (client.ask(b"{}"), client.ask(b"{}", host="elsewhere")):
        assert headers[b"content-security-policy"].startswith(b"default-src 'none'; ")
        assert headers[b"x-content-type-options"] == b"nosniff" and b"strict-transport-security" in headers
    assert client.ask(b"{}")[1][b"cache-control"] == b"no-cache"  # what the application says counts


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer wrong", f"Basic {SECRET}", f"Bearer {SECRET}x", SECRET]
)
def test_without_a_token_nobody_gets_in(tmp_path: Path, authorization: str) -> None:
    client = Client(Settings(tokens(tmp_path, f"me {SECRET}"), public=frozenset({"/"})))
    status, headers, body = client.ask(b"{}", authorization=authorization)
    assert (status, headers[b"www-authenticate"]) == (401, b"Bearer") and not client.seen
    assert b"wrong" not in body and SECRET.encode() not in body
    assert client.ask(b"", method="GET", path="/")[0] == 200  # the page itself holds nothing


def test_a_token_lets_in(tmp_path: Path) -> None:
    client = Client(Settings(tokens(tmp_path, f"me {SECRET}")))
    assert client.ask(b"{}", authorization=f"bearer {SECRET}", host="hospital.example")[0] == 200
    assert client.seen == [("me", b"{}")]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:80", "[::1]", "[::1]:8080"])
def test_names_of_this_machine(host: str) -> None:
    assert Client(Settings()).ask(b"{}", host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "evil:127.0.0.1"]
)
def test_other_names_are_refused_without_tokens(host: str) -> None:
    client = Client(Settings())
    assert client.ask(b"{}", host=host)[0] == 403 and not client.seen


def test_bodies_are_bounded_before_they_are_read() -> None:
    client = Client(Settings(max_body=10))
    assert client.ask(b"12345", b"67890")[0] == 200 and client.seen[-1][1] == b"1234567890"
    assert client.ask(b"12345", b"678901")[0] == 413
    assert client.ask(content_length="11")[0] == 413
    assert client.ask(content_length="9" * 5000)[0] == 413
    assert client.ask(content_length="-1")[0] == 400
    assert len(client.seen) == 1


def test_so_many_bodies_at_a_time() -> None:
    client = Client(Settings(max_body=10))
    client.guard._held = 155
    status, headers, _ = client.ask(b"123456", content_length="6")
    assert (status, headers[b"retry-after"]) == (429, b"1")
    assert client.ask(b"12345", content_length="5")[0] == 200 and client.guard._held == 155


def test_slow_bodies_are_not_waited_for() -> None:
    client = Client(Settings(body_seconds=0.05))
    assert client.ask(b"{", stall=True)[0] == 408 and not client.seen


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "text/json"])
def test_bodies_of_other_types(kind: str) -> None:
    assert Client(Settings()).ask(b"{}", content_type=kind)[0] == 415


def test_rates_are_told_when_to_come_again() -> None:
    client = Client(Settings(rate=Rate(2), public=frozenset({"/healthz"})))
    assert [client.ask(b"{}")[0] for _ in range(3)] == [200, 200, 429]
    assert int(client.ask(b"{}")[1][b"retry-after"]) >= 1
    assert client.ask(b"", method="GET", path="/healthz")[0] == 200


def test_what_goes_wrong_is_logged_without_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("Mrs. Planted has a fever")

    client = Client(Settings(), broken)
    status, _, body = client.ask(b"{}")
    logged = capsys.readouterr().err
    assert status == 500 and b"Planted" not in body and "Planted" not in logged
    assert "ValueError at test_limits.py:" in logged
    assert client.watched[0][:3] == ("other", "POST", 500)


def test_a_refusal_within_the_application_is_answered() -> None:
    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        raise Refusal(409, "not now", {"retry-after": "3"})

    status, headers, body = Client(Settings(), refuses).ask(b"{}")
    assert (status, headers[b"retry-after"], json.loads(body)) == (409, b"3", {"detail": "not now"})


def test_the_audit_keeps_hashes_only(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):
        audit = Audit(path)
        audit.note("ward-7", "classify", ["m1"], ["fever", "pain"])
        audit.close()
    assert path.stat().st_mode & 0o077 == 0
    first, second = map(json.loads, path.read_text().splitlines())
    assert first | {"time": ""} == second | {"time": ""} and "fever" not in path.read_text()
    assert first["sha256"] == [hashlib.sha256(text).hexdigest() for text in (b"fever", b"pain")]
    with pytest.raises(UserError):
        Audit(tmp_path / "none" / "audit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, "--token-file"),
        ({"host": "::"}, "--token-file"),
        ({"host": "hospital.example"}, "--token-file"),
        ({"max_body": 0}, "--max-body"),
        ({"rate": 0}, "--rate"),
        ({"tls_key": Path("key")}, "both"),
        ({"tls_key": Path("no"), "tls_certificate": Path("no")}, "PEM"),
        ({}, "no model is named"),
        ({"artifacts": Path("no-such-folder")}, "no folder"),
    ],
)
def test_servers_that_are_not_started(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        serve(**options)


def test_models_have_names_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="that name"):
        serve(str(tmp_path), f"{tmp_path.name}={tmp_path}")
    with pytest.raises(UserError, match="is no folder"):
        serve("x=/no/such/folder")
