"""`posology serve`."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from posology import console
from posology.errors import UserError


def serve(
    *models: str,
    backend: Literal["torch", "onnx"] = "torch",
    artifacts: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    token_file: Path | None = None,
    audit: Path | None = None,
    max_body: int = 2**21,
    max_waiting: int = 2**16,
    timeout_seconds: float = 30.0,
    rate: int | None = None,
    tls_certificate: Path | None = None,
    tls_key: Path | None = None,
) -> dict[str, Any]:
    """Answers over HTTP with any number of models, those of one backbone on one copy of it in memory.

    There is a page to try them at /, and the API is described at /openapi.json. Models of the methods lora, rslora, ia3
    and head share their backbone; others (full, prefix ...) bring their own. The server listens on this machine alone
    unless --host says otherwise, which needs --token-file. It ends on Ctrl-C or SIGTERM, when what it has begun is done.

    Args:
        models: artifacts, each a folder, or NAME=FOLDER; a folder's own name is the model's.
        backend: torch, or onnx for folders that `posology export` wrote.
        artifacts: a folder of artifacts, which may be added while it runs (PUT /v1/models/NAME).
        host: the address that it listens on.
        port: 0 for any that is free.
        token_file: tokens that requests must bring (Authorization: Bearer ...), one in each line, after a name if there are
            several.
        audit: a file that gets a line for each request: who, when, which models, SHA-256 of the texts.
        max_body: bytes of a request.
        max_waiting: word pieces that may wait, of all requests; what comes then is told to come again (429).
        timeout_seconds: a request that took longer is not answered (504).
        rate: requests a minute that each client may send; any number if not given.
        tls_certificate: a file in PEM format, for HTTPS.
        tls_key: its key.

    Returns:
        `address`, and how many `requests` were answered.

    Raises:
        UserError: a model cannot be loaded, or the server cannot be started so.
    """
    _check(host, token_file, tls_certificate, tls_key, max_body, max_waiting, timeout_seconds, rate)
    folders = _named(models, artifacts)
    # The threads of a product sleep between products: others, which take and cut texts, need the cores meanwhile.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
    import uvicorn

    from posology.ship.serve.app import Service, create_app
    from posology.ship.serve.audit import Audit
    from posology.ship.serve.limits import Guard, PromptProtocol, Rate, Settings, Tokens
    from posology.ship.serve.metrics import Metrics
    from posology.ship.serve.page import files

    metrics = Metrics()
    tokens = Tokens(token_file) if token_file is not None else None
    service = Service(metrics, artifacts, Audit(audit) if audit is not None else None, timeout_seconds)
    settings = Settings(
        tokens,
        max_body,
        Rate(rate) if rate is not None else None,
        frozenset({*files(), "/healthz", "/readyz"}),
        tls_certificate is not None,
    )
    guard = Guard(create_app(service, tokens=tokens is not None), settings, metrics.request)
    config = uvicorn.Config(
        guard,
        host=host,
        port=port,
        http=PromptProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=1024,
        timeout_graceful_shutdown=int(timeout_seconds) + 5,
        ssl_certfile=tls_certificate,
        ssl_keyfile=tls_key,
    )
    server = _server(config, service)
    return _run(server, service, folders, backend, max_waiting)


def _run(server: Any, service: Any, folders: dict[str, Path], backend: Any, max_waiting: int) -> dict[str, Any]:
    """Serves until it is told to end; models are loaded meanwhile."""
    problems: list[Exception] = []

    def load() -> None:
        fleet = None
        try:
            from posology.ship.serve.fleet import Fleet

            fleet = Fleet(backend, most_waiting=max_waiting, watch=service.metrics.row)
            for name, folder in folders.items():
                fleet.add(name, folder)
        except Exception as error:
            problems.append(error)
            server.should_exit = True
            return
        service.metrics.follow(lambda: fleet.batcher.waiting, lambda: len(fleet.models()))
        service.fleet = fleet
        many = "1 model" if len(folders) == 1 else f"{len(folders)} models"
        console.say(f"ready: {many} on {len(fleet.backbones)} shared backbone{'s' * (len(fleet.backbones) != 1)}")

    loading = threading.Thread(target=load, name="loading", daemon=True)
    server.when_bound(loading.start)
    with _taken(server):
        server.run()
    if problems:
        raise problems[0]
    if service.fleet is not None:
        service.fleet.close()
    console.say("ended")
    return {"address": server.address, "requests": server.server_state.total_requests}


@contextlib.contextmanager
def _taken(server: Any) -> Iterator[None]:
    """Turns uvicorn's exit where it cannot listen into a sentence."""
    try:
        yield
    except SystemExit:
        raise UserError(
            "the server could not listen there",
            "Choose another --port, or an address of this machine",
            "--host, --port",
        ) from None


def _server(config: Any, service: Any) -> Any:
    """uvicorn's server, which says where it listens, and does not die of the signal that ended it."""
    import uvicorn

    class Server(uvicorn.Server):
        address = ""

        def when_bound(self, then: Any) -> None:
            self._then = then

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            known = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in known}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: Any) -> None:
            service.closing = True
            super().handle_exit(sig, frame)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started and not self.should_exit:
                host, port = self.servers[0].sockets[0].getsockname()[:2]
                scheme = "https" if config.is_ssl else "http"
                self.address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
                console.say(f"listening on {self.address}")
                self._then()

    return Server(config)


def _named(models: tuple[str, ...], artifacts: Path | None) -> dict[str, Path]:
    """Folders by the name of the model."""
    found: dict[str, Path] = {}
    for given in models:
        name, separator, folder = given.partition("=")
        path = Path(folder if separator else given)
        name = name if separator else path.resolve().name
        if name in found:
            raise UserError("two models have that name", "Give one of them another with NAME=FOLDER", name)
        if not path.is_dir():
            raise UserError("is no folder", "Give a folder that `posology train` wrote", path)
        found[name] = path
    if artifacts is not None and not artifacts.is_dir():
        raise UserError("is no folder", "Name a folder of artifacts", artifacts)
    if not found and artifacts is None:
        raise UserError("no model is named", "Give a folder that `posology train` wrote, or --artifacts", "serve")
    return found


def _check(
    host: str,
    token_file: Path | None,
    certificate: Path | None,
    key: Path | None,
    max_body: int,
    max_waiting: int,
    timeout_seconds: float,
    rate: int | None,
) -> None:
    """Raises UserError for what is missing, unsafe or senseless."""
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"needs {', '.join(missing)}", "Run `pip install 'posology[serve]'` with the project's constraints", "serve"
        )
    if token_file is None and not _is_loopback(host):
        raise UserError(
            "others could reach the server there, and it would answer anybody",
            "Name a file of tokens with --token-file (`openssl rand -hex 32` makes one)",
            f"--host {host}",
        )
    for name, value in {
        "--max-body": max_body,
        "--max-waiting": max_waiting,
        "--timeout-seconds": timeout_seconds,
        "--rate": 1 if rate is None else rate,
    }.items():
        if value <= 0:
            raise UserError(f"{value:g} lets nothing through", "Give a number above 0", name)
    if (certificate is None) != (key is None):
        raise UserError("HTTPS needs a certificate and its key", "Give both", "--tls-certificate, --tls-key")
    if certificate is not None and key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"cannot be used ({getattr(error, 'reason', None) or type(error).__name__})",
                "Give a certificate and its key in PEM format, the key without a password",
                certificate,
            ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
