"""Imported before any Hugging Face library: no network, no telemetry, no chatter."""

from __future__ import annotations

import logging
import os
import warnings

for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(_name, _value)

logging.getLogger("transformers").setLevel(logging.ERROR)
# PEFT says of every layer type it has no special case for, LayerNorm included, "proceed at your own risk".
warnings.filterwarnings("ignore", message="Unsupported layer type", module="peft")
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
