"""`posology distil`: a small encoder from a large one, on unlabelled text; or a run that learns from an artifact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from posology import console
from posology.corpus import tabular
from posology.engine.artifact import RECORD as ARTIFACT
from posology.engine.backbone import Source, load_config, load_tokenizer, resolve
from posology.engine.checkpoint import EVERY_SECONDS, Checkpoint
from posology.engine.encode import Frame, positions
from posology.engine.lineage import BACKBONE_RECORD, lineage
from posology.engine.precision import Precision, decide
from posology.engine.recipe import Recipe
from posology.engine.record import machine, versions
from posology.engine.stopping import interruptible
from posology.engine.teaching import TEMPERATURE, WEIGHT, Teaching
from posology.engine.train import train
from posology.errors import Interrupted, UserError
from posology.files import check_free, check_writable
from posology.pretrain.corpus import Corpus
from posology.pretrain.distilled_card import distilled_card
from posology.pretrain.excluded import Evaluation, evaluation_texts, open_tasks
from posology.pretrain.folder import write_backbone
from posology.pretrain.imitation import MOST_PIECES, Imitation, Losses, projection_for
from posology.pretrain.loop import run
from posology.pretrain.masking import Masker, Whole
from posology.pretrain.mlm import load_masked, weights_of
from posology.pretrain.perplexity import held_out_windows
from posology.pretrain.record import check_numbers, descent, learning, reading, settings
from posology.pretrain.store import Reading, Store, open_store
from posology.pretrain.student import chosen_layers, copy_of, student_config, watched
from posology.seed import check_seed
from posology.tasks.prepared import PreparedTask

_EPOCHS = 3.0
_MASK_RATE = 0.15


def distil_task(
    teacher: Path | str,
    data: Path | str,
    *,
    student: str,
    out: Path | str,
    method: str = "full",
    unlabelled: Path | str | None = None,
    text: str | None = None,
    temperature: float = TEMPERATURE,
    weight: float = WEIGHT,
    **others: Any,
) -> dict[str, Any]:
    """Trains a student on a prepared task with an artifact as its teacher.

    Args:
        teacher: the artifact's folder.
        data: the prepared task.
        student: a backbone: catalogue name, folder, or `NAME:K`.
        out: the student's artifact.
        method: how the student is adapted.
        unlabelled: further documents, which the teacher labels: a table, or a folder of .txt files.
        text: their column of text.
        temperature: what logits are divided by.
        weight: of the teacher's answers against the labels, from 0 to 1.
        others: as for `posology.train`.

    Returns:
        What `posology.train` returns.

    Raises:
        UserError: input that does not fit; nothing is written.
        Interrupted: stopped; a checkpoint is kept.
    """
    if not (Path(teacher) / ARTIFACT).is_file():
        raise UserError(
            f"is no artifact: it has no {ARTIFACT}",
            "Give a folder that `posology train` wrote, or --corpus and --student-layers to distil a backbone",
            teacher,
        )
    teaching = Teaching(
        Path(teacher), None if unlabelled is None else Path(unlabelled), text, temperature=temperature, weight=weight
    )
    return train(data, student, method, out, distilled_from=teaching, **others)


def distil_backbone(
    teacher: str,
    corpus: Path | str,
    *,
    out: Path | str,
    student_layers: int,
    student_width: int | None = None,
    also: list[Path] | None = None,
    text: str | None = None,
    group: str | None = None,
    encoding: str = "utf-8",
    quoting: bool = True,
    losses: Losses | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    max_seconds: float | None = None,
    exclude: list[Path] | None = None,
    held_out: float = 0.02,
    batch_size: int = 32,
    learning_rate: float = 2e-4,
    max_length: int = 256,
    domain: str | None = None,
    precision: str = "auto",
    seed: int = 42,
    overwrite: bool = False,
    fresh: bool = False,
    checkpoint_seconds: float = EVERY_SECONDS,
) -> dict[str, Any]:
    """Makes a smaller encoder of an encoder, and writes a backbone folder.

    The student starts as evenly spaced layers of its teacher, and learns on unlabelled text to give what the teacher
    gives (`posology.pretrain.imitation`). Corpus, checkpoints and held-out documents are those of `posology pretrain`.

    Args:
        teacher: catalogue name, folder, or `NAME:K`.
        corpus: as for `posology.pretrain.command.pretrain`, like `also`, `text`, `group`, `encoding`, `quoting`,
            `exclude` and `held_out`.
        out: the folder to write.
        student_layers: how many layers it keeps.
        student_width: of its hidden states; the teacher's where None.
        losses: weights and temperature.
        epochs: passes over the corpus, 3 by default; may be a fraction.
        steps: of the optimiser, in place of epochs; 0 leaves the student as it starts.
        max_seconds: stop training after so many seconds.
        batch_size: texts in one step.
        learning_rate: peak.
        max_length: pieces of a text, special tokens included.
        domain: what the ledger calls the student's text; the teacher's by default.
        precision: `auto`, `fp32` or `bf16`.
        seed: of the order of texts and of masks.
        overwrite: replace `out`.
        fresh: start over, even where an interrupted run could be continued.
        checkpoint_seconds: write a checkpoint after so many seconds; 0: after every step.

    Returns:
        `out`, `layers`, `parameters` and `teacher_parameters` (of the encoders), `losses` ({`before`, `after`}: the mean
        of each on held-out documents), `excluded`, `seconds`, `steps`, `tokens`, `stopped` and the rest of
        `posology-backbone.json`.

    Raises:
        UserError: input that does not fit; nothing is written.
        Interrupted: stopped; a checkpoint is kept.
    """
    out = Path(out)
    losses = losses or Losses()
    check_numbers(
        {"--epochs": epochs, "--max-seconds": max_seconds, "--batch-size": batch_size, "--learning-rate": learning_rate,
         "--temperature": losses.temperature},
        {"--steps": steps, "--hidden": losses.hidden, "--relations": losses.relations,
         "--logits": losses.logits},
        held_out,
        max_length,
    )  # fmt: skip
    check_seed(seed)
    if not (losses.hidden or losses.relations or losses.logits):
        raise UserError("all losses have a weight of 0, so that nothing is learnt", "Raise one of them", "--hidden")
    check_free(out, marker=BACKBONE_RECORD, overwrite=overwrite)
    source = resolve(teacher)
    config = load_config(source)
    layers = chosen_layers(config.num_hidden_layers, student_layers)
    columns = tabular.Columns(text=text, group=group)
    sources = Corpus([Path(corpus), *map(Path, also or [])], columns, encoding=encoding, quoting=quoting)
    tasks = open_tasks(exclude) if exclude else []
    chosen = decide(precision)
    console.say(chosen.reason)
    recipe = Recipe(learning_rate=learning_rate, batch_size=batch_size, max_length=max_length)
    check_writable(out, sum(path.stat().st_size for path in source.folder.glob("*.safetensors")))
    with interruptible():
        work = _Work(out, source, layers, student_width, losses, recipe, chosen, tasks, held_out, seed)
        with work.read(sources, fresh) as store:
            count = math.ceil((epochs or _EPOCHS) * len(store.training) / batch_size) if steps is None else steps
            asked = {"steps": count, "max_seconds": max_seconds}
            with Checkpoint(out, work.settings() | asked, every=checkpoint_seconds, fresh=fresh) as checkpoint:
                record = work.train(count, max_seconds, checkpoint)
                record = record | {"domain": domain or lineage(source).domain}
                work.write(record, overwrite)
                checkpoint.remove()
    training = record["training"]
    return {"out": str(out), **{name: training[name] for name in ("seconds", "tokens", "steps", "stopped")}, **record}


@dataclass
class _Work:
    """One distillation, from what was asked to what is written."""

    out: Path
    source: Source
    layers: list[int]
    width: int | None
    losses: Losses
    recipe: Recipe
    precision: Precision
    tasks: list[PreparedTask]
    held_out: float
    seed: int

    def read(self, corpus: Corpus, fresh: bool) -> Store:
        """Builds both models, and reads the corpus."""
        self.tokenizer = load_tokenizer(self.source)
        loaded = load_masked(self.source, self.tokenizer, "full", seed=self.seed)
        architecture, base = loaded.architecture, loaded.base
        head = not loaded.new_head and self.tokenizer.mask_token_id is not None
        config = student_config(base.config, architecture, self.layers, self.width)
        depth = base.config.num_hidden_layers
        teacher = copy_of(base, architecture, base.config, range(depth))
        student = copy_of(base, architecture, config, self.layers)
        self.projection = projection_for(config.hidden_size, base.config.hidden_size)
        module = None if self.projection is None else nn.ModuleDict({"model": student, "projection": self.projection})
        self.teacher = watched(teacher, architecture, self.layers, head=head)
        self.student = watched(student, architecture, range(len(self.layers)), head=head, module=module)
        if not head:
            console.say(f"{self.source.title} has no head for masked words: hidden states and relations are compared")
        frame = Frame.of(self.tokenizer)
        self.masker: Masker | Whole = (
            Masker.of(self.tokenizer, _MASK_RATE, self.seed) if head else Whole(frame.before, frame.after, self.seed)
        )
        length = frame.capacity(min(self.recipe.max_length, positions(base.config)))
        evaluation = Evaluation(evaluation_texts(self.tasks)) if self.tasks else None
        reading = Reading(length, self.held_out)
        self.store = open_store(corpus, self.out, self.tokenizer, reading, evaluation, fresh=fresh)
        facts = self.store.facts
        console.say(
            f"{facts['training']['documents']:,} documents to train on, {facts['held']['documents']:,} held out; layers "
            f"{', '.join(str(layer + 1) for layer in self.layers)} of {depth} make a student of "
            f"{self.student.backbone_parameters:,} parameters from {self.teacher.backbone_parameters:,}"
        )
        return self.store

    def settings(self) -> dict[str, Any]:
        """All that the weights at the end depend on."""
        shared = settings(self.store, self.source, self.recipe, self.precision, held_out=self.held_out, seed=self.seed)
        return {
            **shared,
            "layers": self.layers,
            "width": self.width,
            **self.losses._asdict(),
            **versions("torch", "transformers", "tokenizers"),
        }

    def train(self, steps: int, max_seconds: float | None, checkpoint: Checkpoint) -> dict[str, Any]:
        """Trains, measures before and after, and gives the record.

        Raises:
            Interrupted: it was; a checkpoint is kept.
        """
        for module in (self.teacher.module, self.student.module):
            module.to(self.precision.device)
        self.teacher.module.requires_grad_(False)
        training = Imitation(
            self.student,
            self.teacher,
            self.losses,
            self.projection,
            self.store.training,
            self.masker,
            self.recipe,
            max(1, steps),
            self.precision,
            seed=self.seed,
            max_seconds=max_seconds,
        )
        documents = held_out_windows(self.store.held, self.masker, MOST_PIECES)
        held = [window for own in documents for window in own]
        noted = training.read(checkpoint)
        if noted is None:
            noted = {"before": training.measure(held, "comparing with the teacher")}
        if steps:
            run(training, steps, checkpoint, noted, lambda: None)
        if training.progress.stopped == "interrupted":
            raise Interrupted(f"the checkpoint beside {self.out} is kept, and the same command continues")
        measured = {"before": noted["before"], "after": training.measure(held, "comparing with the teacher again")}
        for name, before in measured["before"].items():
            console.say(f"held-out loss of {name}: {before:.4f} before, {measured['after'][name]:.4f} after")
        return self._record(training, measured, len(held))

    def _record(self, training: Imitation, measured: dict[str, dict[str, float]], held: int) -> dict[str, Any]:
        before = lineage(self.source).pretraining
        config = self.student.base.config
        return {
            "pretraining": "; ".join(part for part in (before, "distilled") if part),
            "distilled_from": {"name": self.source.title, "sha256": self.source.fingerprint, "layers": self.layers},
            **descent(self.source),
            "layers": len(self.layers),
            "width": config.hidden_size,
            "parameters": self.student.backbone_parameters,
            "teacher_parameters": self.teacher.backbone_parameters,
            "losses": measured,
            "compared_texts": held,
            **reading(self.store, self.tasks),
            "training": {
                **vars(training.progress),
                **self.losses._asdict(),
                "seed": self.seed,
                **learning(self.recipe),
                "precision": self.precision.reason,
            },
            "machine": machine(),
            "versions": versions("torch", "transformers", "tokenizers"),
        }

    def write(self, record: dict[str, Any], overwrite: bool) -> None:
        """Writes the student's folder: with a head if the teacher had one, and the teacher's pooler if it has its width."""
        base = self.student.base
        base.set_attn_implementation("sdpa")
        prefix = f"{base.base_model_prefix}."
        weights = weights_of(base, self.source)
        if base.config.hidden_size != load_config(self.source).hidden_size:
            weights = {name: weight for name, weight in weights.items() if not name.startswith(f"{prefix}pooler.")}
        if not self.student.head_too:
            weights = {name: weight for name, weight in weights.items() if name.startswith(prefix)}
        config = base.config
        config.architectures = [type(base).__name__]
        card = distilled_card(record, self.out.resolve().name)
        write_backbone(self.out, config, weights, self.tokenizer, record, card, overwrite=overwrite)
