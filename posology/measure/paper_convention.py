"""The paper's Table 1 from configurations alone: parameters, memory of weights, and FLOPs as its code counts them.

Its figures follow from models on the meta device, which have shapes but no data:

- *parameters*: of the classifier of two classes, with cased BERT's vocabulary but for MobileBERT; of Llama without head;
- *VRAM*: what weights take, in GiB (2³⁰ bytes), four bytes each or two; nothing that training or prediction needs besides;
- *FLOPs*: multiply-accumulates of one forward pass over eight tokens, as the package `thop` counts: those of linear
  layers, and four operations for each number that goes through a `LayerNorm`. Attention's own products, embeddings,
  activations, and norms of classes it does not know (MobileBERT's, Llama's) count nothing.

`posology.measure.flops` counts operations, two for each multiply-accumulate, attention's products, and real tokens.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from posology import catalog

TOKENS = 8
"""Of the text that FLOPs are counted on: the paper's code has 8, its text says 10."""
_KIND = "sequence-classification"


class _Row(NamedTuple):
    """What a row of the paper's table was made from.

    Attributes:
        backbone: of the catalogue, with the sizes that fit.
        bytes: of a weight.
        head: whether the head's parameters are among those counted.
        buffers: further bytes beside the weights.
        note: how our figures differ, or what they needed.
    """

    backbone: str
    bytes: int = 4
    head: bool = True
    buffers: int = 0
    note: str = ""


_ROTARY = 64 * 2**20
_ROWS = {
    "Tiny-BERT": _Row("tiny-biobert", note="cased vocabulary of 28,996, as TinyBioBERT has it"),
    "Mobile-BERT": _Row("mobilebert", note="uncased vocabulary of 30,522"),
    "Distil-BERT": _Row("distilbert-cased", note="with the layer before its classifier (0.59 M); 65.19 M without"),
    "BERT": _Row("bert-cased", note="cased vocabulary of 28,996"),
    "Llama2-7b": _Row("llama-2-7b", head=False, note="without the head, whose 8,192 weights would give 6607.35"),
    "Llama2-7b (bfloat16)": _Row(
        "llama-2-7b",
        bytes=2,
        head=False,
        buffers=_ROTARY,
        note="weights alone are 12.31 GiB; the paper's 12.37 is what they take with the tables of rotary positions that "
        "transformers kept then in each of 32 layers (4,096 positions x 128 x 2 tables x 2 bytes: 64 MiB)",
    ),
}


@functools.cache
def _counted(name: str) -> tuple[int, int, int]:
    """Parameters with and without head, and multiply-accumulates, of a model of the catalogue."""
    import torch
    from transformers import AutoConfig

    from posology.engine.backbone import on_meta

    entry = catalog.backbones()[name]
    config: Any = AutoConfig.for_model(entry.architecture, **entry.config)
    config.num_labels = 2
    if config.pad_token_id is None:
        config.pad_token_id = 0
    model = on_meta(config, _KIND).eval()
    operations = 0

    def linear(module: Any, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal operations
        operations += module.in_features * output.numel()

    def norm(_module: Any, inputs: tuple[torch.Tensor], _output: Any) -> None:
        nonlocal operations
        operations += 4 * inputs[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(linear)
        elif isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(norm)
    with torch.no_grad():
        model(input_ids=torch.zeros((1, TOKENS), dtype=torch.long, device="meta"))
    backbone = getattr(model, model.base_model_prefix)
    with_head, without = (sum(weight.numel() for weight in part.parameters()) for part in (model, backbone))
    return with_head, without, operations


def table1() -> list[dict[str, Any]]:
    """The paper's Table 1, recomputed; no weights are needed. It takes some seconds the first time.

    Returns:
        For each row `architecture` as the paper calls it, `backbone` of the catalogue, `parameters`, `vram` (GiB, of
        weights alone), `vram_with_buffers` (GiB; what the paper's figure is), `flops` (multiply-accumulates on eight
        tokens), `paper` ({`parameters`, `vram`, `flops`} in the same units, as printed there), `note`.
    """
    rows = []
    for printed in catalog.paper_table("table1_models"):
        row = _ROWS[printed["architecture"]]
        with_head, without, operations = _counted(row.backbone)
        parameters = with_head if row.head else without
        rows.append(
            {
                "architecture": printed["architecture"],
                "backbone": row.backbone,
                "parameters": parameters,
                "vram": parameters * row.bytes / 2**30,
                "vram_with_buffers": (parameters * row.bytes + row.buffers) / 2**30,
                "flops": operations,
                "paper": {
                    "parameters": float(printed["params_million"]) * 1e6,
                    "vram": float(printed["vram_gb"]),
                    "flops": float(printed["flops"]),
                },
                "note": row.note,
            }
        )
    return rows
