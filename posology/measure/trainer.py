"""The peer's side of a measured training: `transformers.Trainer` on a Hugging Face model, with PEFT around it.

Trainer's own `train()` runs in a thread of its own and hands over after each step: its loop, optimiser, collation and
callbacks are as every user has them, but steps of several trainers can be interleaved.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posology.engine import quiet  # noqa: F401  (before transformers)

# isort: split
import numpy as np
import torch
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from posology.corpus.document import Document
from posology.engine.architectures import architecture_of
from posology.engine.backbone import load_config, load_model, load_tokenizer
from posology.engine.decode import word_tags
from posology.engine.encode import positions
from posology.engine.methods import TASK_TYPES
from posology.engine.predictor import outputs_of
from posology.errors import UserError
from posology.measure.setting import Setting

SUPPORTED = ("full", "head", "lora", "dora", "rslora", "ia3")


@dataclass(frozen=True)
class Flags:
    """What can be chosen on the peer's side without writing code.

    Attributes:
        bf16: autocast to bfloat16.
        attention: `attn_implementation` of transformers.
        group_by_length: `train_sampling_strategy`.
        pad_to_multiple_of: of the collator.
    """

    bf16: bool = False
    attention: str = "sdpa"
    group_by_length: bool = False
    pad_to_multiple_of: int | None = None

    def padding(self, lengths: Sequence[np.ndarray]) -> float:
        """The share of places that hold padding, in batches of documents of these lengths."""
        multiple = self.pad_to_multiple_of or 1
        places = sum(len(own) * -(-int(own.max()) // multiple) * multiple for own in lengths)
        return 1 - float(sum(int(own.sum()) for own in lengths)) / places


AS_PAPER = Flags()
"""As the paper's code has it: float32, random order, padded to the longest of a batch."""


def candidates(bf16: bool) -> list[Flags]:
    """The settings among which the peer's best is looked for, on a device that multiplies bfloat16 natively or not."""
    return [
        Flags(bf16, attention, True, multiple)
        for attention, multiple in (("sdpa", None), ("eager", None), ("eager", 8))
    ]


def check_peer(method: str) -> None:
    """Raises UserError where there is no peer to compare with."""
    if method not in SUPPORTED:
        raise UserError(
            f"there is no peer for {method}: PEFT's does not run on every architecture and task",
            f"Leave out --peer, or choose one of {', '.join(SUPPORTED)}",
            "--method",
        )
    if importlib.util.find_spec("accelerate") is None:
        raise UserError(
            "transformers.Trainer needs the package accelerate",
            "Run `pip install -c constraints.txt accelerate`, or leave out --peer",
            "--peer",
        )


class Rows(list[dict[str, Any]]):
    """Tokenised documents as Trainer takes them, and for taggers the word that each labelled column stands for."""

    words: list[np.ndarray]


def tokenise(setting: Setting, documents: Sequence[Document], tokenizer: Any = None) -> Rows:
    """`input_ids`, `attention_mask`, `labels` ... of documents, truncated as the recipe says."""
    task, tokenizer = setting.task, tokenizer or load_tokenizer(setting.source)
    outputs = {name: index for index, name in enumerate(outputs_of(task.kind, task.labels))}
    limit = min(setting.recipe.max_length, positions(load_config(setting.source)))
    options: dict[str, Any] = {"truncation": True, "max_length": limit}
    rows = Rows()
    rows.words = []
    if task.kind == "sequence-classification":
        pairs = [document.text_pair or "" for document in documents]
        given = [[document.text for document in documents]] + ([pairs] if any(pairs) else [])
        found = tokenizer(*given, **options)
        for index, document in enumerate(documents):
            rows.append({name: values[index] for name, values in found.items()})
            rows[-1]["labels"] = outputs[str(document.label)]
        return rows
    texts = [[document.text[start:end] for start, end in document.words] for document in documents]
    found = tokenizer(texts, is_split_into_words=True, **options)
    for index, document in enumerate(documents):
        owners = np.array([-1 if word is None else word for word in found.word_ids(index)])
        wanted = owners >= 0
        if task.unit == "word":  # a word's first piece stands for it
            wanted &= np.diff(owners, prepend=-1) != 0
        tags = word_tags(document)
        labels = [outputs[tags[word]] if take else -100 for word, take in zip(owners, wanted, strict=True)]
        rows.append({name: values[index] for name, values in found.items()} | {"labels": labels})
        rows.words.append(owners[wanted] if task.unit == "word" else np.arange(int(wanted.sum())))
    return rows


def peer_model(setting: Setting, attention: str) -> Any:
    """The task model with the same initial weights as ours, and PEFT's adapter around it."""
    task, recipe, method = setting.task, setting.recipe, setting.method
    model, new_modules = load_model(
        setting.source, task.kind, outputs_of(task.kind, task.labels), recipe, seed=setting.seed
    )
    model.set_attn_implementation(attention)
    architecture = architecture_of(model.config, setting.source.family)
    head = [*architecture.head[task.kind], *new_modules]
    if method == "full":
        return model
    if method == "head":
        model.requires_grad_(False)
        for name in head:
            model.get_submodule(name).requires_grad_(True)
        return model
    import peft

    depth = model.config.num_hidden_layers
    layers = None if recipe.top_layers is None else range(max(0, depth - recipe.top_layers), depth)

    wanted = architecture.ia3 if method == "ia3" else architecture.lora
    if recipe.targets != "default":
        wanted = tuple(architecture.roles) if recipe.targets == "all" else tuple(recipe.targets)

    def modules(roles: Sequence[str]) -> Any:
        return architecture.pattern(model.base_model_prefix, roles, layers) if roles else []

    common: dict[str, Any] = {"task_type": TASK_TYPES[task.kind], "modules_to_save": head}
    if method == "ia3":
        config: Any = peft.IA3Config(
            target_modules=modules(wanted),
            feedforward_modules=modules([role for role in wanted if role in architecture.ia3_feedforward]),
            **common,
        )
    else:
        config = peft.LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.adapter_dropout,
            target_modules=modules(wanted),
            use_dora=method == "dora",
            use_rslora=method == "rslora",
            **common,
        )
    return peft.get_peft_model(model, config)


class _Planned(Trainer):
    """Trainer that takes given batches, and remembers the loss of each."""

    plan: list[np.ndarray] | None = None

    def get_train_dataloader(self) -> Any:
        if self.plan is None:
            return super().get_train_dataloader()
        batches = [batch.tolist() for batch in self.plan]
        return torch.utils.data.DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=torch.cuda.is_available(),
        )

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **named)
        self.losses.append(loss.item())
        return loss


def make_trainer(
    setting: Setting, flags: Flags, rows: Rows, folder: str, plan: Sequence[np.ndarray] | None = None
) -> Any:
    """A Trainer on `rows`.

    Args:
        setting: model and recipe.
        flags: of Trainer.
        rows: to train on.
        folder: where it may write.
        plan: its batches, once; without them it trains as the recipe says, in its own order.
    """
    recipe = setting.recipe
    collator = (
        DataCollatorForTokenClassification if setting.task.kind == "token-classification" else DataCollatorWithPadding
    )
    trainer = _Planned(
        model=peer_model(setting, flags.attention),
        args=TrainingArguments(
            output_dir=folder,
            num_train_epochs=recipe.epochs,
            max_steps=-1 if plan is None else len(plan),
            per_device_train_batch_size=recipe.batch_size,
            per_device_eval_batch_size=32,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup,
            max_grad_norm=recipe.max_grad_norm,
            lr_scheduler_type="linear" if recipe.schedule == "linear" else "constant_with_warmup",
            bf16=flags.bf16,
            train_sampling_strategy="group_by_length" if flags.group_by_length else "random",
            save_strategy="no",
            logging_strategy="no",
            eval_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            seed=setting.seed,
        ),
        train_dataset=rows,
        data_collator=collator(load_tokenizer(setting.source), pad_to_multiple_of=flags.pad_to_multiple_of),
    )
    trainer.losses = []
    trainer.plan = list(plan) if plan is not None else None
    trainer.remove_callback(PrinterCallback)  # prints on stdout
    return trainer


class PeerTraining:
    """A Trainer that takes one step each time it is told to.

    What its own loop does in a step is done here with its own methods, without callbacks and logging. In a thread of its
    own the loop itself could wait for its turn; but OpenMP keeps other threads for each thread of a program, and where
    these are more than processors it lets them all sleep between products: all sides lost by that, ours the most.

    Args:
        setting: model and recipe.
        flags: of Trainer.
        rows: tokenised documents.
        plan: its batches, each positions in `rows`; `run` may be called once for each.

    Attributes:
        losses: of each step.
    """

    def __init__(self, setting: Setting, flags: Flags, rows: Rows, plan: Sequence[np.ndarray]):
        self.flags = flags
        self._folder = tempfile.TemporaryDirectory()
        self._trainer = make_trainer(setting, flags, rows, self._folder.name, plan)
        self.losses: list[float] = self._trainer.losses
        self._trainer.current_gradient_accumulation_steps = 1
        self._model, loader = self._trainer._prepare_for_training(len(plan), self._trainer.get_train_dataloader(), None)
        self._batches = iter(loader)

    def run(self) -> None:
        """The next step."""
        trainer = self._trainer
        (inputs,), items = trainer.get_batch_samples(self._batches, 1, trainer.args.device)
        trainer.training_step(self._model, inputs, items)
        trainer._clip_grad_norm(self._model)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self._model.zero_grad()

    def close(self) -> None:
        """Gives its memory back."""
        self._folder.cleanup()
        del self._trainer, self._model, self._batches


def train_whole(setting: Setting, flags: Flags, rows: Rows) -> tuple[Any, float]:
    """Trains on all rows as the recipe says; the trainer, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(setting, flags, rows, folder)
        begin = time.perf_counter()
        trainer.train()
        return trainer, time.perf_counter() - begin


def peer_logits(trainer: Any, rows: Rows) -> list[np.ndarray]:
    """Logits of each document as `Predictor.logits` gives them: (classes,), or (words, tags)."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.args.output_dir = folder
        output = trainer.predict(rows).predictions
    if not rows.words:
        return list(output)
    found = []
    for row, words, values in zip(rows, rows.words, output, strict=True):
        own = np.full((int(words.max(initial=-1)) + 1, values.shape[1]), np.nan, np.float32)
        own[words] = values[: len(row["labels"])][np.array(row["labels"]) != -100]
        found.append(own)
    return found
