"""`posology pretrain`: pre-training goes on with unlabelled notes, from a corpus to a backbone folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from posology import console
from posology.corpus import tabular
from posology.engine.backbone import Source, load_config, load_tokenizer, resolve
from posology.engine.checkpoint import EVERY_SECONDS, Checkpoint
from posology.engine.encode import Frame, positions
from posology.engine.lineage import lineage
from posology.engine.precision import Precision, decide
from posology.engine.recipe import Recipe
from posology.engine.record import machine, versions
from posology.engine.stopping import interruptible
from posology.errors import Interrupted, UserError
from posology.files import check_free, check_writable
from posology.measure.money import rate
from posology.pretrain.card import backbone_card
from posology.pretrain.corpus import Corpus
from posology.pretrain.excluded import Evaluation, evaluation_texts, open_tasks
from posology.pretrain.folder import RECORD, write_backbone
from posology.pretrain.loop import TOKEN_BUDGET, Pretraining, run
from posology.pretrain.masking import Masker
from posology.pretrain.mlm import MaskedModel, load_masked, merged, weights_of
from posology.pretrain.perplexity import HeldOut, change, held_out_windows, measure
from posology.pretrain.record import check_numbers, descent, learning, reading, settings
from posology.pretrain.store import Reading, Store, count_words, open_store
from posology.pretrain.vocabulary import extend, new_words
from posology.seed import check_seed
from posology.tasks.prepared import PreparedTask

_EPOCHS = 3.0
_RATES = {"full": 1e-4, "lora": 1e-3}
_WIDEST_SMALL = 384
"""Wider backbones learn at half of these rates."""


def pretrain(
    corpus: Path | str,
    *,
    backbone: str,
    out: Path | str,
    also: list[Path] | None = None,
    text: str | None = None,
    group: str | None = None,
    encoding: str = "utf-8",
    quoting: bool = True,
    method: Literal["full", "lora"] = "full",
    mask_rate: float = 0.15,
    epochs: float | None = None,
    steps: int | None = None,
    max_seconds: float | None = None,
    max_cost: float | None = None,
    price: str = "own-server",
    prices: Path | None = None,
    exclude: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    held_out: float = 0.02,
    extend_vocabulary: int = 0,
    batch_size: int = 32,
    learning_rate: float | None = None,
    max_length: int = 512,
    domain: Literal["general", "biomedical", "clinical"] = "clinical",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    seed: int = 42,
    with_text: bool = False,
    overwrite: bool = False,
    fresh: bool = False,
    checkpoint_seconds: Annotated[float, Parameter(parse=False)] = EVERY_SECONDS,
) -> dict[str, Any]:
    """Continues the pre-training of an encoder by masked words on unlabelled text, and writes a backbone folder.

    The corpus is read once, in memory that does not grow with it; its pieces wait in `.NAME.corpus` beside `out`,
    readable by their owner only. A run that was stopped or killed continues when it is called again with the same
    arguments, and ends with the very weights it would have had, on the same machine with the same number of threads (not
    where seconds or money are limited).

    Args:
        corpus: JSON Lines, CSV, TSV or Parquet (also .gz for the text formats), a folder of .txt files, or
            NOTEEVENTS.csv(.gz) of MIMIC-III or the folder it is in.
        backbone: catalogue name, folder, or NAME:K for its first K layers.
        out: the folder to write.
        also: a further corpus that is read with it; may be given several times.
        text: column of the text; guessed where only one is called text, sentence or note.
        group: column of the patient, so that none is trained on and held out; of NOTEEVENTS it is SUBJECT_ID.
        encoding: of text files.
        quoting: whether double quotes enclose fields of CSV and TSV.
        method: full trains every weight; lora trains low-rank updates, which are added into the weights at the end.
        mask_rate: share of the pieces that are hidden, whole words at a time.
        epochs: passes over the corpus, 3 by default; may be a fraction.
        steps: of the optimiser, in place of epochs.
        max_seconds: stop training after so many seconds; reading the corpus and measuring perplexity come on top.
        max_cost: stop when those seconds have cost so much, in the currency of the price.
        price: of an hour of the machine, by its name in prices.yaml.
        prices: a file of one's own in its form.
        exclude: a prepared task whose validation and test documents must not be read; several may be named. Exact
            copies and near duplicates are left out and counted.
        held_out: share of the documents (or patients) on which perplexity is measured.
        extend_vocabulary: make whole words of so many that are cut into pieces; only of words that stand in notes of ten
            patients or more (ten documents where patients are not known, see `group`), and they go wherever the backbone
            goes. Reads the corpus twice.
        batch_size: texts in one step of the optimiser.
        learning_rate: peak; by default 1e-4 for full and 1e-3 for lora, and half of it for wide backbones.
        max_length: pieces of a text, special tokens included; longer documents are cut between words.
        domain: what the ledger calls the text.
        precision: auto takes bfloat16 where the hardware multiplies it natively.
        seed: of order, masks, dropout and new weights.
        with_text: name the worst-split terms, which are words of notes, in the result (not in the folder).
        overwrite: replace `out`.
        fresh: start over, even where an interrupted run could be continued.
        checkpoint_seconds: write a checkpoint after so many seconds; 0: after every step.

    Returns:
        `out`, `perplexity` ({`before`, `after`} and, where the head is new, `with_new_head`), `held_out` (the same with
        95 % intervals and as median of documents, and their `ratio`), `excluded` ({`exact`, `near`}), `seconds`,
        `tokens`, `steps`, `cost`, `coverage`, and the rest of `posology-backbone.json`.

    Raises:
        UserError: input that does not fit; nothing is written.
        Interrupted: stopped; a checkpoint is kept.
    """
    out = Path(out)
    check_numbers(
        {"--epochs": epochs, "--steps": steps, "--max-seconds": max_seconds, "--max-cost": max_cost,
         "--batch-size": batch_size, "--learning-rate": learning_rate},
        {"--extend-vocabulary": extend_vocabulary, "checkpoint_seconds": checkpoint_seconds},
        held_out,
        max_length,
    )  # fmt: skip
    check_seed(seed)
    if method == "lora" and extend_vocabulary:
        raise UserError(
            "the embeddings of new words must be trained, and LoRA trains none",
            "Use --method full, or leave out --extend-vocabulary",
            "--method lora",
        )
    check_free(out, marker=RECORD, overwrite=overwrite)
    hourly = rate(price, prices)
    if max_cost is not None and hourly.per_hour > 0:
        max_seconds = min(max_seconds or math.inf, 3600 * max_cost / hourly.per_hour)
    columns = tabular.Columns(text=text, group=group)
    sources = Corpus([Path(corpus), *map(Path, also or [])], columns, encoding=encoding, quoting=quoting)
    tasks = open_tasks(exclude) if exclude else []
    source = resolve(backbone)
    config = load_config(source)
    rate_ = learning_rate or _RATES[method] / (2 if config.hidden_size > _WIDEST_SMALL else 1)
    recipe = Recipe(learning_rate=rate_, batch_size=batch_size, precision=precision, max_length=max_length)
    chosen = decide(precision)
    console.say(chosen.reason)
    check_writable(out, sum(path.stat().st_size for path in source.folder.glob("*.safetensors")))
    with interruptible():
        work = _Work(out, source, method, recipe, chosen, sources, tasks, mask_rate, held_out, seed, with_text)
        with work.read(extend_vocabulary, fresh) as store:
            count = steps or math.ceil((epochs or _EPOCHS) * len(store.training) / batch_size)
            asked = {"steps": count, "max_seconds": max_seconds, "extend_vocabulary": extend_vocabulary}
            with Checkpoint(out, work.settings() | asked, every=checkpoint_seconds, fresh=fresh) as checkpoint:
                record = work.train(count, max_seconds, checkpoint)
                training = record["training"]
                cost = {"value": training["seconds"] / 3600 * hourly.per_hour, "currency": hourly.currency}
                record = {"domain": domain, **record, "cost": cost}
                work.write(record, overwrite)
                checkpoint.remove()
    progress = {name: training[name] for name in ("seconds", "tokens", "steps", "stopped")}
    # With the worst-split terms, where they were asked for: these are words of notes, and the folder may be handed on.
    return {"out": str(out), **progress, **record, "coverage": store.facts["coverage"]}


@dataclass
class _Work:
    """One pre-training, from what was asked to what is written."""

    out: Path
    source: Source
    method: str
    recipe: Recipe
    precision: Precision
    corpus: Corpus
    tasks: list[PreparedTask]
    mask_rate: float
    held_out: float
    seed: int
    with_text: bool

    def read(self, extend_by: int, fresh: bool) -> Store:
        """Reads the corpus, and builds the model."""
        self.tokenizer = load_tokenizer(self.source)
        frame = Frame.of(self.tokenizer)
        length = frame.capacity(min(self.recipe.max_length, positions(load_config(self.source))))
        evaluation = Evaluation(evaluation_texts(self.tasks)) if self.tasks else None
        Masker.of(self.tokenizer, self.mask_rate, self.seed)  # what is wrong with it is said before the corpus is read
        reading = Reading(length, self.held_out, self.with_text)
        words: dict[int, list[int]] = {}
        if extend_by:
            counts = count_words(self.corpus, self.tokenizer, reading, evaluation)
            words = extend(self.tokenizer, new_words(counts, self.tokenizer, extend_by))
            console.say(f"{len(words):,} words become part of the vocabulary, which goes wherever the backbone goes")
        self.new_words = len(words)
        self.masker = Masker.of(self.tokenizer, self.mask_rate, self.seed)
        self.model: MaskedModel = load_masked(self.source, self.tokenizer, self.method, seed=self.seed, new_words=words)
        self.model.attention = self.precision.attention
        if self.model.new_head:
            console.say(
                f"{self.source.title} has no head for masked words: it gets a new one, which is trained alone first"
            )
        self.store = open_store(self.corpus, self.out, self.tokenizer, reading, evaluation, fresh=fresh)
        facts = self.store.facts
        excluded = sum(facts["excluded"].values())
        console.say(
            f"{facts['documents']:,} documents: {facts['training']['documents']:,} to train on "
            f"({facts['training']['pieces']:,} pieces in {facts['training']['windows']:,} texts), "
            f"{facts['held']['documents']:,} held out, {excluded:,} like evaluation documents and left out"
        )
        return self.store

    def settings(self) -> dict[str, Any]:
        """All that the weights at the end depend on."""
        shared = settings(self.store, self.source, self.recipe, self.precision, held_out=self.held_out, seed=self.seed)
        return {
            **shared,
            "backbone": self.source.title,
            "method": self.method,
            "mask_rate": self.mask_rate,
            **versions("torch", "transformers", "peft", "tokenizers"),
        }

    def train(self, steps: int, max_seconds: float | None, checkpoint: Checkpoint) -> dict[str, Any]:
        """Trains, measures before and after, and gives the record.

        Raises:
            Interrupted: it was; a checkpoint is kept.
        """
        model, precision = self.model, self.precision
        model.module.to(precision.device)
        documents = held_out_windows(self.store.held, self.masker)
        if not documents:
            raise UserError("no held-out document has a word to hide", "Raise --held-out", "CORPUS")
        budget = TOKEN_BUDGET[precision.device.type]

        def perplexity(state: str) -> HeldOut:
            return measure(model, documents, precision, budget, f"measuring perplexity {state}")

        training = Pretraining(
            model,
            self.store.training,
            self.masker,
            self.recipe,
            steps,
            precision,
            seed=self.seed,
            max_seconds=max_seconds,
        )
        noted = training.read(checkpoint)
        if noted is None:
            import torch

            first = perplexity("before")
            noted = {"before": _as_lists(first)}
            torch.manual_seed(self.seed)

        def after_head() -> None:
            noted["with_new_head"] = _as_lists(perplexity("with the new head"))

        run(training, steps, checkpoint, noted, after_head)
        if training.progress.stopped == "interrupted":
            raise Interrupted(f"the checkpoint beside {self.out} is kept, and the same command continues")
        measured = {name: _as_held_out(own) for name, own in noted.items()} | {"after": perplexity("after")}
        for name, own in measured.items():
            console.say(f"held-out perplexity {name.replace('_', ' ')}: {own.perplexity:,.2f}")
        return self._record(training, measured)

    def _record(self, training: Pretraining, measured: dict[str, HeldOut]) -> dict[str, Any]:
        facts, progress, before = self.store.facts, training.progress, lineage(self.source)
        reference = measured.get("with_new_head", measured["before"])
        return {
            "pretraining": "; ".join(part for part in (before.pretraining, f"masked words ({self.method})") if part),
            "distilled_from": before.distilled_from,
            **descent(self.source),
            "parameters": self.model.backbone_parameters,
            **reading(self.store, self.tasks),
            "perplexity": {name: own.perplexity for name, own in measured.items()},
            "held_out": {
                "documents": len(reference.counts),
                "hidden": int(reference.counts.sum()),
                **{name: own.summary() for name, own in measured.items()},
                "ratio": change(reference, measured["after"]),
            },
            "new_head": self.model.new_head,
            "new_words": self.new_words,
            "coverage": {name: value for name, value in facts["coverage"].items() if name != "worst"},
            "trainable_parameters": sum(weight.numel() for weight in self.model.trainable().values()),
            "training": {
                **vars(progress),
                "method": self.method,
                "mask_rate": self.mask_rate,
                "seed": self.seed,
                **learning(self.recipe),
                "epochs": progress.steps * self.recipe.batch_size / facts["training"]["windows"],
                "precision": self.precision.reason,
            },
            "machine": machine(),
            "versions": versions(),
        }

    def write(self, record: dict[str, Any], overwrite: bool) -> None:
        """Writes the backbone's folder."""
        base = merged(self.model)
        base.set_attn_implementation("sdpa")
        weights = weights_of(base, self.source)
        config = base.config
        config.architectures = [type(base).__name__]
        card = backbone_card(record, self.out.resolve().name)
        write_backbone(self.out, config, weights, self.tokenizer, record, card, overwrite=overwrite)


def _as_lists(found: HeldOut) -> dict[str, list[float]]:
    return {"sums": found.sums.tolist(), "counts": found.counts.tolist()}


def _as_held_out(noted: dict[str, list[float]]) -> HeldOut:
    import numpy as np

    return HeldOut(np.array(noted["sums"]), np.array(noted["counts"]))
