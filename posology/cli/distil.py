"""`posology distil`: one command for both ways to make a small model of a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from posology.errors import UserError

_BACKBONE = Group("A smaller backbone, on unlabelled text (--corpus)", sort_key=1)
_TASK = Group("A student for a task, from an artifact (--data)", sort_key=2)
_Backbone, _Task = Parameter(group=_BACKBONE), Parameter(group=_TASK)


def distil(
    teacher: str,
    *,
    out: Path,
    corpus: Annotated[Path | None, _Backbone] = None,
    student_layers: Annotated[int | None, _Backbone] = None,
    student_width: Annotated[int | None, _Backbone] = None,
    also: Annotated[list[Path] | None, _Backbone] = None,
    group: Annotated[str | None, _Backbone] = None,
    encoding: Annotated[str | None, _Backbone] = None,
    quoting: Annotated[bool | None, _Backbone] = None,
    hidden: Annotated[float | None, _Backbone] = None,
    relations: Annotated[float | None, _Backbone] = None,
    logits: Annotated[float | None, _Backbone] = None,
    epochs: Annotated[float | None, _Backbone] = None,
    steps: Annotated[int | None, _Backbone] = None,
    exclude: Annotated[list[Path] | None, _Backbone] = None,
    held_out: Annotated[float | None, _Backbone] = None,
    batch_size: Annotated[int | None, _Backbone] = None,
    learning_rate: Annotated[float | None, _Backbone] = None,
    max_length: Annotated[int | None, _Backbone] = None,
    domain: Annotated[Literal["general", "biomedical", "clinical"] | None, _Backbone] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16"] | None, _Backbone] = None,
    data: Annotated[Path | None, _Task] = None,
    student: Annotated[str | None, _Task] = None,
    method: Annotated[str | None, _Task] = None,
    unlabelled: Annotated[Path | None, _Task] = None,
    weight: Annotated[float | None, _Task] = None,
    recipe: Annotated[str | None, _Task] = None,
    set: Annotated[list[str] | None, Parameter(consume_multiple=True, group=_TASK)] = None,
    evaluate_seconds: Annotated[float | None, _Task] = None,
    max_memory: Annotated[str | None, _Task] = None,
    shots: Annotated[int | None, _Task] = None,
    temperature: float = 2.0,
    text: str | None = None,
    max_seconds: float | None = None,
    seed: int = 42,
    overwrite: bool = False,
    fresh: bool = False,
) -> dict[str, Any]:
    """Make a small model of a large one: a backbone on unlabelled text, or a model of a task from an artifact.

    With --corpus the teacher is an encoder. The student starts as some of its layers and learns to give what it gives;
    the result is a folder for `posology train --backbone`. With --data the teacher is an artifact. The student, any
    backbone with any method, learns from its answers and from the labels; the result is an artifact like any other.
    A run that was stopped or killed goes on when the same command is given again.

    Args:
        teacher: a backbone (catalogue name, folder, NAME:K), or an artifact.
        out: the folder to write; must be new or empty.
        corpus: unlabelled text: JSON Lines, CSV, TSV, Parquet (.gz for the text formats), a folder of .txt files, or
            NOTEEVENTS.csv(.gz).
        student_layers: keep so many layers, evenly spaced.
        student_width: width of its hidden states; by default the teacher's, which keeps more.
        also: a further corpus; may be given several times.
        group: column of the patient, so that none is trained on and held out.
        encoding: of text files; utf-8 by default.
        quoting: whether double quotes enclose fields of CSV and TSV; they do by default.
        hidden: weight of the difference between hidden states; 1 by default, like the other two.
        relations: weight of the difference between relations of queries, keys and values.
        logits: weight of the difference between guesses at hidden words, where the teacher can guess.
        epochs: passes over the corpus, 3 by default.
        steps: of the optimiser, in place of epochs; 0 only takes the layers.
        exclude: a prepared task whose validation and test documents must not be read; may be given several times.
        held_out: share of the documents on which teacher and student are compared; 0.02 by default.
        batch_size: texts in one step; 32 by default.
        learning_rate: peak; 2e-4 by default.
        max_length: pieces of a text; 256 by default.
        domain: what the ledger calls the text; the teacher's by default.
        precision: auto takes bfloat16 where the hardware multiplies it natively.
        data: a prepared task with the teacher's labels.
        student: the backbone that learns: catalogue name, folder, or NAME:K for its first K layers.
        method: how it is adapted; full by default.
        unlabelled: further documents, which the teacher labels: a table, or a folder of .txt files.
        weight: of the teacher's answers against the labels, from 0 to 1; 0.5 by default.
        recipe: standard or paper.
        set: fields of the recipe to replace, such as --set epochs=10 learning_rate=1e-4.
        evaluate_seconds: evaluate after so many seconds of training too.
        max_memory: such as 4GB.
        shots: labelled documents per class, or per entity type.
        temperature: what logits of teacher and student are divided by before they are compared.
        text: column of the text in --corpus or --unlabelled.
        max_seconds: stop training after so many seconds.
        seed: of initialisation, order, masks and dropout.
        overwrite: replace `out`.
        fresh: start over, even where an interrupted run could be continued.
    """
    of_backbone = {
        "student_width": student_width, "also": also, "group": group, "encoding": encoding, "quoting": quoting,
        "epochs": epochs, "steps": steps,
        "exclude": exclude, "held_out": held_out, "batch_size": batch_size, "learning_rate": learning_rate,
        "max_length": max_length, "domain": domain, "precision": precision,
    }  # fmt: skip
    losses = {"hidden": hidden, "relations": relations, "logits": logits}
    of_task = {
        "method": method, "unlabelled": unlabelled, "weight": weight, "recipe": recipe,
        "evaluate_seconds": evaluate_seconds, "max_memory": max_memory, "shots": shots,
    }  # fmt: skip
    common: dict[str, Any] = {
        "text": text, "max_seconds": max_seconds, "seed": seed, "overwrite": overwrite, "fresh": fresh, "out": out,
    }  # fmt: skip
    for_task = {"data": data, "student": student, **of_task, "set": set}
    for_backbone = {"corpus": corpus, "student_layers": student_layers, **of_backbone, **losses}
    if (data is None) == (corpus is None):
        raise UserError(
            "neither or both of --corpus and --data were given",
            "Give --corpus TEXT --student-layers K to make a backbone, or --data TASK --student BACKBONE to teach a task",
            "posology distil",
        )
    if data is not None:
        _refuse(for_backbone, "--data", "--corpus")
        if student is None:
            raise UserError("no student is named", "Add --student BACKBONE, such as minilm:4", "posology distil --data")
        from posology.engine.recipe import parse_overrides
        from posology.pretrain.distil import distil_task

        given = {**_given(of_task), **common, "overrides": parse_overrides(set or []), "temperature": temperature}
        return distil_task(teacher, data, student=student, **given)
    _refuse(for_task, "--corpus", "--data")
    if student_layers is None or corpus is None:
        raise UserError("nothing says how small", "Add --student-layers K", "posology distil --corpus")
    from posology.pretrain.distil import distil_backbone
    from posology.pretrain.imitation import Losses

    given = {**_given(of_backbone), **common, "losses": Losses(**_given(losses), temperature=temperature)}
    return distil_backbone(teacher, corpus, student_layers=student_layers, **given)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given: the others have the defaults of the function that is called."""
    return {name: value for name, value in options.items() if value is not None}


def _refuse(options: dict[str, Any], used: str, other: str) -> None:
    """Raises UserError where an option of the one way was given with the other."""
    for name in _given(options):
        option = f"--{name.replace('_', '-')}"
        raise UserError(f"belongs to {other}, and {used} was given", "Leave it out", option)
