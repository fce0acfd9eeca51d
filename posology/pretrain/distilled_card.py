"""The README.md of a backbone that was distilled from another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posology.engine.card.text import code, duration, plain, table
from posology.pretrain.card import evaluation_sentences

_TITLES = {
    "hidden": "hidden states (1 - cosine + mean square)",
    "relations": "relations of queries, keys and values (KL divergence)",
    "logits": "guesses at hidden words (KL divergence)",
}


def distilled_card(record: Mapping[str, Any], name: str) -> str:
    """Markdown without any text of documents.

    Args:
        record: the content of `posology-backbone.json`.
        name: of the folder.
    """
    training, measured = record["training"], record["losses"]
    kept = ", ".join(str(layer + 1) for layer in record["distilled_from"]["layers"])
    rows = [
        (_TITLES[loss], f"{measured['before'][loss]:.4f}", f"{measured['after'][loss]:.4f}")
        for loss in measured["before"]
    ]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"tags: [posology, distilled{', ' + record['domain'] if record.get('domain') else ''}]",
            "---",
            "",
            f"# {plain(name)}",
            "",
            f"A student of {plain(record['parent_name'])}: {record['parameters']:,} parameters of "
            f"{record['teacher_parameters']:,}, {record['layers']} layers of width {record['width']}. It began as layers "
            f"{kept} of its teacher and learnt to give what that gives on unlabelled text ({training['steps']:,} steps, "
            f"{training['tokens']:,} pieces, {duration(training['seconds'])}). Use it as a backbone: "
            "`posology train DATA --backbone FOLDER`, or `AutoModel.from_pretrained`.",
            "",
            "## What it read",
            "",
            f"{record['documents']['training']:,} of {record['documents']['all']:,} documents; "
            f"{record['documents']['held_out']:,} were held out. Fingerprint of the corpus: {code(record['corpus'])}.",
            "",
            *evaluation_sentences(record),
            "",
            "## How near it is to its teacher, on held-out documents",
            "",
            table(("mean of", "before", "after"), rows),
            "",
            "Nearness to a teacher is no score of a task: compare on yours.",
            "",
        ]
    )
