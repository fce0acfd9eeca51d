"""The connection to a Ray cluster: found and reached in seconds, or an error that says what is wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from posology.errors import UserError

TIMEOUT_SECONDS = 10.0
_LOCAL_STORE_BYTES = 100_000_000
"""Object store of a cluster of this machine alone: events and paths go through it, no weights and no texts."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Yields the module `ray`, connected; nothing is sent to Ray's makers.

    A connection that this process has already is used, and left open.

    Args:
        address: `HOST:PORT`, or `auto`; None for RAY_ADDRESS, or else a cluster of this machine alone.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached, or runs other versions.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # Keeps Ray's services on the loopback interface; it has no other switch for that, on any system.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed", 'Run pip install "posology[ray]"', "--address") from None
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _LOCAL_STORE_BYTES}
    else:
        address = _reachable(address)
    with _own_handlers():
        try:
            ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"the cluster does not take this driver ({_one_line(error)})",
                "Run on a node of the cluster, with the same versions of Python and Ray",
                address,
            ) from error
    try:
        yield ray
    finally:
        with _own_handlers():
            ray.shutdown()


def _reachable(address: str) -> str:
    """The address as HOST:PORT; Ray itself would try for two minutes, and end the process then.

    Raises:
        UserError: nothing answers there.
    """
    if address.startswith("ray://"):
        raise UserError(
            "is an address of Ray Client, whose connection ends with the first break of the network",
            "Run on a node of the cluster with --address auto (`ray job submit` does)",
            address,
        )
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:  # as Ray will: it looks up `auto`, and puts this machine's own address for localhost
        found = canonicalize_bootstrap_address_or_die(address)
        host, _, port = found.rpartition(":")
        number = int(port)
    except ConnectionError as error:
        raise UserError(
            "no Ray cluster runs on this machine", "Start one with `ray start`, or give HOST:PORT", address
        ) from error
    except ValueError as error:
        raise UserError("is no address of a cluster", "Give HOST:PORT of its head, or auto", address) from error
    try:
        socket.create_connection((host, number), timeout=TIMEOUT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"nothing answers there ({_one_line(error)})",
            "Check that the cluster runs (`ray status`) and that its port is open to this machine",
            found,
        ) from error
    return found


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Puts back what the block does to SIGTERM: Ray would end the process without a word to whoever drives it."""
    mine = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if mine else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
