"""What stands before the application: who may ask, how much, how fast, and what a stranger never gets to see.

It is the outermost layer (ASGI), so that a request that is refused has cost next to nothing, and no error leaves it with
anything in it that a client has sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
import time
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

from uvicorn.protocols.http.h11_impl import H11Protocol

from posology import console
from posology.errors import UserError
from posology.ship.serve.page import POLICY

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_SECONDS = 10.0
"""A client must have sent its headers after so many seconds, and its body after so many more."""
_SHORTEST_TOKEN = 16
_CLIENTS = 10_000  # whose rates are known at a time
_BODIES = 16  # of the greatest size, that are held at a time
_LOCAL = ("localhost", "127.0.0.1", "[::1]")

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""Of every answer."""


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        detail: a sentence for whoever sent it, with nothing in it that was sent.
        headers: further ones.
        problems: places in the request, where there are several.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: dict[str, str] | None = None,
        problems: list[dict[str, str]] | None = None,
    ):
        self.status, self.detail, self.headers, self.problems = status, detail, headers or {}, problems
        super().__init__(detail)

    def body(self) -> bytes:
        """As JSON."""
        return json.dumps({"detail": self.detail, **({"problems": self.problems} if self.problems else {})}).encode()


def busy(seconds: int, detail: str = "too much waits already") -> Refusal:
    """429: again after so many seconds."""
    return Refusal(429, f"{detail}; try again in {seconds} s", {"retry-after": str(seconds)})


class Tokens:
    """Bearer tokens by name.

    Args:
        path: a file with a token in each line, a name before it where there are several; `#` begins a comment.

    Raises:
        UserError: the file cannot be read, or holds no good token.
    """

    def __init__(self, path: Path):
        try:
            lines = path.read_text(encoding="ascii").splitlines()
            if path.stat().st_mode & 0o077:
                console.say(f"{path}: others may read it; `chmod 600` keeps it to its owner")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot be read ({type(error).__name__})", "Give a file of tokens", path) from error
        self._names: dict[bytes, str] = {}
        for number, line in enumerate(lines, start=1):
            parts = line.partition("#")[0].split()
            if not parts:
                continue
            if len(parts) > 2 or len(parts[-1]) < _SHORTEST_TOKEN:
                raise UserError(
                    f"is no token of at least {_SHORTEST_TOKEN} characters, with or without a name before it",
                    "Make one with `openssl rand -hex 32`",
                    f"{path}:{number}",
                )
            name = parts[0] if len(parts) == 2 else f"token-{len(self._names) + 1}"
            self._names[_digest(parts[-1].encode())] = name
        if not self._names:
            raise UserError("holds no token", "Make one with `openssl rand -hex 32`", path)

    def name(self, given: bytes) -> str | None:
        """Whose token it is; None for nobody's. It takes as long for any token of its length."""
        digest, found = _digest(given), None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


class Rate:
    """So many requests a minute for each client, as many at once after a pause.

    Args:
        per_minute: how many.
        clock: in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self._most, self._each, self._clock = per_minute, 60 / per_minute, clock
        self._free: OrderedDict[str, float] = OrderedDict()  # when all that a client has used will be free again

    def take(self, client: str) -> int | None:
        """Counts a request; seconds to wait, where it is one too many."""
        now = self._clock()
        free = max(self._free.pop(client, now), now)
        over = free + self._each - now - self._most * self._each
        self._free[client] = free if over > 1e-9 else free + self._each
        if len(self._free) > _CLIENTS:
            self._free.popitem(last=False)
        return max(1, math.ceil(over)) if over > 1e-9 else None


class Settings(NamedTuple):
    """Of `Guard`.

    Attributes:
        tokens: who may ask; None for anybody who reaches the server, which then listens on loopback only.
        max_body: bytes.
        rate: of each client; None for any.
        public: paths that need no token and have no rate.
        https: whether the server speaks TLS.
        body_seconds: that a client has to send a request.
    """

    tokens: Tokens | None = None
    max_body: int = 2**21
    rate: Rate | None = None
    public: frozenset[str] = frozenset()
    https: bool = False
    body_seconds: float = BODY_SECONDS


class Guard:
    """Stands around the application.

    Args:
        app: what answers.
        settings: what it may be asked.
        watch: is told of every answer: the template of its path, method, status, seconds, and why it was refused, if so.
    """

    def __init__(self, app: App, settings: Settings, watch: Callable[[str, str, int, float], None] = lambda *_: None):
        self._app, self._settings, self._watch = app, settings, watch
        self._headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        if settings.https:
            self._headers.append((b"strict-transport-security", b"max-age=31536000"))
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0

        async def send_safely(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in self._headers if one[0] not in own)]
            await send(message)

        try:
            await self._pass(scope, receive, send_safely)
        except _Gone:
            pass
        except Exception as error:
            if not status:
                await _refuse(error if isinstance(error, Refusal) else _failed(error), send_safely)
            elif not isinstance(error, Refusal):
                _failed(error)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._watch(route, scope["method"], status, time.perf_counter() - begin)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self._check(scope, headers)
        length = _length(headers, self._settings.max_body)
        if self._held + length > _BODIES * self._settings.max_body:
            raise busy(1)
        self._held += length
        try:
            body = await self._body(receive)
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._held -= length

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Raises Refusal for who may not ask."""
        settings = self._settings
        who = scope["client"][0] if scope.get("client") else "local"
        if settings.tokens is None:
            # A page of another site may give its own name this machine's address, and then read what it is answered.
            host = headers.get(b"host", b"").decode("latin-1").lower()
            if host.removesuffix(":" + host.rpartition(":")[2]) not in _LOCAL and host not in _LOCAL:
                raise Refusal(403, "without a token the server answers under the name localhost only")
        elif scope["path"] not in settings.public:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            name = settings.tokens.name(token.strip()) if scheme.lower() == b"bearer" else None
            if name is None:
                raise Refusal(401, "a bearer token is needed", {"www-authenticate": "Bearer"})
            who = name
        scope.setdefault("state", {})["who"] = who
        if settings.rate is not None and scope["path"] not in settings.public:
            wait = settings.rate.take(who)
            if wait is not None:
                raise busy(wait, "more requests a minute than are allowed")
        if scope["method"] in ("POST", "PUT", "PATCH"):
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                raise Refusal(415, "the body must be application/json")

    async def _body(self, receive: Receive) -> bytes:
        """The whole body, which must come in time and be no larger than it may."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._settings.max_body:
                        raise _too_large(self._settings.max_body)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, "the body did not come in time", {"connection": "close"}) from None


class _Gone(Exception):
    """The client has closed the connection."""


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body has more than {most} bytes", {"connection": "close"})


def _length(headers: dict[bytes, bytes], most: int) -> int:
    """What the body may take: as it says, or as much as it may. Raises Refusal where that is too much."""
    given = headers.get(b"content-length")
    if given is None:
        return most if b"transfer-encoding" in headers else 0
    if not given.isdigit():
        raise Refusal(400, "Content-Length is no number", {"connection": "close"})
    if len(given) > 20 or int(given) > most:
        raise _too_large(most)
    return int(given)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body in one piece, and then what comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(refusal: Refusal, send: Send) -> None:
    body = refusal.body()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": sent})
    await send({"type": "http.response.body", "body": body})


def _failed(error: Exception) -> Refusal:
    """Logs where something went wrong. The message of an error may quote a text, and is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    console.say(f"a request failed: {type(error).__name__}{where}")
    return Refusal(500, "the server failed; its log says where")


class PromptProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose headers do not come in time: uvicorn would wait for ever."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """More of a request."""
        super().data_received(data)
        if self._between() and not self.transport.is_closing() and self.conn.trailing_data[0]:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _between(self) -> bool:
        """Whether no request is known in full up to its body."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(BODY_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self._between():
            self.transport.close()
