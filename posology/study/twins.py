"""Tasks for the small twins of the paper's studies: notes of a hospital that never was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from posology import console
from posology.errors import UserError
from posology.files import check_free
from posology.study.places import nearest

PATIENTS = 120
SEED = 7
_MARK = ".posology-twins"


def prepare_twin_tasks(out: Path, tasks: Iterable[str], *, patients: int = PATIENTS) -> Path:
    """Writes a synthetic hospital and prepares clinical tasks from it; what is there already is kept.

    Args:
        out: the folder; may hold what an earlier call made, whole or in part. The tasks come to lie in it under their
            names, the hospital in `hospital/`.
        tasks: names such as `mimic-mp` (see `posology tasks`).
        patients: of the hospital.

    Returns:
        `out`, to be given to `read_study` as `tasks`.

    Raises:
        UserError: no such task, or `out` holds something else, or a hospital of another size.
    """
    from posology.synthetic.command import MARKER, synthesise
    from posology.tasks.clinical import TASKS
    from posology.tasks.generic import prepare
    from posology.tasks.prepared import TASK_FILE

    wanted = list(dict.fromkeys(tasks))
    for task in wanted:
        if task not in TASKS:
            mend = nearest(task, TASKS) or "Choose one of these"
            raise UserError(f"the synthetic hospital has no such task; it has {', '.join(TASKS)}", mend, task)
    out = Path(out)
    if not (out / _MARK).is_file():
        check_free(out, marker=_MARK, overwrite=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()
    hospital = out / "hospital"
    if not (hospital / MARKER).is_file():
        shutil.rmtree(hospital, ignore_errors=True)
        synthesise(out=hospital, patients=patients, seed=SEED)
    there = json.loads((hospital / MARKER).read_text(encoding="utf-8"))["patients"]
    if there != patients:
        raise UserError(f"its hospital has {there} patients, and {patients} are asked for", "Name another folder", out)
    for task in wanted:
        if not (out / task / TASK_FILE).is_file():
            console.say(f"preparing {task}")
            prepare(task, hospital / TASKS[task].corpus, out / task)  # type: ignore[arg-type]
    return out
