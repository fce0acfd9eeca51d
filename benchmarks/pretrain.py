"""Continued pre-training beside `Trainer` with `DataCollatorForLanguageModeling`, and a corpus larger than memory.

    python benchmarks/pretrain.py [--only ncbi-disease] [--rounds 5] [--steps 4]
    python benchmarks/pretrain.py --stream [--megabytes 2000] [--seconds 300]

Throughput: full training of the bundled model with a new head on sentences (ncbi-disease) and notes (specialty11), batches
of 32 texts, 15 % of the pieces hidden. The peer gets the very pieces that we train on, once as it is configured by default
(float32, random order, padded to the longest of a batch) and once with its best flags (bfloat16 where the processor
multiplies it, texts grouped by length over the whole round). Sides take turns step by step; over a round all train on the
same texts. Memory: a generated corpus is read into pieces and texts are masked in random order, while memory is noted.
Writes benchmarks/results/pretrain.json and .md, or pretrain-stream.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import HERE, prepared, result

RATE, BATCH, BACKBONE = 0.15, 32, "minilm"
CORPORA = ("ncbi-disease", "specialty11")


def corpus_of(name: str, folder: Path) -> Path:
    """The training texts of a prepared task as JSON Lines."""
    import posology

    path = folder / f"{name}.jsonl"
    documents = posology.PreparedTask.open(prepared(name)).documents("train")
    path.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in documents), encoding="utf-8")
    return path


def peer(rows: list[dict[str, Any]], plan: Sequence[Any], tokenizer: Any, model: Any, bf16: bool, folder: str) -> Any:
    """A Trainer that takes the given batches, one step at a time; what its own loop does, without callbacks."""
    import torch
    from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments

    class Planned(Trainer):
        def get_train_dataloader(self) -> Any:
            batches = [list(map(int, batch)) for batch in plan]
            return torch.utils.data.DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator)

    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=BATCH, max_steps=len(plan), learning_rate=1e-4, weight_decay=0.01,
        warmup_steps=0.06, bf16=bf16, save_strategy="no", logging_strategy="no", eval_strategy="no", report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False, use_cpu=not torch.cuda.is_available(), seed=0,
    )  # fmt: skip
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=RATE)
    trainer = Planned(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    trainer.current_gradient_accumulation_steps = 1
    wrapped, loader = trainer._prepare_for_training(len(plan), trainer.get_train_dataloader(), None)
    batches = iter(loader)

    def step() -> None:
        (inputs,), items = trainer.get_batch_samples(batches, 1, trainer.args.device)
        trainer.training_step(wrapped, inputs, items)
        trainer._clip_grad_norm(wrapped)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        wrapped.zero_grad()

    return step


def throughput(corpus: str, rounds: int, steps: int) -> dict[str, Any]:
    """One row: real pieces per second of each side, and how many times longer the peers took, by round."""
    import numpy as np

    from posology.engine import quiet  # noqa: F401  (before transformers)
    from posology.engine.backbone import load_tokenizer, resolve
    from posology.engine.precision import decide
    from posology.engine.process import prepare
    from posology.engine.recipe import Recipe
    from posology.measure.rounds import as_alone, interleave, rates, ratios
    from posology.pretrain.corpus import Corpus
    from posology.pretrain.loop import Pretraining
    from posology.pretrain.masking import TRAINING, Masker
    from posology.pretrain.mlm import load_masked
    from posology.pretrain.store import Reading, open_store

    prepare()
    source = resolve(BACKBONE)
    tokenizer, precision = load_tokenizer(source), decide()
    with tempfile.TemporaryDirectory() as scratch:
        reading = Reading(510, 0.01)
        store = open_store(Corpus([corpus_of(corpus, Path(scratch))]), Path(scratch, "out"), tokenizer, reading, None)
        texts, masker = store.training, Masker.of(tokenizer, RATE, 0)
        count = (rounds + 1) * steps * BATCH
        numbers = np.random.default_rng(0).permutation(len(texts))
        numbers = np.resize(numbers, count)  # the first round is not counted
        plans = [numbers[start : start + BATCH] for start in range(0, count, BATCH)]
        rows, lengths = [], np.zeros(len(texts), int)
        for number in range(len(texts)):
            ids = np.concatenate((masker.before, texts.read(number)[0], masker.after))
            lengths[number] = len(ids)
            rows.append({"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)})
        grouped, draw = [], np.random.default_rng(1)
        for start in range(0, len(plans), steps):
            own = np.concatenate(plans[start : start + steps])
            own = own[np.argsort(-lengths[own], kind="stable")]
            grouped += [own[BATCH * place : BATCH * (place + 1)] for place in draw.permutation(steps)]

        class Ours(Pretraining):
            def windows(self) -> list[Any]:
                step = self.progress.steps
                return [masker.window(int(each), *texts.read(int(each))[:2], TRAINING, step) for each in plans[step]]

        def model() -> Any:
            own = load_masked(source, tokenizer, "full", seed=0)
            own.new_head = False  # everything is trained from the first step, as the peer does
            return own

        recipe = Recipe(learning_rate=1e-4, batch_size=BATCH)
        mine = model()
        mine.module.to(precision.device)
        ours = Ours(mine, texts, masker, recipe, len(plans), precision, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            plain = peer(rows, plans, tokenizer, _fresh(source), False, folder)
            best = peer(rows, grouped, tokenizer, _fresh(source), precision.bf16, folder)
            sides = {"ours": ours.step, "peer_default": as_alone(plain), "peer_best": as_alone(best)}
            interleave(sides, 1, turns=steps)  # warms up
            seconds = interleave(sides, rounds, turns=steps)
        store.close()
    tokens = [int(sum(lengths[plan].sum() for plan in plans[start : start + steps]))
              for start in range(steps, len(plans), steps)]  # fmt: skip
    mean = sum(tokens) / len(tokens)
    return {
        "corpus": corpus,
        "backbone": BACKBONE,
        "precision": precision.reason,
        "texts": len(texts),
        "pieces_by_round": tokens,
        "padding": {
            name: 1
            - float(
                sum(lengths[batch].sum() for batch in own) / sum(len(batch) * lengths[batch].max() for batch in own)
            )
            for name, own in {"peer_default": plans[steps:], "peer_best": grouped[steps:]}.items()
        },
        "pieces_per_second": {
            name: rates(mean, [own * mean / each for own, each in zip(took, tokens, strict=True)])
            for name, took in seconds.items()
        },
        "ratios": {name: ratios(seconds[name], seconds["ours"]) for name in ("peer_default", "peer_best")},
        "rounds": rounds,
        "steps": steps,
    }


def _fresh(source: Any) -> Any:
    import torch
    from transformers import AutoModelForMaskedLM

    return AutoModelForMaskedLM.from_pretrained(source.folder, dtype=torch.float32, local_files_only=True)


def write_corpus(path: Path, megabytes: int) -> None:
    """A table of notes of very different lengths, of 50,000 words of which some are frequent and most are rare."""
    draw = random.Random(0)
    letters = "abcdefghilmnoprstuvy"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 11))) for _ in range(50_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    written = number = 0
    with open(path, "w", encoding="utf-8") as stream:
        while written < megabytes * 1e6:
            pool = draw.choices(words, weights, k=100_000)
            start = 0
            while start < len(pool):
                length = int(draw.lognormvariate(4.5, 1.1)) + 3
                line = json.dumps({"text": f"note {number} " + " ".join(pool[start : start + length])}) + "\n"
                stream.write(line)
                written += len(line)
                start, number = start + length, number + 1


def stream(megabytes: int, seconds: float) -> dict[str, Any]:
    """Reads a corpus into pieces for so many seconds at most, then masks texts in random order; memory all the while."""
    import numpy as np

    from posology.engine.backbone import load_tokenizer, resolve
    from posology.engine.memory import resident_bytes
    from posology.pretrain.corpus import Corpus
    from posology.pretrain.excluded import Evaluation
    from posology.pretrain.masking import TRAINING, Masker
    from posology.pretrain.order import Order
    from posology.pretrain.store import Reading, open_store

    tokenizer = load_tokenizer(resolve(BACKBONE))
    samples: list[dict[str, float]] = []
    state: dict[str, Any] = {"phase": "reading", "megabytes": 0.0, "done": False}

    class Timed(Corpus):
        def __iter__(self) -> Iterator[Any]:
            for document in super().__iter__():
                yield document
                state["megabytes"] += len(document.text) / 1e6
                if time.perf_counter() - begin > seconds:
                    return

    def watch() -> None:
        while not state["done"]:
            samples.append({**{key: state[key] for key in ("phase", "megabytes")},
                            "seconds": time.perf_counter() - begin, "memory_mb": resident_bytes() / 1e6})  # fmt: skip
            time.sleep(0.5)

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "corpus.jsonl")
        write_corpus(path, megabytes)
        draw = random.Random(1)
        evaluation = Evaluation(" ".join(f"w{draw.randrange(9999)}" for _ in range(300)) for _ in range(1000))
        corpus, begin = Timed([path]), time.perf_counter()
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            store = open_store(corpus, Path(scratch, "out"), tokenizer, Reading(510, 0.02), evaluation)
            read_seconds = time.perf_counter() - begin
            state["phase"], masker = "masking", Masker.of(tokenizer, RATE, 0)
            order, masked, start = Order(len(store.training), 0, 0), 0, time.perf_counter()
            for step, number in enumerate(order(np.arange(min(len(store.training), 200_000)))):
                ids, starts, _ = store.training.read(int(number))
                masked += len(masker.window(int(number), ids, starts, TRAINING, step // BATCH).ids)
                if time.perf_counter() - start > seconds / 4:
                    break
            mask_seconds = time.perf_counter() - start
        finally:
            state["done"] = True
            watcher.join()
        on_disk = sum(each.stat().st_size for each in store.folder.iterdir())
        facts = store.facts
        store.remove()
    reading = [each for each in samples if each["phase"] == "reading"]
    late = [each for each in reading if each["megabytes"] >= 0.25 * state["megabytes"]]
    slope = float(np.polyfit([each["megabytes"] for each in late], [each["memory_mb"] for each in late], 1)[0])
    return {
        "corpus_megabytes": megabytes,
        "read_megabytes": state["megabytes"],
        "read_megabytes_per_second": state["megabytes"] / read_seconds,
        "masked_pieces_per_second": masked / mask_seconds,
        "pieces": facts["training"]["pieces"] + facts["held"]["pieces"],
        "disk_megabytes": on_disk / 1e6,
        "memory_mb": {
            "start": samples[0]["memory_mb"],
            "after_a_quarter": late[0]["memory_mb"],
            "most_after_a_quarter": max(each["memory_mb"] for each in samples if each["seconds"] >= late[0]["seconds"]),
            "masking": max((each["memory_mb"] for each in samples if each["phase"] == "masking"), default=None),
        },
        "memory_mb_per_gigabyte_read": 1000 * slope,
        "samples": samples[:: max(1, len(samples) // 200)],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the throughput."""
    lines = [
        "Real pieces per second (median of rounds); ratios are taken within rounds: median (min to max).",
        "",
        "| corpus | backbone | ours | Trainer as by default | padding | ours is | Trainer at its best | padding | ours is |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = {name: f"{own['median']:,.0f}" for name, own in row["pieces_per_second"].items()}
        cells = [row["corpus"], row["backbone"], speed["ours"]]
        for name in ("peer_default", "peer_best"):
            own = row["ratios"][name]
            cells += [speed[name], f"{row['padding'][name]:.0%}"]
            cells.append(f"{own['median']:.2f}x ({own['min']:.2f} to {own['max']:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def stream_table(row: dict[str, Any]) -> str:
    """Markdown of the memory."""
    memory = row["memory_mb"]
    return (
        "| read | of a corpus of | MB/s | memory at the start | after a quarter | most after that | growth per GB read | "
        "masking, pieces/s |\n|---|---|---|---|---|---|---|---|\n"
        f"| {row['read_megabytes']:,.0f} MB | {row['corpus_megabytes']:,} MB | {row['read_megabytes_per_second']:.1f} | "
        f"{memory['start']:,.0f} MB | {memory['after_a_quarter']:,.0f} MB | {memory['most_after_a_quarter']:,.0f} MB | "
        f"{row['memory_mb_per_gigabyte_read']:+,.0f} MB | {row['masked_pieces_per_second']:,.0f} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="corpora whose name begins so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each side in a round")
    parser.add_argument("--stream", action="store_true", help="read a large corpus, and note memory")
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=300.0, help="of reading, at most")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()

    from posology.files import write_json

    started = time.time()
    if arguments.stream:
        row = stream(arguments.megabytes, arguments.seconds)
        path = arguments.results / "pretrain-stream.json"
        write_json(path, result([row], started))
        path.with_suffix(".md").write_text(stream_table(row), encoding="utf-8")
        print(stream_table(row))
        return
    path, rows = arguments.results / "pretrain.json", []
    for corpus in CORPORA:
        if corpus.startswith(arguments.only):
            rows.append(throughput(corpus, arguments.rounds, arguments.steps))
            write_json(path, result(rows, started))
            path.with_suffix(".md").write_text(table(rows), encoding="utf-8")
            print(table(rows[-1:]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
