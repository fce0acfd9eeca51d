"""What travels through an URL arrives whole, and what workers check before they begin."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

if importlib.util.find_spec("fsspec") is None:
    pytest.skip("fsspec is not installed", allow_module_level=True)

from posology.engine.checkpoint import folder_of, left_behind
from posology.errors import UserError
from posology.study.cluster import proofs
from posology.study.storage import Storage, scratch
from posology.study.worker import await_release


@pytest.fixture(params=["memory", "file"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    yield Storage("memory://bucket/runs/" if request.param == "memory" else f"file://{tmp_path}/bucket")
    if request.param == "memory":
        import fsspec

        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def write_checkpoint(out: Path, content: str) -> None:
    folder_of(out).mkdir(parents=True, exist_ok=True)
    partial = folder_of(out) / "new"
    partial.write_text(content)
    partial.replace(folder_of(out) / "state.safetensors")


def test_an_artifact_comes_back_and_its_checkpoint_goes(storage: Storage, tmp_path: Path) -> None:
    out, other = tmp_path / "k", tmp_path / "other" / "k"
    assert not storage.get_artifact("k", other) and not storage.get_checkpoint("k", other)
    write_checkpoint(out, "state")
    storage.put_checkpoint(out, "k")
    assert storage.get_checkpoint("k", other) and left_behind(other)
    (out / "nested").mkdir(parents=True)
    (out / "posology.json").write_text("{}")
    (out / "nested" / "weights").write_bytes(b"\0" * 1000)
    storage.put_artifact(out, "k")
    assert not storage.get_checkpoint("k", tmp_path / "third")
    assert storage.get_artifact("k", other)
    assert sorted(path.name for path in other.rglob("*") if path.is_file()) == ["posology.json", "weights"]
    assert (other / "nested" / "weights").read_bytes() == b"\0" * 1000


def test_half_an_artifact_is_none(storage: Storage, tmp_path: Path) -> None:
    out = tmp_path / "k"
    out.mkdir()
    (out / "weights").write_bytes(b"1")
    with pytest.raises(UserError, match="FileNotFoundError"):  # the worker dies before it writes posology.json
        storage.put_artifact(out, "k")
    assert not storage.get_artifact("k", tmp_path / "other")


def test_checkpoints_follow_while_a_run_trains(storage: Storage, tmp_path: Path) -> None:
    out, other = tmp_path / "k", tmp_path / "other" / "k"
    state = folder_of(other) / "state.safetensors"
    with storage.mirrored({"k": out}, every=0.02):
        write_checkpoint(out, "first")
        end = time.monotonic() + 10
        while not storage.get_checkpoint("k", other) and time.monotonic() < end:
            time.sleep(0.01)
        assert state.read_text() == "first"
        write_checkpoint(out, "last")
    assert storage.get_checkpoint("k", other) and state.read_text() == "last"
    assert not list(tmp_path.glob(".*upload"))


def test_urls_that_nothing_opens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nonsense"):
        Storage("nonsense://bucket")
    (tmp_path / "file").write_text("")
    write_checkpoint(tmp_path / "k", "state")
    below = Storage(f"file://{tmp_path}/file/below")
    with pytest.raises(UserError, match="cannot be read or written"):
        below.put_checkpoint(tmp_path / "k", "k")


def test_a_worker_waits_for_the_one_before(tmp_path: Path) -> None:
    out = tmp_path / "k"
    await_release(out)  # nobody was there
    folder_of(out).mkdir()
    with open(folder_of(out) / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        begin = time.monotonic()
        await_release(out, seconds=0.3)  # in vain; training will say so
        assert time.monotonic() - begin >= 0.3
        timer = threading.Timer(0.2, fcntl.flock, (held, fcntl.LOCK_UN))
        timer.start()
        await_release(out)
        assert timer.finished.is_set()


def test_proofs_and_scratch_leave_nothing(tmp_path: Path) -> None:
    with proofs() as leave, proofs(needed=False) as nothing:
        path = leave(tmp_path / "runs")
        assert path is not None and path.is_file() and leave(tmp_path / "runs") == path
        assert nothing(tmp_path / "none") is None and not (tmp_path / "none").exists()
    assert not list((tmp_path / "runs").iterdir())
    with scratch() as folder:
        assert os.stat(folder).st_mode & 0o077 == 0
    assert not folder.exists()
