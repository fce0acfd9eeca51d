"""Randomly initialised models of every architecture, small enough to compare to the last digit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    LlamaConfig,
    MobileBertConfig,
    ModernBertConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

VOCABULARY = 120
KINDS = ("sequence-classification", "token-classification")
_AUTO = {KINDS[0]: AutoModelForSequenceClassification, KINDS[1]: AutoModelForTokenClassification}
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 96,
}
CONFIGS: dict[str, Any] = {
    "bert": lambda: BertConfig(**_COMMON),
    "roberta": lambda: RobertaConfig(**_COMMON | {"max_position_embeddings": 98}, pad_token_id=1),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=96
    ),
    "mobilebert": lambda: MobileBertConfig(**_COMMON, embedding_size=16, intra_bottleneck_size=16),
    "electra": lambda: ElectraConfig(**_COMMON, embedding_size=16),
    "albert": lambda: AlbertConfig(**_COMMON, embedding_size=16),
    "modernbert": lambda: ModernBertConfig(
        **_COMMON,
        local_attention=8,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    ),
    "llama": lambda: LlamaConfig(**_COMMON, num_key_value_heads=2, pad_token_id=0),
}
ARCHITECTURES = tuple(CONFIGS)


def task_model(architecture: str, kind: str, outputs: int = 5) -> PreTrainedModel:
    """A task model with weights large enough that mistakes show, dropout off."""
    torch.manual_seed(0)
    config = CONFIGS[architecture]()
    config.num_labels = outputs
    model = _AUTO[kind].from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(4)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
    return model.eval()


def ragged(lengths: tuple[int, ...] = (12, 7, 1), padding: int = 0) -> dict[str, torch.Tensor]:
    """A batch padded on the right."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, padding), "attention_mask": mask}


def tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer over letters: most words are several pieces, and some characters are unknown."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-/<>@$[]():é"
    words = ["the", "patient", "fever", "pain", "no"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    assert len(vocabulary) <= VOCABULARY
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def save_backbone(folder: Path, architecture: str = "bert", **changes: Any) -> Path:
    """A backbone folder with a tokenizer, as save_pretrained writes it."""
    torch.manual_seed(0)
    config = CONFIGS[architecture]()
    for name, value in changes.items():
        setattr(config, name, value)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def forget_digests(folder: Path) -> None:
    """Makes an artifact one of an earlier version, which noted no sums of its weights: these may be changed."""
    path = folder / "posology.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(record))
