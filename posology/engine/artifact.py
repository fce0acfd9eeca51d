"""Artifacts: the folder a run leaves, readable by Hugging Face and PEFT without Posology."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posology.engine import quiet  # noqa: F401  (before transformers)

# isort: split
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posology import files
from posology.engine.adapted import Adapted
from posology.engine.architectures import architecture_of
from posology.engine.backbone import Source, load_model, load_tokenizer, resolve
from posology.engine.baselines import BASELINES, load_baseline
from posology.engine.card import model_card
from posology.engine.encode import Encoder
from posology.engine.integrity import RESTORE, check_digests, check_record, damaged, digests
from posology.engine.methods import METHODS, TASK_TYPES, finish, pooling_of
from posology.engine.model import BaselineModel, Model, Threshold
from posology.engine.precision import decide
from posology.engine.predictor import Predictor, outputs_of, units_of
from posology.engine.recipe import Recipe, make_recipe
from posology.errors import UserError
from posology.files import staged_folder, write_json
from posology.tasks.prepared import PreparedTask

RECORD = "posology.json"
_WEIGHTS = "tuned.safetensors"
_SAVE_AGAIN = "Save the adapter again with PEFT"


def save(out: Path, adapted: Adapted, source: Source, record: dict[str, Any], *, overwrite: bool = False) -> None:
    """Writes an artifact.

    Args:
        out: the folder to make.
        adapted: the trained model.
        source: its backbone.
        record: what `posology.json` will hold.

    Raises:
        UserError: the folder cannot be written.
    """
    storage = METHODS[adapted.method].storage

    def write(folder: Path) -> None:
        if storage == "model":
            adapted.base.save_pretrained(folder)
            load_tokenizer(source).save_pretrained(folder)
        elif storage == "peft":
            module: Any = adapted.module
            module.peft_config["default"].base_model_name_or_path = source.hub_id or str(source.folder)
            module.save_pretrained(folder, save_embedding_layers=False)
        else:
            tensors = {name: weight.detach().cpu().contiguous() for name, weight in adapted.trainable().items()}
            save_file(tensors, folder / _WEIGHTS)

    _save(out, write, _bytes(adapted), record, "*.safetensors", overwrite)


def save_baseline(out: Path, model: BaselineModel, record: dict[str, Any], *, overwrite: bool = False) -> None:
    """Writes the artifact of a model without a backbone; see `save`."""
    _save(out, model.save, model.bytes + 2**20, record, "*", overwrite)


def _save(
    out: Path, write: Callable[[Path], None], needs_bytes: int, record: dict[str, Any], counted: str, overwrite: bool
) -> None:
    """Writes an artifact; `counted` are the files that have to be kept or shipped beside the backbone."""
    with staged_folder(out, marker=RECORD, needs_bytes=needs_bytes, overwrite=overwrite) as folder:
        write(folder)
        record["adapter_bytes"] = sum(path.stat().st_size for path in folder.glob(counted))
        record["sha256"] = digests(folder, counted)
        update(folder, record)


def update(folder: Path, record: dict[str, Any]) -> None:
    """Writes what an artifact says of itself: `posology.json` and the model card."""
    write_json(folder / RECORD, record)
    with files.staged_file(folder / "README.md") as staging:
        staging.write_text(model_card(record), encoding="utf-8")


def check_writable(out: Path, adapted: Adapted) -> None:
    """Raises UserError, before any training, where the artifact could not be written after it."""
    files.check_writable(out, _bytes(adapted))


def _bytes(adapted: Adapted) -> int:
    return sum(weight.numel() * 4 for weight in adapted.trainable().values()) + 2**20


def read_record(folder: Path | str) -> dict[str, Any]:
    """`posology.json` of an artifact.

    Raises:
        UserError: it is not there or cannot be read.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise UserError(f"is no artifact: it has no {RECORD}", "Give a folder that `posology train` wrote", folder)
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError("is damaged", RESTORE, path) from error
    if isinstance(record, dict) and record.get("format") in ("onnx", "safetensors"):
        mend = "Give `predict`, `redact` or `serve` an export, and everything else the artifact it was made from"
        raise UserError("is an export, no artifact", mend, folder)
    check_record(record, path)
    record["task"].setdefault("unit", "word")  # artifacts of version 0.1.0 do not say it
    method = record["method"]
    if method not in METHODS and method not in BASELINES:
        raise UserError(f"has the method {method!r}", "Update Posology", path)
    try:
        (BASELINES[method].settings if method in BASELINES else Recipe).model_validate(record["recipe"])
    except ValidationError as error:
        raise damaged(error, path, part="recipe") from None
    return record


def load(folder: Path | str, *, task: PreparedTask | None = None, backbone: str | None = None) -> Model:
    """Loads an artifact, or an adapter that PEFT alone made, ready to predict.

    Args:
        folder: the artifact.
        task: gives kind and labels to an adapter made by PEFT, whose files do not say what its outputs mean.
        backbone: where the backbone is, if not where it was in training; baselines have none.

    Raises:
        UserError: the artifact is damaged, or its backbone is missing or another one.
    """
    folder = Path(folder)
    if (folder / RECORD).is_file() or not (folder / "adapter_config.json").is_file():
        record = read_record(folder)
    else:
        record = _foreign_record(folder, task)
    model: Model
    if record["method"] in BASELINES:
        model = load_baseline(folder, record)
    else:
        model = _load_adapted(folder, record, backbone)
    set_calibration(model, record)
    return model


def set_calibration(model: Model, record: dict[str, Any]) -> None:
    """Gives a model the temperature and the threshold that its artifact says."""
    model.temperature = float(record.get("temperature") or 1.0)
    if (threshold := record.get("threshold")) is not None:
        model.threshold = Threshold(model.labels.index(threshold["positive"]), threshold["probability"])


def load_for(folder: Path | str, task: PreparedTask, *, backbone: str | None = None) -> Model:
    """Loads an artifact that is to be scored on a prepared task.

    Raises:
        UserError: as `load`, or it does not fit the task.
    """
    model = load(folder, task=task, backbone=backbone)
    if model.kind != task.kind:
        raise UserError(f"is for {model.kind}, and {task.name} is {task.kind}", "Choose data of its kind", folder)
    unknown = sorted(set(task.labels) - set(model.labels))
    if unknown:
        raise UserError(
            f"does not know the label{'s' * (len(unknown) > 1)} {', '.join(unknown)} of {task.name}",
            "Choose data with its labels, or train anew",
            folder,
        )
    if task.unit not in model.units:
        raise UserError(
            f"knows the first pieces of words only, and {task.name} is scored on every piece",
            "Choose data that are scored by word, or train anew",
            folder,
        )
    return model


def _load_adapted(folder: Path, record: dict[str, Any], backbone: str | None) -> Predictor:
    kind, method, recipe = record["kind"], record["method"], Recipe(**record["recipe"])
    source = source_of(folder, record, backbone)
    base, _ = load_model(
        source,
        kind,
        outputs_of(kind, record["labels"]),
        recipe,
        mean=record.get("pooling") == "mean",
        tuned=method in METHODS and METHODS[method].storage == "model",
        method=method,
    )
    return load_onto(base, load_tokenizer(source), folder, record)


def load_onto(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, record: dict[str, Any]
) -> Predictor:
    """Loads an artifact onto a task model of its backbone that is in memory, which becomes part of the result.

    Args:
        base: with the artifact's outputs; its frozen weights may be another model's as well.
        tokenizer: the backbone's.
        folder: the artifact.
        record: its `posology.json`.

    Raises:
        UserError: the adapter is damaged.
    """
    kind, labels, method = record["kind"], tuple(record["labels"]), record["method"]
    recipe = Recipe(**record["recipe"])
    storage = METHODS[method].storage if method in METHODS else "peft"
    mean = record.get("pooling") == "mean"
    precision = decide(recipe.precision)
    base.requires_grad_(False)
    # PEFT lists the names that heads have anywhere; those that this model lacks are not meant.
    head = tuple(name for name in record["head"] if hasattr(base, name.partition(".")[0]))
    module: torch.nn.Module = base
    try:
        check_digests(folder, record.get("sha256", {}))
        if storage == "peft":
            module = _load_adapter(base, folder, head)
        elif storage == "weights":
            _load_weights(base, folder, head, biases=method == "bitfit")
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        why = str(error) if isinstance(error, _Incomplete) else type(error).__name__
        raise UserError(f"its adapter cannot be loaded ({why})", RESTORE, folder) from error
    architecture = architecture_of(base.config)
    adapted = Adapted(base, module, architecture, method, kind, head, pooling_of(architecture, kind, mean))
    finish(adapted, precision.attention)
    module.eval().to(precision.device)
    encoder = Encoder(tokenizer, base.config, recipe, kind, record["virtual_tokens"])
    return Predictor(
        adapted, encoder, labels, precision, bool(record.get("text_pair")), units_of(record["task"]["unit"])
    )


def source_of(folder: Path, record: dict[str, Any], backbone: str | None = None) -> Source:
    """Where the weights and the tokenizer are that an artifact is loaded on: its backbone's, or its own.

    Raises:
        UserError: the backbone is missing or another one.
    """
    own = record["method"] in METHODS and METHODS[record["method"]].storage == "model"
    return Source(str(folder), folder) if own else _find_backbone(folder, record, backbone)


class _Incomplete(ValueError):
    """A file of weights lacks some that the model needs; its message names one."""


def _load_adapter(base: PreTrainedModel, folder: Path, head: tuple[str, ...]) -> torch.nn.Module:
    """PEFT's model around `base`. PEFT itself only warns of weights that are missing, and leaves them random."""
    from peft import PeftModel, get_peft_model_state_dict

    with safe_open(folder / "adapter_model.safetensors", "pt") as stream:
        saved = set(stream.keys())
    module = PeftModel.from_pretrained(base, str(folder), local_files_only=True)
    needed = set(get_peft_model_state_dict(module, save_embedding_layers=False))
    if needed - saved:
        raise _Incomplete(f"{min(needed - saved)} is missing")
    for name in head or ("head",):
        if not any(f".{name}." in f".{key}" for key in saved):
            raise _Incomplete(f"it holds no weights for {name}")
    return module


def _load_weights(base: PreTrainedModel, folder: Path, head: tuple[str, ...], *, biases: bool) -> None:
    """Puts tuned tensors into `base`."""
    saved = load_file(folder / _WEIGHTS)
    marks = tuple(f"{name}." for name in head)
    needed = {
        name for name, _ in base.named_parameters() if name.startswith(marks) or (biases and name.endswith(".bias"))
    }
    if needed ^ set(saved):
        raise _Incomplete(f"{min(needed ^ set(saved))} is missing or not expected")
    base.load_state_dict(saved, strict=False)


def _find_backbone(folder: Path, record: dict[str, Any], given: str | None) -> Source:
    known = record["backbone"]
    layers = known.get("layers")
    if given is None:
        try:
            source = resolve(known.get("folder") or known["name"])
        except UserError as error:
            raise UserError(
                f"its backbone {known['name']} is not where it was in training ({error.problem})",
                "Name it with --backbone",
                folder,
            ) from error
        source = dataclasses.replace(source, layers=layers)
    else:
        source = resolve(given)
        if layers is not None and source.layers is None:
            source = dataclasses.replace(source, layers=layers)
    if source.layers != layers:
        raise UserError(
            f"was trained on {layers or 'all'} layers, not {source.layers}",
            "Name the same backbone (--backbone)",
            folder,
        )
    if known.get("sha256") and source.fingerprint != known["sha256"]:
        raise UserError(
            f"was trained on other weights than those in {source.folder}",
            "Name the backbone it was trained on (--backbone)",
            folder,
        )
    if known.get("reading") and source.reading != known["reading"]:
        raise UserError(
            f"was trained with another configuration or tokenizer than those in {source.folder}, whose weights are the same",
            "Put back config.json and the tokenizer's files, or name a folder that has them (--backbone)",
            folder,
        )
    return source


def _foreign_record(folder: Path, task: PreparedTask | None) -> dict[str, Any]:
    """What `posology.json` would say of an adapter that PEFT wrote."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        name = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt", "P_TUNING": "p-tuning", "LN_TUNING": "layernorm"}
        method = name.get(config["peft_type"], config["peft_type"].lower())
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError("is damaged", _SAVE_AGAIN, path) from error
    if task is None:
        raise UserError(
            "was made by PEFT alone and does not say what its outputs mean",
            "Score it with `posology evaluate` on the task it was trained on, or train with Posology",
            folder,
        )
    if config.get("task_type") not in (None, TASK_TYPES[task.kind]):
        raise UserError(
            f"is an adapter for {config['task_type']}, and {task.name} is {task.kind}", "Take another task", path
        )
    known = method if method in METHODS else "lora"
    record = {
        "kind": task.kind,
        "labels": list(task.labels),
        "task": {"unit": task.unit},
        "method": method,
        "recipe": make_recipe(known).model_dump(),
        "backbone": {"name": config.get("base_model_name_or_path") or ""},
        "head": config.get("modules_to_save") or [],
        "virtual_tokens": config.get("num_virtual_tokens") or 0,
        "test": None,
    }
    check_record(record, path, _SAVE_AGAIN)
    return record
