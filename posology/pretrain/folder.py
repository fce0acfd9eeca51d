"""The folder of a backbone that was made here: what `posology train --backbone` takes, a card, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from posology.engine.lineage import BACKBONE_RECORD
from posology.files import staged_folder, write_json

RECORD = BACKBONE_RECORD


def write_backbone(
    out: Path,
    config: PreTrainedConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
    card: str,
    *,
    overwrite: bool,
) -> None:
    """Writes config.json, model.safetensors, the tokenizer, README.md and `RECORD`, all or none.

    Args:
        out: the folder.
        config: with `architectures` set to the class that `weights` are of.
        weights: by name, on the CPU, none sharing memory.
        tokenizer: with its new words.
        record: `pretraining`, `domain`, `parent` (SHA-256 of the weights it was made from) and what else is known.
        card: Markdown.
        overwrite: replace a folder that holds `RECORD`.

    Raises:
        UserError: the folder cannot be written.
    """
    size = sum(weight.nbytes for weight in weights.values())
    with staged_folder(out, marker=RECORD, needs_bytes=size, overwrite=overwrite) as staging:
        config.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        save_file(dict(weights), staging / "model.safetensors", {"format": "pt"})
        (staging / "README.md").write_text(card, encoding="utf-8")
        write_json(staging / RECORD, dict(record))
