"""Our plain path beside transformers.Trainer + PEFT: same data, recipe, seeds, initial weights and order of documents.

    python benchmarks/peer.py [--corpora ncbi-disease] [--methods lora] [--seeds 1,2] [--fp32]

Both truncate at 64 pieces (Trainer has no windows) and run without dropout, which the two would draw differently:
what is compared is whether the same training comes out, not luck. Both use bfloat16 products where the processor has
them. Entities of the peer are scored by seqeval (strict IOB2), classes by scikit-learn, so its scores do not pass
through our code. Writes benchmarks/results/peer.json and peer.md. Runs that are there already are not repeated.
This is about scores: seconds are in the JSON, but the two sides may have run beside other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, prepared, result

CORPORA = {"ncbi-disease": 1000, "chemprot": 1000, "specialty11": 256}
OVERRIDES: dict[str, Any] = {
    "epochs": 2,
    "max_length": 64,
    "long_text": "truncate",
    "patience": 100,
    "overlap": 8,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "adapter_dropout": 0.0,
}
RESULTS = HERE / "results" / "peer.json"


def ours(data: Path, backbone: str, method: str, seed: int) -> dict[str, float]:
    """Test score and training seconds of Posology; for a tagger the score of plain argmax tags as well.

    Trainer's tags are the argmax of each word, of which strict scoring drops every I- without a B-. Posology takes the
    best well-formed sequence, so the comparison of trainings is that of the argmax scores.
    """
    import posology
    from posology.corpus.tags import snap, tags_to_spans
    from posology.engine.decode import tags_of
    from posology.evaluation.metrics import entity_counts, entity_metrics

    with tempfile.TemporaryDirectory() as folder:
        run = posology.train(data, backbone, method, Path(folder) / "run", overrides=OVERRIDES, seed=seed)
        row = {"test": run["metrics"][run["metric"]]["value"], "seconds": run["seconds"]}
        task = posology.PreparedTask.open(data)
        if task.kind == "token-classification":
            predictor, documents, tags = (
                posology.load(Path(folder) / "run"),
                task.documents("test"),
                tags_of(task.labels),
            )
            counts = []
            for document, logits in zip(documents, predictor.logits(predictor.encoder.encode(documents)), strict=True):
                words = document.words[: len(logits)]  # truncated
                found = tags_to_spans(words, [tags[index] for index in logits.argmax(axis=1)])
                counts.append(entity_counts(snap(words, document.spans), found, task.labels))
            row["test_argmax"] = entity_metrics(np.stack(counts))["entity_f1"]
    return row


def peer(data: Path, backbone: str, method: str, seed: int) -> dict[str, float]:
    """Test score and training seconds of Trainer, with the checkpoint that is best on validation."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    import posology
    from posology.corpus.tags import spans_to_tags
    from posology.engine.backbone import load_config, load_tokenizer, resolve
    from posology.engine.batch import batches
    from posology.engine.precision import multiplies_bf16_natively
    from posology.engine.predictor import outputs_of
    from posology.engine.recipe import make_recipe

    task, source = posology.PreparedTask.open(data), resolve(backbone)
    recipe = make_recipe(method, overrides=OVERRIDES)
    tokenizer, outputs = load_tokenizer(source), outputs_of(task.kind, task.labels)
    tagging = task.kind == "token-classification"

    class Order(torch.utils.data.Sampler[int]):
        """The documents in the order that Posology takes them, epoch after epoch."""

        epoch = 0

        def __init__(self, size: int):
            self.size = size

        def __len__(self) -> int:
            return self.size

        def __iter__(self) -> Any:
            order = np.concatenate(list(batches(self.size, recipe.batch_size, seed, self.epoch)))
            self.epoch += 1
            return iter(order.tolist())

    class InOrder(Trainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return Order(len(self.train_dataset))

    def encode(split: str) -> list[dict[str, Any]]:
        rows = []
        for document in task.documents(split):
            if not tagging:
                row = tokenizer(document.text, truncation=True, max_length=recipe.max_length)
                rows.append({**row, "labels": outputs.index(str(document.label))})
                continue
            words = [document.text[start:end] for start, end in document.words]
            row = tokenizer(words, is_split_into_words=True, truncation=True, max_length=recipe.max_length)
            tags, labels, last = spans_to_tags(document.words, document.spans), [], None
            for word in row.word_ids():
                labels.append(-100 if word is None or word == last else outputs.index(tags[word]))
                last = word
            rows.append({**row, "labels": labels})
        return rows

    def score(prediction: Any) -> dict[str, float]:
        chosen, gold = prediction.predictions.argmax(-1), prediction.label_ids
        if tagging:
            from seqeval.metrics import f1_score
            from seqeval.scheme import IOB2

            pairs = [(g[g != -100], c[g != -100]) for g, c in zip(gold, chosen, strict=True)]
            names = [[[outputs[index] for index in side] for side in pair] for pair in pairs]
            return {"score": f1_score([a for a, _ in names], [b for _, b in names], mode="strict", scheme=IOB2)}
        from sklearn.metrics import f1_score

        average = {"macro_f1": "macro", "micro_f1": "micro"}[task.metric]
        return {"score": f1_score(gold, chosen, average=average)}

    set_seed(seed)
    config = load_config(source)
    config.num_labels = len(outputs)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    auto = AutoModelForTokenClassification if tagging else AutoModelForSequenceClassification
    model = auto.from_pretrained(source.folder, config=config, dtype=torch.float32)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(
                task_type="TOKEN_CLS" if tagging else "SEQ_CLS",
                r=recipe.rank,
                lora_alpha=recipe.alpha,
                lora_dropout=recipe.adapter_dropout,
                target_modules=["query", "value"],
            ),
        )
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=recipe.epochs,
                per_device_train_batch_size=recipe.batch_size,
                per_device_eval_batch_size=32,
                learning_rate=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                warmup_steps=recipe.warmup,
                max_grad_norm=recipe.max_grad_norm,
                lr_scheduler_type="linear",
                bf16=recipe.precision != "fp32" and multiplies_bf16_natively(),
                eval_strategy="epoch",
                save_strategy="epoch",
                load_best_model_at_end=True,
                metric_for_best_model="score",
                save_total_limit=1,
                seed=seed,
                report_to=[],
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=encode("train"),
            eval_dataset=encode("validation"),
            data_collator=(DataCollatorForTokenClassification if tagging else DataCollatorWithPadding)(tokenizer),
            compute_metrics=score,
        )
        seconds = _time_steps(trainer)
        trainer.train()
        prediction = trainer.predict(encode("test"))
    assert np.isfinite(prediction.metrics["test_score"])
    return {"test": float(prediction.metrics["test_score"]), "seconds": sum(seconds)}


def _time_steps(trainer: Any) -> list[float]:
    """Lets the trainer note the seconds of its steps, so that its evaluations do not count as training."""
    from transformers import TrainerCallback

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    trainer.add_callback(Clock())
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", default=",".join(CORPORA))
    parser.add_argument("--methods", default="full,lora")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--fp32", action="store_true", help="float32 products, into peer-fp32.json")
    arguments = parser.parse_args()

    from posology.files import write_json

    global RESULTS
    if arguments.fp32:
        OVERRIDES["precision"] = "fp32"
        RESULTS = HERE / "results" / "peer-fp32.json"
    started = time.time()
    for corpus in arguments.corpora.split(","):
        data = prepared(corpus, train=CORPORA[corpus], validate=300, test=1000)
        for method in arguments.methods.split(","):
            for seed in map(int, arguments.seeds.split(",")):
                for side, run in (("posology", ours), ("trainer", peer)):
                    key = {"corpus": corpus, "method": method, "seed": seed, "side": side}
                    if any(key.items() <= row.items() for row in _rows()):
                        continue
                    rows = [*_rows(), {**key, **run(data, arguments.backbone, method, seed)}]
                    write_json(RESULTS, result(rows, started, backbone=arguments.backbone, overrides=OVERRIDES))
                    RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
                    print(*rows[-1].values(), flush=True)


def _rows() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each corpus and method that both sides have."""
    lines = [
        "| corpus | method | Posology by seed | the same, argmax tags | Trainer by seed | difference of means |",
        "|---|---|---|---|---|---|",
    ]
    for corpus, method in dict.fromkeys((row["corpus"], row["method"]) for row in rows):
        own, their = (
            [row for row in rows if (row["corpus"], row["method"], row["side"]) == (corpus, method, side)]
            for side in ("posology", "trainer")
        )
        if not own or len(own) != len(their):
            continue
        plain = [row.get("test_argmax", row["test"]) for row in own]
        difference = statistics.mean(plain) - statistics.mean(row["test"] for row in their)
        argmax = ", ".join(f"{score:.3f}" for score in plain) if "test_argmax" in own[0] else ""
        lines.append(
            f"| {corpus} | {method} | {_shown(own)} | {argmax} | {_shown(their)} | {100 * difference:+.1f} points |"
        )
    return "\n".join(lines) + "\n"


def _shown(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['test']:.3f}" for row in rows)


if __name__ == "__main__":
    main()
