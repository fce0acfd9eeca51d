"""Prediction over many files on a Ray cluster: each file one piece of work, each worker one copy of the model.

Only names of files and counts go through Ray, no texts: workers read the inputs and write the answers themselves, in
folders that all nodes share.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from posology import console
from posology.errors import UserError
from posology.files import sha256, staged_file, write_json
from posology.study.cluster import LOOK_SECONDS, proofs
from posology.study.connection import connected
from posology.study.resources import Resources
from posology.study.worker import check_shared, prepare

FAILED = "failed.jsonl"
_MADE_BY = "predictions.json"
_ANSWERED = "answered.txt"
"""Which file each answer is to, and how that was then: lines of JSON, of which the last with a name counts."""
_SUFFIXES = (".jsonl", ".csv", ".parquet")
_ATTEMPTS = 3
"""How often a file that takes its worker with it is begun; Ray itself would not stop."""


def predict_files(
    artifact: Path | str,
    inputs: Sequence[Path | str],
    out: Path | str,
    *,
    address: str | None = None,
    cpus: float | None = None,
    gpus: float = 0,
    memory: int | None = None,
    suffix: str = ".jsonl",
    text: str | None = None,
    id: str | None = None,
    text_pair: str | None = None,
    encoding: str = "utf-8",
    quoting: bool = True,
    drop_empty: bool = False,
    backbone: str | None = None,
    with_text: bool = False,
) -> dict[str, Any]:
    """Predicts for many files (or folders of .txt files), each into a file of its own below `out`, as `predict` does.

    Called again, it does what is missing: files without answers, and those that have changed since, by their sizes and
    times. Answers appear as a whole or not at all. Files that cannot be read are listed in `failed.jsonl` (`input`,
    `problem`), and the others done.

    Args:
        artifact: a folder that `train` wrote.
        inputs: what `predict` takes; no two with the same name before the ending, here or in earlier calls.
        out: a folder; may be there from an earlier call with the same artifact and options.
        address: of the cluster: HOST:PORT, or auto; by default one is started on this machine.
        cpus: processors of one worker.
        gpus: GPUs of one worker.
        memory: bytes of one worker.
        suffix: of the answers: .jsonl, .csv or .parquet.
        text: column of the text, as in `predict`, and so are the others below.
        id: column of identifiers; by default the one called id.
        text_pair: column of the second text.
        encoding: of the inputs.
        quoting: whether quotes mean something in CSV and TSV.
        drop_empty: leave out rows without text.
        backbone: where the backbone is, if not where it was in training.
        with_text: write the texts of entities too.

    Returns:
        `out`, `files`, of these `done` now, `skipped` since they were done before, and `failed`; `documents` done now.

    Raises:
        UserError: the cluster cannot be reached, the artifact cannot be read, or `out` holds answers of another one, or to
            another file of the same name.
    """
    out, folder = Path(out), Path(artifact)
    if suffix not in _SUFFIXES:
        raise UserError(f"{suffix!r} is no ending of answers", f"Give one of {', '.join(_SUFFIXES)}", "suffix")
    resources = Resources(cpus, gpus, memory)
    reading = {"text": text, "id": id, "text_pair": text_pair}
    options = {"encoding": encoding, "quoting": quoting, "drop_empty": drop_empty, "with_text": with_text}
    targets = _targets([Path(path).absolute() for path in inputs], out.absolute(), suffix)
    _check_made_by(out, folder, {**reading, **options, "suffix": suffix})
    answered = _read_answered(out)
    states = {source: _state(source) for source in targets}  # before they are read: what is written meanwhile is seen
    _check_same_inputs(targets, answered)
    waiting = [
        (source, target)
        for source, target in targets.items()
        if not target.exists() or answered.get(target.name, {}).get("state") != states[source]
    ]
    for _source, target in waiting:
        answered.pop(target.name, None)
    _write_answered(out, answered)
    problems: dict[str, str | None] = {}
    documents = 0
    for _source, target in waiting:  # left by a call that was killed
        _tried(target).unlink(missing_ok=True)
    if waiting:
        with connected(address) as ray, proofs() as proof, console.progress("predicting", len(waiting)) as advance:
            while not (slots := resources.slots(ray)):
                time.sleep(LOOK_SECONDS)
            settings = {"artifact": folder.absolute(), "backbone": backbone, "columns": reading, "options": options}
            worker = {"proof": proof(out), "threads": resources.threads, "gpu": gpus > 0}
            for row in _rows(waiting, min(slots, len(waiting)), resources, settings | worker):
                problems[row["input"]] = row["problem"]
                if row["problem"] is None:
                    source = Path(row["input"])
                    _note_answered(out, targets[source].name, source, states[source])
                documents += row["documents"]
                advance()
    failed = {source: problem for source, problem in problems.items() if problem is not None}
    _list_failed(out, failed)
    done = len(waiting) - len(failed)
    return {
        "out": str(out),
        "files": len(targets),
        "done": done,
        "skipped": len(targets) - len(waiting),
        "failed": len(failed),
        "documents": documents,
    }


def _rows(
    waiting: Sequence[tuple[Path, Path]], workers: int, resources: Resources, settings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Does the files; yields for each, as it ends, `input`, `problem` and `documents`."""
    try:
        import ray.data
    except ImportError:
        raise UserError("Ray Data is not installed", 'Run pip install "posology[ray]"', "--address") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it has to say is in `failed.jsonl`
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a file may take hours
    with ray.data.DataContext.current(context):
        items = [{"input": str(source), "out": str(target)} for source, target in waiting]
        predictor: Any = _FilePredictor
        found = ray.data.from_items(items, override_num_blocks=len(items)).map(
            predictor,
            fn_constructor_kwargs={"settings": settings},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=2),
            **resources.options,
        )
        yield from found.iter_rows()


class _FilePredictor:
    """What a worker holds: the model, loaded when the first file comes."""

    def __init__(self, settings: dict[str, Any]):
        prepare(settings["threads"], settings["gpu"])
        self._settings = settings
        self._readers: Any = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answers one file."""
        result: dict[str, Any] = {"input": row["input"], "problem": None, "documents": 0}
        try:
            check_shared(self._settings["proof"])
            with _counted(Path(row["out"])):
                result["documents"] = self._predict(Path(row["input"]), Path(row["out"]))
        except UserError as error:
            result["problem"] = str(error)
        except Exception as error:  # the text of such an error may quote anything
            result["problem"] = f"{type(error).__name__} while it was predicted"
        return result

    def _predict(self, source: Path, target: Path) -> int:
        from posology.corpus.tabular import Columns
        from posology.engine.artifact import load
        from posology.engine.inputs import Inputs
        from posology.engine.journal import Journal
        from posology.engine.outputs import Table
        from posology.engine.predict import check_pairs, predict_documents, schema_of
        from posology.engine.shared import Readers

        settings, options = self._settings, dict(self._settings["options"])
        if self._readers is None:
            self._readers = Readers([load(settings["artifact"], backbone=settings["backbone"])])
        (model,) = self._readers.models
        with_text = options.pop("with_text")
        inputs = Inputs(source, Columns(**settings["columns"]), **options, strict=True, guess_id=True)
        check_pairs(model, inputs.paired, settings["artifact"])
        names = [settings["artifact"].name]
        # Artifact and options are those of the whole folder. A file whose worker died goes on where it was.
        with Journal(target, {"the input": inputs.fingerprint()[0]}, overwrite=True) as journal:
            table = Table(target, schema_of([model], names, with_text))
            return int(predict_documents(self._readers, names, inputs, table, journal, with_text)["documents"])


@contextlib.contextmanager
def _counted(target: Path) -> Iterator[None]:
    """Counts beside the answers how often they were begun, until the block ends.

    Raises:
        UserError: workers died of it before.
    """
    tried = _tried(target)
    with open(tried, "ab") as stream:
        stream.write(b".")
    try:
        if tried.stat().st_size > _ATTEMPTS:
            raise UserError(f"{_ATTEMPTS} workers died of it", "Cut it into smaller files, or give more memory", target)
        yield
    finally:
        tried.unlink(missing_ok=True)


def _tried(target: Path) -> Path:
    return target.with_name(f".{target.name}.tried")


def _targets(inputs: Sequence[Path], out: Path, suffix: str) -> dict[Path, Path]:
    """Where the answers to each input go: by its name, so that a later call finds them whatever else it is given."""
    targets: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for source in inputs:
        if not source.exists():
            raise UserError("does not exist", "Check the path", source)
        bare = source.with_suffix("") if source.suffix == ".gz" else source
        target = out / f"{bare.name if source.is_dir() else bare.stem}{suffix}"
        if target.name == FAILED:
            raise UserError(f"its answers would be called {FAILED}, as the list of failures is", "Rename it", source)
        if taken.setdefault(target, source) != source:
            raise UserError(f"has the name of {taken[target]}", "Rename one, or give them another --out", source)
        targets[source] = target
    if not targets:
        raise UserError("there are no files to predict for", "Name at least one", "inputs")
    return targets


def _check_made_by(out: Path, artifact: Path, options: dict[str, Any]) -> None:
    """Notes what makes the answers in a folder.

    Raises:
        UserError: something else has made those that are there.
    """
    if not artifact.is_dir():
        raise UserError("is no artifact", "Name a folder that `posology train` wrote", artifact)
    files = {path.name: sha256(path) for path in sorted(artifact.iterdir()) if path.is_file()}
    made = {"artifact": files, "options": options}
    if out.is_dir() and any(path.name != _MADE_BY for path in out.iterdir()):
        try:
            before = json.loads((out / _MADE_BY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError("is not empty, and holds no predictions", "Name another folder", out) from None
        if before != made:
            raise UserError("holds predictions of another artifact, or with other options", "Name another folder", out)
        return
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(out / _MADE_BY, made)


def _state(source: Path) -> str:
    """Of a file, or of all texts in a folder: equal as long as names, sizes and times are."""
    paths = sorted(source.glob("*.txt")) if source.is_dir() else [source]
    found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _check_same_inputs(targets: dict[Path, Path], answered: dict[str, dict[str, str]]) -> None:
    """Raises UserError where answers to another file would be replaced: that they are of this one cannot be seen."""
    for source, target in targets.items():
        other = answered.get(target.name, {}).get("input", str(source))
        if other != str(source) and target.exists():
            raise UserError(
                f"its answers would take the place of those to {other} in {target}",
                "Rename it, or give another --out",
                source,
            )


def _read_answered(out: Path) -> dict[str, dict[str, str]]:
    """What each answer is to: `input` and `state` by the answer's name."""
    found: dict[str, dict[str, str]] = {}
    path = out / _ANSWERED
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError, KeyError):  # the last one, of a call that was killed
            row = json.loads(line)
            found[row.pop("answers")] = row
    return found


def _write_answered(out: Path, answered: dict[str, dict[str, str]]) -> None:
    with staged_file(out / _ANSWERED) as staging:
        lines = [json.dumps({"answers": name, **row}) for name, row in answered.items()]
        staging.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _note_answered(out: Path, name: str, source: Path, state: str) -> None:
    with open(out / _ANSWERED, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"answers": name, "input": str(source), "state": state}) + "\n")


def _list_failed(out: Path, failed: dict[str, str]) -> None:
    """Writes the list of failures of this call, or removes that of the last one."""
    (out / FAILED).unlink(missing_ok=True)
    if not failed:
        return
    with staged_file(out / FAILED) as staging:
        lines = [json.dumps({"input": source, "problem": failed[source]}, ensure_ascii=False) for source in failed]
        staging.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    console.say(f"{len(failed):,} files failed: {out / FAILED} says why")
