"""Artifacts and checkpoints of runs in a place that only an URL names, for clusters without a shared folder.

    URL/KEY/                a finished artifact; `posology.json` comes last, and without it there is none
    URL/KEY.checkpoint/     the last checkpoint of a run that is not done

Workers train in a folder of their own, take from here what an earlier attempt left, and bring what they have made.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from posology import console
from posology.engine.artifact import RECORD
from posology.engine.checkpoint import folder_of
from posology.errors import UserError
from posology.files import staged_folder

SYNC_SECONDS = 10.0
"""How often a new checkpoint is looked for."""
_STATE = "state.safetensors"


class Storage:
    """A folder behind an URL (`s3://...`, `file:///...`, whatever fsspec opens) or a path.

    Raises:
        UserError: nothing opens such an URL here.
    """

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._files, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # their messages name the protocol and the package that opens it
            raise UserError(
                f"cannot be opened ({error})", "Name an URL that fsspec knows, or install what it asks for", url
            ) from error
        self._root = root.rstrip("/")
        self._writing = threading.Lock()

    def put_artifact(self, folder: Path, key: str) -> None:
        """Copies a finished artifact here and drops the run's checkpoint.

        Raises:
            UserError: it cannot be written.
        """
        with self._writing, self._told():
            target = f"{self._root}/{key}"
            self._files.makedirs(target, exist_ok=True)
            paths = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
            for path in [*sorted(paths), folder / RECORD]:
                name = f"{target}/{path.relative_to(folder).as_posix()}"
                self._files.makedirs(name.rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(path), name)
            self._drop(key)

    def drop_checkpoint(self, key: str) -> None:
        """Forgets the checkpoint of a run that is not to be continued.

        Raises:
            UserError: it cannot be removed.
        """
        with self._writing, self._told():
            self._drop(key)

    def _drop(self, key: str) -> None:
        if self._files.exists(self._checkpoint(key)):
            self._files.rm(self._checkpoint(key), recursive=True)

    def get_artifact(self, key: str, folder: Path) -> bool:
        """Copies a finished artifact into a new folder; False where there is none.

        Raises:
            UserError: it cannot be read, or the folder is taken by something else.
        """
        source = f"{self._root}/{key}"
        with self._told():
            if not self._files.exists(f"{source}/{RECORD}"):
                return False
            with staged_folder(folder, marker=RECORD, overwrite=True) as staging:
                for name in self._files.find(source):
                    path = staging / name.removeprefix(source).lstrip("/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._files.get_file(name, str(path))
        return True

    def put_checkpoint(self, out: Path, key: str) -> None:
        """Copies the checkpoint of a run that trains into `out` here, where there is one; what was here stays until then.

        Raises:
            UserError: it cannot be written.
        """
        state, frozen = folder_of(out) / _STATE, out.with_name(f".{out.name}.upload")
        with self._writing:
            try:
                os.link(state, frozen)  # a new checkpoint takes the old one's place while this one is read
            except FileNotFoundError:
                return
            try:
                with self._told():
                    target = self._checkpoint(key)
                    self._files.makedirs(target, exist_ok=True)
                    self._files.put_file(str(frozen), f"{target}/{_STATE}.partial")
                    self._files.mv(f"{target}/{_STATE}.partial", f"{target}/{_STATE}")
            finally:
                frozen.unlink()

    def get_checkpoint(self, key: str, out: Path) -> bool:
        """Puts the checkpoint of a run where one that trains into `out` looks for it; False where there is none.

        Raises:
            UserError: it cannot be read.
        """
        folder = folder_of(out)
        with self._told():
            if not self._files.exists(f"{self._checkpoint(key)}/{_STATE}"):
                return False
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files.get_file(f"{self._checkpoint(key)}/{_STATE}", str(folder / _STATE))
        return True

    @contextlib.contextmanager
    def mirrored(self, outs: dict[str, Path], every: float = SYNC_SECONDS) -> Iterator[None]:
        """For the time of the block, and once more after it, brings new checkpoints here.

        Args:
            outs: for each key the folder that its run writes.
            every: seconds.
        """
        known: dict[str, int] = {}
        end = threading.Event()

        def sync() -> None:
            for key, out in outs.items():
                with contextlib.suppress(FileNotFoundError):  # none yet, or the run is done
                    changed = (folder_of(out) / _STATE).stat().st_mtime_ns
                    if known.get(key) == changed:
                        continue
                    try:
                        self.put_checkpoint(out, key)
                        known[key] = changed
                    except UserError as error:  # the next one may come through; training need not stop for it
                        console.say(str(error))

        def follow() -> None:
            while not end.wait(every):
                sync()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            sync()

    def _checkpoint(self, key: str) -> str:
        return f"{self._root}/{key}.checkpoint"

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong with the storage, in words. Every backend has errors of its own; `UserError` passes."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"cannot be read or written ({type(error).__name__})",
                "Check the URL, what may be done there, and the network",
                self.url,
            ) from error


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the time of the block, for its owner only."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="posology-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
