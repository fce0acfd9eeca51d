"""A search for a recipe: whether it beats the default, what a kill costs, and what company gains.

    python benchmarks/tune.py [--trials 20] [--alone 8] [--train 600] [--epochs 3]

LoRA on the first two layers of the bundled model, on a part of ncbi-disease. First 20 trials of TPE, the process that
drives them killed with `kill -9` in the middle of a batch, and started again: how many runs were done, begun anew and
repeated, and the best trial beside the default recipe. Then the first 8 trials of a random search twice, in company and
one by one, each in a fresh ledger: wall clock of the whole command, start of the worker included. Writes
benchmarks/results/tune.json and tune.md.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import CACHE, HERE, prepared, result

BACKBONE = "minilm:2"
SPACE = {
    "learning_rate": {"low": 5e-4, "high": 3e-2, "log": True},
    "rank": [4, 8, 16, 32],
    "alpha_ratio": [0.5, 1.0, 2.0, 4.0],
    "adapter_dropout": [0.0, 0.1, 0.3],
    "targets": ["default", "all"],
}
SCRATCH = CACHE / "tune"


def search(ledger: Path, arguments: argparse.Namespace, *, sampler: str, trials: int, company: bool) -> dict[str, Any]:
    """One search in this process, or what is left of it."""
    from posology.study.cell import Cell
    from posology.study.ledger import Ledger
    from posology.study.local import LocalExecutor
    from posology.study.spec import Search
    from posology.study.tune import tune

    data = prepared("ncbi-disease", train=arguments.train, validate=200, test=200)
    base = Cell(task="ncbi-disease", data=data, backbone=BACKBONE, overrides={"epochs": arguments.epochs})
    wanted = Search(trials=trials, sampler=sampler, space=SPACE)  # type: ignore[arg-type]
    with Ledger(ledger, write=True) as opened:
        return tune(opened, "tune", [base], wanted, LocalExecutor(company=company))["searches"][0]


def fresh(name: str) -> Path:
    """A ledger that is not there yet."""
    shutil.rmtree(SCRATCH / name, ignore_errors=True)
    (SCRATCH / name).mkdir(parents=True)
    return SCRATCH / name / "ledger.db"


def child(ledger: Path, arguments: argparse.Namespace, sampler: str, trials: int, company: bool) -> subprocess.Popen:
    """The same search in a process of its own."""
    command = [sys.executable, __file__, "--search", str(ledger), "--sampler", sampler, "--trials", str(trials)]
    command += ["--train", str(arguments.train), "--epochs", str(arguments.epochs)]
    return subprocess.Popen([*command, *([] if company else ["--no-company"])])


def killed_and_continued(arguments: argparse.Namespace) -> dict[str, Any]:
    """The search for the best recipe, killed while its second batch trains, and continued."""
    from posology.errors import UserError
    from posology.study.ledger import Ledger

    ledger, begin = fresh("killed"), time.perf_counter()
    process = child(ledger, arguments, "tpe", arguments.trials, True)
    while process.poll() is None:
        time.sleep(0.2)
        with contextlib.suppress(UserError), Ledger(ledger) as opened:  # the ledger may not be there yet
            under_way = [row["key"] for row in opened.runs(state="running")]
            enough = opened.status()["done"] >= 0.4 * arguments.trials
            if enough and any(opened.run(key)["evaluations"] for key in under_way):
                process.kill()
                process.wait()
    before = time.perf_counter() - begin
    if process.returncode == 0:
        raise SystemExit("the search ended before it could be killed: give it more trials")
    with Ledger(ledger) as opened:
        earlier = {row["key"]: row for row in opened.runs()}
    done = {key for key, row in earlier.items() if row["state"] == "done"}
    asked = optuna_trials(ledger)
    begin = time.perf_counter()
    if child(ledger, arguments, "tpe", arguments.trials, True).wait():
        raise SystemExit("the search did not continue")
    after = time.perf_counter() - begin
    with Ledger(ledger) as opened:
        rows = {row["key"]: row for row in opened.runs()}
        found = opened.noted("tune", "tune")["searches"][0]
    trials = optuna_trials(ledger)
    row = {
        "what": "search, killed and continued",
        "trials": len(trials),
        "runs": len(rows),
        "done_at_the_kill": len(done),
        "under_way_at_the_kill": sum(row["state"] == "running" for row in earlier.values()),
        "repeated": sum(rows[key]["attempts"] != 1 or rows[key]["ended"] != earlier[key]["ended"] for key in done),
        "asked_anew": sum(trials[number] != params for number, params in enumerate(asked)),
        "seconds_before": before,
        "seconds_after": after,
        **{name: found[name] for name in ("metric", "importance", "states")},
        # Without the place of the artifact, which is of this machine.
        **{name: {key: found[name][key] for key in found[name] if key != "artifact"} for name in ("best", "default")},
    }
    assert row["trials"] == arguments.trials == sum(row["states"].values())
    assert not row["repeated"] and not row["asked_anew"], row
    return row


def optuna_trials(ledger: Path) -> list[dict[str, Any]]:
    """What each trial was asked for, as Optuna's storage has it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{ledger.with_suffix('.optuna.db')}"
    name = optuna.get_all_study_names(storage)[0]
    return [trial.params for trial in optuna.load_study(study_name=name, storage=storage).trials]


def company_and_alone(arguments: argparse.Namespace) -> dict[str, Any]:
    """Wall clock of the same random search in company and one by one."""
    from posology.study.ledger import Ledger

    seconds, scores = {}, {}
    for way, company in (("company", True), ("one_by_one", False)):
        ledger, begin = fresh(way), time.perf_counter()
        if child(ledger, arguments, "random", arguments.alone, company).wait():
            raise SystemExit(f"the search {way} failed")
        seconds[way] = time.perf_counter() - begin
        with Ledger(ledger) as opened:
            scores[way] = [row["validation"] for row in opened.runs("tune")]
    differ = max(abs(one - two) for one, two in zip(scores["company"], scores["one_by_one"], strict=True))
    return {
        "what": "company",
        "trials": arguments.alone,
        "seconds": seconds,
        "ratio": seconds["one_by_one"] / seconds["company"],
        "scores_differ_by_at_most": differ,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    killed, company = rows
    lines = [
        f"Search on {BACKBONE}, {killed['trials']} trials, {killed['metric']}:",
        "",
        "| | trial | recipe | validation | test |",
        "|---|---|---|---|---|",
    ]
    for name in ("default", "best"):
        row = killed[name]
        recipe = ", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                           for key, value in row["overrides"].items())  # fmt: skip
        test = "{value:.3f} ({low:.3f} to {high:.3f})".format(**row["test"])
        lines.append(f"| {name} | {row['number']} | {recipe} | {row['validation']:.3f} | {test} |")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in (killed["importance"] or {}).items())
    seconds = company["seconds"]
    lines += [
        "",
        f"Importance: {shares or 'not to be told'}.",
        "",
        f"Killed after {killed['seconds_before']:.0f} s with {killed['done_at_the_kill']} trials done and "
        f"{killed['under_way_at_the_kill']} under way; continued, {killed['seconds_after']:.0f} s: "
        f"{killed['trials']} trials in all, {killed['repeated']} repeated, {killed['asked_anew']} asked anew.",
        "",
        f"{company['trials']} random trials: {seconds['company']:.0f} s in company, {seconds['one_by_one']:.0f} s one by "
        f"one: {company['ratio']:.2f}x. Their validation scores differ by {company['scores_differ_by_at_most']:.3f} at most.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--alone", type=int, default=8, help="trials that are done in company and one by one")
    parser.add_argument("--train", type=int, default=600, help="training documents")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--search", type=Path, help="one search in this ledger, and nothing else")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--no-company", action="store_true")
    arguments = parser.parse_args()
    if arguments.search:
        search(
            arguments.search,
            arguments,
            sampler=arguments.sampler,
            trials=arguments.trials,
            company=not arguments.no_company,
        )
        return

    from posology.files import write_json

    started = time.time()
    rows = [killed_and_continued(arguments), company_and_alone(arguments)]
    path = HERE / "results" / "tune.json"
    facts = {"backbone": BACKBONE, "space": SPACE, "train": arguments.train, "epochs": arguments.epochs}
    write_json(path, result(rows, started, **facts))
    path.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
