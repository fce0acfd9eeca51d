"""`posology export`: an artifact as one folder that runs without Posology, and what it lost on the way."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedTokenizerBase

from posology import console
from posology.corpus.document import Document
from posology.engine.artifact import RECORD, load, load_for, read_record, source_of
from posology.engine.backbone import load_tokenizer
from posology.engine.baselines import BASELINES
from posology.engine.batch import Batch, collate
from posology.engine.encode import Frame
from posology.engine.model import Model
from posology.engine.precision import Precision
from posology.engine.predictor import Predictor
from posology.engine.record import versions
from posology.engine.virtual import VIRTUAL
from posology.errors import UserError
from posology.files import check_free, sha256, staged_folder, write_json
from posology.ship import gate, onnx_graph, onnx_int8, runtime
from posology.ship.card import export_card
from posology.ship.gate import Limits, Measured
from posology.tasks.prepared import PreparedTask

NETWORK = "model.onnx"
RUNTIME = "posology_runtime.py"
MOST_KEPT = 1 / 3
"""The share of products that may stay in float32 in an int8 export. Products in 8 bits take about a quarter of the time:
with more than a third left, it would be less than twice as fast."""
_MERGED, _ONNX = 1e-5, 1e-4
_SAMPLE_PIECES = 2048
_AUTO = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}


@dataclass
class _Job:
    """An export under way.

    Attributes:
        folder: where it is written.
        record: the artifact's `posology.json`.
        predictor: the artifact, in float32.
        tokenizer: its own.
        documents, ours: generated texts and the artifact's logits for them.
        task, validation, expected: the prepared task, its validation split and the artifact's logits; None, empty without.
        limits: of the gate.
    """

    folder: Path
    record: dict[str, Any]
    predictor: Predictor
    tokenizer: PreTrainedTokenizerBase
    documents: list[Document]
    ours: list[np.ndarray]
    task: PreparedTask | None
    validation: Sequence[Document]
    expected: list[np.ndarray]
    limits: Limits


def export(
    artifact: Path | str,
    *,
    out: Path | str,
    format: Literal["onnx", "safetensors"] = "onnx",
    precision: Literal["fp32", "int8"] = "fp32",
    data: Path | str | None = None,
    max_loss: float = 0.5,
    max_changed: float = 2.0,
    backbone: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes an artifact as a folder that runs without Posology, the adapter merged into the backbone.

    An ONNX folder needs onnxruntime, tokenizers and numpy: `python OUT/posology_runtime.py OUT < texts.jsonl`. A safetensors
    folder is one of transformers. With --data, what the export answers on the validation split is compared with what the
    artifact answers in float32, and it is refused where it loses too much. In int8, layers that hurt stay in float32, as
    long as these do at most a third of the work.

    Args:
        artifact: a folder that `train` wrote.
        out: the folder to make.
        format: onnx, or safetensors for AutoModelFor...from_pretrained.
        precision: fp32, or int8 (ONNX only; needs --data).
        data: a prepared task with the artifact's labels, whose validation split the export is measured on.
        max_loss: points (hundredths) of the task's metric that it may lose.
        max_changed: per cent of labels that may change: of documents, or of words in entities.
        backbone: where the backbone is, if not where it was in training.
        overwrite: replace `out`, if it is an export.

    Returns:
        `out`, `format`, `precision`, `bytes`, `largest_logit_difference` (on generated texts, in float32), with data `gate`
        (see `posology.ship.gate.Measured`), and for int8 `kept_in_fp32`.

    Raises:
        UserError: it cannot be exported so, or loses too much; nothing is written.
    """
    artifact, out = Path(artifact), Path(out)
    record = read_record(artifact)
    _check(artifact, record, format, precision, data, Limits(max_loss, max_changed))
    _check_out(artifact, out, overwrite)
    task = PreparedTask.open(data) if data is not None else None
    model = load(artifact, backbone=backbone) if task is None else load_for(artifact, task, backbone=backbone)
    predictor = _in_float32(model)
    tokenizer = load_tokenizer(source_of(artifact, record, backbone))
    documents = gate.generated(tokenizer, predictor.encoder.max_length, predictor.text_pair)
    validation = task.documents("validation") if task is not None else []
    ours = predictor.answer(documents).logits
    expected = predictor.answer(validation, "scoring the artifact").logits if validation else []
    needs = 12 * sum(weight.numel() for weight in predictor.adapted.module.parameters())
    with staged_folder(out, marker=RECORD, needs_bytes=needs, overwrite=overwrite) as folder:
        job = _Job(
            folder,
            record,
            predictor,
            tokenizer,
            documents,
            ours,
            task,
            validation,
            expected,
            Limits(max_loss, max_changed),
        )
        content = _record(artifact, job, format, precision)
        content |= _safetensors(job) if format == "safetensors" else _onnx(job, content)
        content["sha256"] = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
        write_json(folder / RECORD, content)
        (folder / "README.md").write_text(export_card(content), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
    told = ("format", "precision", "largest_logit_difference", "gate", "kept_in_fp32")
    return {"out": str(out), "bytes": size, **{name: content[name] for name in told if name in content}}


def _check(
    artifact: Path, record: dict[str, Any], format: str, precision: str, data: Path | str | None, limits: Limits
) -> None:
    """Raises UserError for what cannot be exported so."""
    if record["method"] in BASELINES:
        raise UserError(
            f"is a {record['method']} baseline, which has no network to export",
            "Use it with `posology predict`; its README.md says how to without Posology",
            artifact,
        )
    if record["recipe"].get("quantise"):
        raise UserError(
            f"was trained on a backbone held in {record['recipe']['quantise']}, which an adapter cannot be merged into exactly",
            "Train it with quantise=none",
            artifact,
        )
    if format == "safetensors":
        _check_safetensors(artifact, record, precision, data)
        return
    if precision == "int8" and data is None:
        raise UserError(
            "int8 changes answers, and without data nobody knows how many",
            "Name a prepared task with --data",
            "--precision int8",
        )
    if min(limits.loss, limits.changed) < 0:
        raise UserError("a limit below 0 refuses even what is equal", "Give 0 or more", "--max-loss, --max-changed")
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"needs {', '.join(missing)}",
            "Run `pip install 'posology[export]'` with the project's constraints",
            "export",
        )


def _check_safetensors(artifact: Path, record: dict[str, Any], precision: str, data: Path | str | None) -> None:
    mend = "Export it with --format onnx"
    if record["method"] in VIRTUAL:
        raise UserError(
            f"has the method {record['method']}, which is part of no weight of transformers", mend, artifact
        )
    if precision != "fp32":
        raise UserError(f"weights for transformers are written in fp32, not {precision}", mend, "--precision")
    if data is not None:
        raise UserError("merged weights give the same logits, and nothing is left to measure", "Leave it out", "--data")


def _check_out(artifact: Path, out: Path, overwrite: bool) -> None:
    check_free(out, marker=RECORD, overwrite=overwrite)
    if not out.is_dir() or not (out / RECORD).is_file():
        return
    try:
        read_record(out)
    except UserError:  # no artifact, but an export
        return
    raise UserError("is an artifact, which --overwrite does not replace with an export", "Name another folder", out)


def _in_float32(model: Model) -> Predictor:
    """The artifact as it is compared with: on the CPU, nothing in reduced precision."""
    assert isinstance(model, Predictor), "baselines were refused"
    model.precision = Precision(torch.device("cpu"), False, "float32, to be exported")
    model.adapted.module.float().cpu()
    return model


def _record(artifact: Path, job: _Job, format: str, precision: str) -> dict[str, Any]:
    """What `posology.json` says of an export before anything is measured."""
    record, predictor = job.record, job.predictor
    frame = Frame.of(job.tokenizer)
    return {
        "format": format,
        "precision": precision,
        "kind": predictor.kind,
        "labels": list(predictor.labels),
        "text_pair": predictor.text_pair,
        "temperature": record.get("temperature") or 1.0,
        "threshold": record.get("threshold"),
        "reading": {
            "max_length": predictor.encoder.max_length,
            "long_text": record["recipe"]["long_text"],
            "overlap": record["recipe"]["overlap"],
            "padding_id": predictor.adapted.base.config.pad_token_id,
            "frame": {name: list(ids) for name, ids in asdict(frame).items()},
        },
        "artifact": {
            "name": artifact.resolve().name,
            "sha256": {path.name: sha256(path) for path in sorted(artifact.glob("*.safetensors"))},
            "task": record["task"],
            "method": record["method"],
            "backbone": {key: record["backbone"].get(key) for key in ("name", "hub_id", "layers", "sha256")},
        },
        "versions": versions("torch", "transformers", "tokenizers"),
    }


def _safetensors(job: _Job) -> dict[str, Any]:
    """Writes a folder of transformers."""
    predictor, adapted = job.predictor, job.predictor.adapted
    if adapted.pooling == "mean" and not hasattr(adapted.base.config, "classifier_pooling"):
        raise UserError(
            "its head reads the mean of all positions, which the classifiers of transformers cannot",
            "Export it with --format onnx, or train it with pooling=first",
            "--format safetensors",
        )
    windows = gate.single_windows(predictor, job.documents)
    ours = gate.window_logits(predictor, windows)
    onnx_graph.merged(adapted).save_pretrained(job.folder)
    job.tokenizer.save_pretrained(job.folder)
    model = _AUTO[predictor.kind].from_pretrained(job.folder, local_files_only=True).eval()
    largest = gate.difference(ours, gate.transformers_logits(model, windows))
    gate.check_equal(largest, ours, _MERGED, "--format safetensors")
    return {"largest_logit_difference": largest}


def _onnx(job: _Job, content: dict[str, Any]) -> dict[str, Any]:
    """Writes network, tokenizer and runtime, and measures them."""
    folder, predictor, int8 = job.folder, job.predictor, content["precision"] == "int8"
    content |= {"model": NETWORK, "opset": onnx_graph.OPSET, "vnni": onnx_int8.has_vnni()}
    content["versions"] |= versions("onnx", "onnxruntime", "onnxscript")
    write_json(folder / RECORD, content)
    job.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copyfile(runtime.__file__, folder / RUNTIME)
    sample = _sample(predictor, job.validation) if int8 else None
    console.say("writing the network as ONNX")
    graph = onnx_graph.Graph(predictor.adapted, predictor.text_pair)
    if sample is not None:
        onnx_int8.tame(graph, sample, predictor.adapted.head)
    facts = {key: str(content[key]) for key in ("kind", "temperature")} | {"labels": "\n".join(content["labels"])}
    maps = onnx_graph.write(graph, folder / NETWORK, facts)
    exact = _run(job)
    largest = gate.difference(job.ours, gate.answers(exact, job.documents))
    gate.check_equal(largest, job.ours, _ONNX, "--format onnx")
    found: dict[str, Any] = {"largest_logit_difference": largest}
    if sample is not None:
        measured, kept = _quantise(job, graph, maps, sample)
        found |= {"kept_in_fp32": kept}
    elif job.task is not None:
        measured = _measure(job, exact)
        _refuse(measured, job.limits, "")
    else:
        return found
    console.say(measured.sentence(job.limits))
    assert job.task is not None
    data = {"name": job.task.name, "fingerprint": job.task.fingerprint, "split": "validation"}
    limits = {"max_loss": job.limits.loss, "max_changed": job.limits.changed}
    return found | {"gate": {**measured.record(), **limits, "data": data}}


def _run(job: _Job) -> runtime.Runtime:
    return runtime.Runtime(job.folder, threads=torch.get_num_threads())


def _measure(job: _Job, export: runtime.Runtime) -> Measured:
    assert job.task is not None
    theirs = gate.answers(export, job.validation)
    return gate.measure(job.predictor, job.validation, job.expected, theirs, job.task.metric)


def _refuse(measured: Measured, limits: Limits, more: str) -> None:
    if not measured.within(limits):
        raise UserError(
            f"the export loses too much: {measured.sentence(limits)}{more}",
            "Export it with --precision fp32, or allow more with --max-loss and --max-changed",
            "--data",
        )


def _quantise(
    job: _Job, graph: onnx_graph.Graph, maps: dict[str, list[str]], sample: Batch
) -> tuple[Measured, list[str]]:
    """Puts the products into 8 bits, all that may be; heads stay as they are, being small and last."""
    exact, network = job.folder / ".fp32.onnx", job.folder / NETWORK
    network.rename(exact)
    heads = tuple(job.predictor.adapted.head)
    inner = {name: nodes for name, nodes in maps.items() if not onnx_int8.belongs(name, heads)}
    always = [node for name in set(maps) - set(inner) for node in maps[name]]

    def attempt(kept: Sequence[str]) -> Measured:
        onnx_int8.quantise(exact, network, [*always, *(node for name in kept for node in inner[name])])
        return _measure(job, _run(job))

    kept: list[str] = []
    measured = attempt(kept)
    if not measured.within(job.limits):
        console.say(f"all in int8: {measured.sentence(job.limits)}; looking for the layers that hurt")
        with console.progress("layers", len(inner)) as advance:
            moved = onnx_int8.sensitivity(graph, sample, list(inner), advance)
        for kept in onnx_int8.worst_first(moved, onnx_int8.multiplications(graph, inner), MOST_KEPT):
            measured = attempt(kept)
            console.say(f"{len(kept)} of {len(inner)} in float32: {measured.sentence(job.limits)}")
            if measured.within(job.limits):
                break
    exact.unlink()
    _refuse(measured, job.limits, f", with {len(kept)} of {len(inner)} linear maps left in float32")
    return measured, kept


def _sample(predictor: Predictor, documents: Sequence[Document]) -> Batch:
    """A batch of windows to find out on what reaches how far, and which layers hurt."""
    windows = [own for each in predictor.encoder.encode(documents[:256]).windows for own in each]
    few, pieces = [], 0
    for window in windows:
        few.append(window)
        pieces += len(window.ids)
        if pieces >= _SAMPLE_PIECES:
            break
    return collate(few, predictor.adapted.base.config.pad_token_id)
