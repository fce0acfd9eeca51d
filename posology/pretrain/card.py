"""The README.md of a backbone whose pre-training went on: for the people who are to decide whether to build on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posology.engine.card.text import code, duration, interval, plain, sentences, share, table


def backbone_card(record: Mapping[str, Any], name: str) -> str:
    """Markdown without any text of documents.

    Args:
        record: the content of `posology-backbone.json`.
        name: of the folder.
    """
    training, held = record["training"], record["held_out"]
    front = [
        "---",
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        f"tags: [posology, {record['domain']}]",
        "---",
    ]
    rows = [(title, interval(held[key]["token_weighted"], 2), interval(held[key]["median"], 2)) for key, title in _STATES
            if key in held]  # fmt: skip
    new_head = (
        ["The backbone had no head for masked words. Its new one was trained alone first: before that, perplexity "
         "says nothing about the backbone."] if record["new_head"] else []
    )  # fmt: skip
    documents, dropped = record["documents"], record["dropped"]
    return "\n".join(
        [
            *front,
            "",
            f"# {plain(name)}",
            "",
            f"{plain(record['parent_name'])} ({record['parameters']:,} parameters), whose pre-training by masked words "
            f"went on with unlabelled text ({training['method']}, {training['steps']:,} steps, "
            f"{training['tokens']:,} pieces, {duration(training['seconds'])}). Use it as a backbone: "
            "`posology train DATA --backbone FOLDER`, or `AutoModel.from_pretrained`.",
            "",
            "## What it read",
            "",
            f"{documents['training']:,} of {documents['all']:,} documents; {documents['held_out']:,} were held out, "
            f"{dropped['empty']:,} had no text and {dropped['error']:,} were marked as errors. "
            f"Fingerprint of the corpus: {code(record['corpus'])}.",
            "",
            *evaluation_sentences(record),
            "",
            "Weights of a language model can give away rare passages of what it was trained on. Keep it as you keep the "
            "notes, unless somebody who answers for them has decided otherwise."
            + (_WORDS.format(number=record["new_words"]) if record["new_words"] else ""),
            "",
            "## Held-out perplexity",
            "",
            table(("", "of all hidden pieces (95 %)", "median of documents (95 %)"), rows),
            "",
            f"{held['documents']:,} documents, {held['hidden']:,} hidden pieces; after / before "
            f"{interval(held['ratio'], 3)}. Words that the model finds easier are no proof that a task gets easier: "
            "compare on yours.",
            "",
            sentences(
                [
                    *new_head,
                    f"Words are {record['coverage']['pieces_per_word']:.2f} pieces on average; "
                    f"{share(record['coverage']['whole'])} of them are whole, "
                    f"{share(record['coverage']['shattered'])} are in four pieces or more.",
                    f"Masking: {share(training['mask_rate'])} of the pieces, whole words; learning rate "
                    f"{training['learning_rate']:g}; batches of {training['batch_size']} texts; seed {training['seed']}.",
                ]
            ),
            "",
        ]
    )


_STATES = (("before", "before"), ("with_new_head", "with a trained head"), ("after", "after"))
_WORDS = (
    " Its vocabulary has {number:,} words of the notes, each of which stands in several documents: look through them "
    "(`tokenizer.json`, `added_tokens`) before you hand it on."
)


def evaluation_sentences(record: Mapping[str, Any]) -> list[str]:
    """Whether documents that models are scored on were in the corpus."""
    evaluation, excluded = record["evaluation"], record["excluded"]
    before = [
        f"**{plain(ancestor['name'])}, which it was made from, had read further text** (fingerprint "
        f"{code(ancestor['corpus'])}), and {left}: it may have read them."
        for ancestor in record.get("ancestors", [])
        if (left := _left_in(ancestor, evaluation))
    ]
    if evaluation is None:
        return [
            *before,
            "**Whether documents that models are scored on are among these is not known**: none were named "
            "(`--exclude`). A model that has read the test notes has an unfair advantage.",
        ]
    names = ", ".join(code(task["name"]) for task in evaluation["tasks"])
    return [
        *before,
        f"Validation and test documents of {names} were looked for: {evaluation['found']:,} of "
        f"{evaluation['documents']:,} texts were in the corpus, and the {excluded['exact']:,} documents that equal one and "
        f"{excluded['near']:,} that nearly do (half of the runs of five words of the shorter one) were left out. "
        "Other tasks were not looked for.",
    ]


def _left_in(ancestor: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """What was not left out of the text that an ancestor read; empty where everything was that is left out here."""
    looked_for = {task["fingerprint"] for task in (ancestor["evaluation"] or {"tasks": []})["tasks"]}
    missing = [task["name"] for task in (evaluation or {"tasks": []})["tasks"] if task["fingerprint"] not in looked_for]
    if missing:
        return f"documents of {', '.join(map(code, missing))} were not looked for in that"
    return "" if ancestor["evaluation"] else "no evaluation documents were looked for in that"
