"""`posology study`, `tune` and `prescribe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from posology.study.executor import Executor

study = App(name="study", help="Compare many models, methods and budgets: plan, run, status, show, export.")
LEDGER = Path("ledger.db")


@study.command
def plan(
    file: str,
    *,
    ledger: Path = LEDGER,
    tasks: Path | None = None,
    price: str = "own-server",
    prices: Path | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Say what a study would run, what is done already, and what the rest will take and cost.

    Args:
        file: a study file, or one of the catalogue, such as paper/table3 or small/table3.
        ledger: what is done is looked up in it, and the profile of this machine kept in it, where it is there.
        tasks: the folder in which the prepared tasks lie; by default that of the study file.
        price: of the machine, by its name in prices.yaml (`posology study prices` lists them).
        prices: a file of your own in the form of prices.yaml.
        workers: GPUs of this machine that would share the work, or nodes where the study says `executor: ray`.
            Processes that share its processors are no faster than one.
    """
    from posology.study.study import Study

    return Study(file, ledger=ledger, tasks=tasks).plan(price=price, prices=prices, workers=workers)


@study.command
def run(
    file: str,
    *,
    ledger: Path = LEDGER,
    tasks: Path | None = None,
    executor: Literal["local", "ray"] | None = None,
    workers: int | None = None,
    company: bool = True,
    address: str | None = None,
    cpus: float | None = None,
    gpus: float = 0,
    storage: str | None = None,
    retry: bool = False,
) -> dict[str, Any]:
    """Do those runs of a study that are not done yet; stop it at will, the same command continues.

    Args:
        file: a study file, or one of the catalogue, such as paper/table3 or small/table3.
        ledger: the file that holds every run; artifacts lie beside it.
        tasks: the folder in which the prepared tasks lie; by default that of the study file. The small studies of the
            catalogue make theirs.
        executor: local or ray; by default what the study says.
        workers: processes on this machine; by default one for each GPU, or one.
        company: let runs on one frozen backbone train together (local). Their results are then not the same bit for bit
            from one time to the next.
        address: of a Ray cluster; by default one is started here.
        cpus: processors for each run on the cluster.
        gpus: GPUs for each run on the cluster.
        storage: where the cluster keeps artifacts: an fsspec URL; by default the folder beside the ledger.
        retry: try runs that failed once more.
    """
    from posology.study.study import Study

    opened = Study(file, ledger=ledger, tasks=tasks)
    chosen = _executor(executor or opened.file.executor, workers, company, address, cpus, gpus, storage)
    return opened.run(chosen, retry=retry)


@study.command
def status(name: str | None = None, *, ledger: Path = LEDGER, runs: bool = False) -> dict[str, Any]:
    """Say how many runs are done, running, failed and pending; works while a study runs.

    Args:
        name: of a study in the ledger; all runs without it.
        ledger: the file.
        runs: list every run too.
    """
    from posology.study.ledger import Ledger
    from posology.study.study import progress_of

    with Ledger(ledger) as opened:
        return progress_of(opened, name, runs=runs)


@study.command
def show(key: str, *, ledger: Path = LEDGER) -> dict[str, Any]:
    """Show all that is known of a run.

    Args:
        key: of the run, or its first letters.
        ledger: the file.
    """
    from posology.study.ledger import Ledger

    with Ledger(ledger) as opened:
        return opened.run(key)


@study.command
def export(out: Path, *, ledger: Path = LEDGER) -> dict[str, Any]:
    """Write all runs as a table, without any text.

    Args:
        out: a file that ends in .parquet or .csv.
        ledger: the file.
    """
    from posology.study.ledger import Ledger

    with Ledger(ledger) as opened:
        return {"table": str(out), "runs": opened.export(out)}


@study.command(name="list")
def list_() -> list[dict[str, Any]]:
    """List the studies that come with the program."""
    from posology.study.grid import expand
    from posology.study.spec import catalogue, read_study

    found = []
    for name in catalogue():
        file = read_study(name)
        found.append({"study": name, "runs": expand(file).runs, "tasks": len(file.tasks), "methods": len(file.methods)})
    return found


@study.command
def prices(file: Path | None = None) -> list[dict[str, Any]]:
    """List the prices of machines that plans and prescriptions know.

    Args:
        file: one of your own in the form of prices.yaml.
    """
    from posology.measure import money

    return [
        {
            "price": entry.name,
            "per_hour": round(entry.rate().per_hour, 4),
            "currency": entry.currency,
            "date": str(entry.date),
            "source": entry.source,
        }
        for entry in money.prices(file).values()
    ]


def tune(
    file: str,
    *,
    ledger: Path = LEDGER,
    tasks: Path | None = None,
    parallel: int = 8,
    workers: int | None = None,
    company: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Search for the best recipe, as the section `search` of a study file says; the same command continues.

    The score on validation decides. Trials are runs of the ledger; Optuna's own record lies beside it.

    Args:
        file: a study file with a search, or one of the catalogue, such as paper/figure-b4 or small/figure-b4.
        ledger: the file that holds every run.
        tasks: the folder in which the prepared tasks lie.
        parallel: trials that are asked for and trained at once.
        workers: processes on this machine.
        company: let trials on one frozen backbone train together.
        seed: of the sampler.
    """
    from posology.study.study import Study

    chosen = _executor("local", workers, company, None, None, 0, None)
    return Study(file, ledger=ledger, tasks=tasks).tune(chosen, parallel=parallel, seed=seed)


def prescribe(
    data: Path,
    *,
    out: Path,
    max_seconds: float = 1800.0,
    max_cost: float | None = None,
    max_latency_ms: float | None = None,
    max_memory_mb: float | None = None,
    min_metric: float | None = None,
    backbones: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    methods: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    price: str = "own-server",
    prices: Path | None = None,
    choose_seconds: float | None = None,
    seed: int = 42,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Find the smallest, cheapest model that does a task within your limits, and train it.

    Candidates are measured on this machine; those that cannot fit are dropped with the reason; the rest race on growing
    parts of the training data. A baseline without a neural network always takes part.

    Args:
        data: a prepared task.
        out: the folder for the recommended artifact, the ledger and the work.
        max_seconds: for everything, on this machine.
        max_cost: for everything, in the currency of the price.
        max_latency_ms: of one document alone, 95th percentile.
        max_memory_mb: of prediction.
        min_metric: the least score on validation by the task's metric.
        backbones: candidates; by default the bundled model, its first layers, and what was fetched.
        methods: candidates; by default full, lora, ia3, head.
        price: of the machine, by its name in prices.yaml (`posology study prices` lists them).
        prices: a file of your own in the form of prices.yaml.
        choose_seconds: for what comes before the training on all documents.
        seed: of samples and training.
        overwrite: replace `out`.
    """
    from posology.study.prescribe import prescribe as run

    return run(
        data,
        out=out,
        max_seconds=max_seconds,
        max_cost=max_cost,
        max_latency_ms=max_latency_ms,
        max_memory_mb=max_memory_mb,
        min_metric=min_metric,
        backbones=backbones,
        methods=methods,
        price=price,
        prices=prices,
        choose_seconds=choose_seconds,
        seed=seed,
        overwrite=overwrite,
    )


def _executor(
    kind: str,
    workers: int | None,
    company: bool,
    address: str | None,
    cpus: float | None,
    gpus: float,
    storage: str | None,
) -> Executor:
    if kind == "ray" or address is not None:
        from posology.study.cluster import RayExecutor

        return RayExecutor(address, cpus=cpus, gpus=gpus, storage=storage)
    from posology.study.local import LocalExecutor

    return LocalExecutor(workers, company=company)
