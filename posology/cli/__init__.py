"""The command line: a thin skin over the Python API. Nothing heavy is imported before a command runs.

Every command takes `--json` (one JSON document on stdout), `--quiet` and `--debug`. Exit codes: 0 done, 1 ran and
failed, 2 something the user can fix, 130 interrupted with what was reached saved.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

import posology
from posology import console
from posology.errors import Interrupted, UserError

app = App(
    name="posology",
    version=posology.__version__,
    help=(
        "The smallest, cheapest language model, adapted in the cheapest way, that does a clinical text task.\n\n"
        "Every command takes --json (one JSON document on stdout), --quiet (no messages) and --debug (tracebacks). "
        "No command uses the network unless asked to (`fetch`, `prepare --online`, servers, clusters)."
    ),
    help_format="plaintext",  # a Markdown renderer would double the time that --help takes
    result_action="return_value",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,  # what was reached is saved, and `main` says so
)

# These functions are commands as they are: their signatures are the options, their docstrings the help.
_COMMANDS = {
    "synthesise": (
        "posology.synthetic.command:synthesise",
        "Write a synthetic hospital: MIMIC-III tables with notes, and i2b2 trees, with labels.",
    ),
    "prepare": ("posology.tasks.generic:prepare", "Turn labelled text of any common format into a prepared task."),
    "evaluate": ("posology.engine.train:evaluate", "Score an artifact on a split of a prepared task, with intervals."),
    "calibrate": (
        "posology.engine.calibrate:calibrate",
        "Fit an artifact's temperature, and a threshold at a wanted sensitivity, specificity or ratio of costs.",
    ),
    "predict": (
        "posology.ship.predict:predict",
        "Predict labels or entities for every document of a file or folder.",
    ),
    "redact": (
        "posology.ship.redaction:redact",
        "De-identify every document of a file or folder: tags, asterisks or surrogates.",
    ),
    "report": (
        "posology.report.command:report",
        "Write tables, figures and a page about the runs of a ledger, and what may be said of them.",
    ),
    "export": (
        "posology.ship.export:export",
        "Write an artifact as a folder that runs without Posology: ONNX, fp32 or int8, or for transformers.",
    ),
    "serve": (
        "posology.ship.serve.command:serve",
        "Answer over HTTP: many models on one backbone in memory, and a page to try them.",
    ),
    "pretrain": (
        "posology.pretrain.command:pretrain",
        "Continue a backbone's pre-training on your own unlabelled notes.",
    ),
    "predict-files": ("posology.study.bulk:predict_files", "Predict for many files, on a Ray cluster."),
    "track": ("posology.report.tracking:track", "Show the runs of a ledger in MLflow or TensorBoard."),
}
for _name, (_path, _help) in _COMMANDS.items():
    app.command(_path, name=_name, help=_help)

# Commands that have commands of their own, and further ones that would make this module long.
_GROUPS = {
    "bench": (
        "posology.cli.bench:bench",
        "Measure speed and memory on this machine, beside transformers and PEFT where asked.",
    ),
    "distil": (
        "posology.cli.distil:distil",
        "Make a small model of a large one: a backbone on unlabelled text, or a model of a task from an artifact.",
    ),
    "study": (
        "posology.cli.study:study",
        "Compare many models, methods and budgets: plan, run, status, show, export.",
    ),
    "tune": ("posology.cli.study:tune", "Search for the best recipe of a study's runs."),
    "prescribe": (
        "posology.cli.study:prescribe",
        "Find the smallest, cheapest model that does a task within your limits, and train it.",
    ),
}
for _name, (_path, _help) in _GROUPS.items():
    app.command(_path, name=_name, help=_help)


@app.command
def train(
    data: Path,
    *,
    out: Path,
    backbone: str = "minilm",
    method: str = "lora",
    recipe: str = "standard",
    set: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    seed: int = 42,
    max_seconds: float | None = None,
    evaluate_seconds: float | None = None,
    max_memory: str | None = None,
    shots: int | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    keep_activations: Path | None = None,
) -> dict[str, Any]:
    """Adapt a backbone to a prepared task; keep the best on validation, score it once on test.

    A run that was stopped or killed goes on from its last checkpoint when the same command is given again, and ends with
    the same weights, bit for bit, on the same machine with the same number of threads (not where seconds are limited).

    Args:
        data: a prepared task.
        out: the artifact's folder; must be new or empty.
        backbone: catalogue name (`posology backbones`), folder, or NAME:K for its first K layers; baselines need none.
        method: how the backbone is adapted, or a baseline: tf-idf, random-forest, dictionary (`posology methods`).
        recipe: standard, or paper for the study's hyper-parameters.
        set: fields of the recipe, or settings of a baseline, to replace, such as --set learning_rate=1e-3 rank=16.
        seed: of initialisation, order and dropout.
        max_seconds: stop training after so many seconds, evaluations excluded; a baseline tries no further setting.
        evaluate_seconds: evaluate after so many seconds of training too, not only after each epoch.
        max_memory: such as 4GB; micro-batches are made so small that training probably stays below it.
        shots: train on so many documents per class, or per entity type.
        overwrite: replace `out`.
        fresh: start over, even where an interrupted run could be continued.
        keep_activations: a folder in which to keep what layers that are not trained (method head, or --set top_layers=2)
            make of the documents, for further runs; it is as private as the documents. Otherwise it goes with the run.
    """
    from posology.engine.recipe import parse_overrides
    from posology.engine.train import train as run

    return run(
        data,
        backbone,
        method,
        out,
        recipe=recipe,
        overrides=parse_overrides(set or []),
        seed=seed,
        max_seconds=max_seconds,
        evaluate_seconds=evaluate_seconds,
        max_memory=max_memory,
        shots=shots,
        overwrite=overwrite,
        fresh=fresh,
        keep_activations=keep_activations,
    )


@app.command
def demo(*, out: Path = Path("demo"), seed: int = 7, overwrite: bool = False) -> dict[str, Any]:
    """Do the main job on generated data with the bundled model, and write a page that compares the results.

    Args:
        out: the folder for data, artifacts and the page.
        seed: of the generated data and of training.
        overwrite: replace `out`.
    """
    from posology.demo import run

    return run(out, seed=seed, overwrite=overwrite)


@app.command
def backbones() -> list[dict[str, Any]]:
    """List the catalogue of pretrained models."""
    from posology.catalog import backbones as catalogue

    return [
        {
            "name": entry.name,
            "hub_id": entry.hub_id,
            "architecture": entry.architecture,
            "domain": entry.domain,
            "parameters": entry.parameters,
            "max_length": entry.max_length,
            "licence": entry.licence,
            "bundled": entry.bundled,
        }
        for entry in catalogue().values()
    ]


@app.command
def methods() -> list[dict[str, Any]]:
    """List the methods of adaptation, and which architectures each works on."""
    from posology.engine.methods import listing

    return listing()


@app.command
def tasks() -> list[dict[str, Any]]:
    """List the tasks that `posology prepare` makes."""
    from posology.tasks.clinical import TASKS

    own = "your own, in any common format"
    classes, entities = "sequence-classification", "token-classification"
    return [
        {"task": "classification", "kind": classes, "source": own, "predicts": "the class of a text"},
        {"task": "relations", "kind": classes, "source": own, "predicts": "the relation of two marked mentions"},
        {"task": "entities", "kind": entities, "source": own, "predicts": "entities as spans of characters"},
        *(
            {"task": name, "kind": task.kind, "source": task.corpus, "predicts": task.predicts}
            for name, task in TASKS.items()
        ),
    ]


@app.command
def fetch(model: str) -> dict[str, Any]:
    """Download a backbone from its hub.

    Args:
        model: a catalogue name or a hub id.
    """
    os.environ["HF_HUB_OFFLINE"] = "0"
    from posology.engine.backbone import fetch as run

    return {"model": model, "folder": str(run(model))}


@app.command
def doctor() -> dict[str, Any]:
    """Say what this machine and installation can do, problems first."""
    from posology.doctor import report

    return report()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits with its code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    as_json, debug, quiet = (flag in tokens for flag in ("--json", "--debug", "--quiet"))
    console.QUIET = quiet
    tokens = [token for token in tokens if token not in ("--json", "--debug", "--quiet")]
    sys.exit(_run(tokens, as_json=as_json, debug=debug))


def _run(tokens: list[str], *, as_json: bool, debug: bool) -> int:
    try:
        result = app(tokens, exit_on_error=False, print_error=False)
        if result is not None and tokens:
            _show(tokens[0], result, as_json=as_json)
        return 0
    except (UserError, CycloptsError) as error:
        if debug:
            traceback.print_exc()
        print(f"posology: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        saved = error.saved if isinstance(error, Interrupted) else "nothing was written"
        print(f"posology: interrupted; {saved}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (the reader is gone; Python would complain at exit)
        return 0
    except Exception as error:
        # A library's message may quote text of a note, so only its kind is shown.
        if debug:
            traceback.print_exc()
        print(f"posology: failed ({type(error).__name__}); --debug shows where", file=sys.stderr)
        return 1


def _show(command: str, result: Any, *, as_json: bool) -> None:
    if as_json:
        if is_dataclass(result) and not isinstance(result, type):
            result = asdict(result)
        print(json.dumps(result, default=str, ensure_ascii=False))
    else:
        from posology import render

        render.show(command, result)
