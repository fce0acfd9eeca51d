"""Runs in TensorBoard: a folder for each run, with its curves, its results and its hyper-parameters (HParams)."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from posology import files
from posology.errors import UserError
from posology.report.tracked import TrackedRun


class EventFiles:
    """A folder that TensorBoard reads.

    A run's folder holds one event file. What is new is appended to it, since TensorBoard, which may be reading along,
    goes on from where it was; only where the ledger has something else now, another file takes its place.

    Args:
        folder: is made where it is missing.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            mend = 'Run pip install "posology[track]"'
            raise UserError("TensorBoard is not installed", mend, "--tensorboard") from None
        self._folder = Path(folder)

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._folder)

    def put(self, run: TrackedRun) -> bool:
        """Makes the run's folder hold what is known of it now; False where it did already.

        Raises:
            UserError: it cannot be written.
        """
        folder = self._folder.joinpath(*map(_safe, run.study.split("/")), f"{_safe(run.name)}-{run.key[:8]}")
        path = folder / f"events.out.tfevents.{run.begun:.0f}.{run.key}"  # the beginning is how TensorBoard knows them
        content = _content(run)
        known = path.read_bytes() if path.is_file() else b""
        if content == known:
            return False
        if known and content.startswith(known):  # also where an earlier follower was killed while it wrote
            with path.open("ab") as file:
                file.write(content[len(known) :])
        else:
            with files.staged_file(path) as staging:
                staging.write_bytes(content)
        return True


def _content(run: TrackedRun) -> bytes:
    """The events of a run: evaluations in their order, and once it has ended what came out."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    def scalar(step: int, time: float, name: str, value: float) -> Any:
        return Event(wall_time=time, step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    points = [(point.step, point.time, name, point.value) for name, points in run.curves.items() for point in points]
    events: list[Any] = [Event(wall_time=run.begun, file_version="brain.Event:2")]
    events += [scalar(*point) for point in sorted(points)]
    if run.ended is not None:
        last = max((point[0] for point in points), default=0)
        first, end = (Event(wall_time=run.ended, summary=Summary(value=[value])) for value in _session(run))
        events += [first, *(scalar(last, run.ended, name, value) for name, value in run.metrics.items()), end]
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    return buffer.getvalue()


def _session(run: TrackedRun) -> tuple[Any, Any]:
    """What the HParams page reads of a run that has ended. TensorBoard's own functions for it want TensorFlow."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    start = SessionStartInfo(start_time_secs=run.begun)
    for name, value in run.parameters.items():
        kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        setattr(start.hparams[name], f"{kind}_value", value)
    status = api_pb2.STATUS_SUCCESS if run.state == "done" else api_pb2.STATUS_FAILURE
    end = SessionEndInfo(status=status, end_time_secs=run.ended or 0)
    contents = {
        metadata.SESSION_START_INFO_TAG: HParamsPluginData(session_start_info=start),
        metadata.SESSION_END_INFO_TAG: HParamsPluginData(session_end_info=end),
    }
    first, last = (
        Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
        for tag, content in contents.items()
    )
    return first, last


def _safe(name: str) -> str:
    """A name of one folder."""
    return re.sub(r"[^\w.+=:-]+", "_", name).lstrip(".") or "_"
