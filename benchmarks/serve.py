"""The server under load: many adapters on one backbone in memory, beside one; overload; models swapped meanwhile.

    python benchmarks/serve.py [--adapters 32] [--seconds 10] [--rounds 5]

Trains four artifacts of three tasks on the bundled model and makes the adapters from them, each with weights of its own (the
trained ones with noise on them: what an adapter says does not matter here, that it is another one does). The server is a
process of its own; the client shares its cores. Each request is one sentence for one model. Writes
benchmarks/results/serve.json and serve.md.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from common import HERE, prepared, result

RESULTS = HERE / "results" / "serve.json"
TRAINED = [("ncbi-disease", "lora"), ("chemprot", "lora"), ("mts-dialog", "ia3"), ("ncbi-disease", "head")]
KEPT = 6
"""Decimals of seconds."""
_IDLE_SECONDS = 3.0
"""A connection that was idle for longer is not used again: the server closes it after five."""


def artifacts(folder: Path, adapters: int, documents: int) -> list[Path]:
    """Folders of so many artifacts, and of those they are made from."""
    import posology

    trained = []
    for corpus, method in TRAINED:
        data = prepared(corpus, train=documents, validate=100, test=20)
        out = folder / f"trained-{corpus}-{method}"
        posology.train(data, "minilm", method, out, overrides={"epochs": 1})
        trained.append(out)
    return [_another(trained[number % len(trained)], folder / f"m{number:02}", number) for number in range(adapters)]


def _another(source: Path, out: Path, seed: int) -> Path:
    """A copy with other weights."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, out)
    draw = torch.Generator().manual_seed(seed)
    for path in out.glob("*.safetensors"):
        weights = load_file(path)
        noisy = {name: own + 0.01 * own.std() * torch.randn(own.shape, generator=draw) for name, own in weights.items()}
        save_file(noisy, path)
    return out


class Server:
    """`posology serve` as a process.

    Attributes:
        host, port: of it.
    """

    def __init__(self, *arguments: object):
        self._log = tempfile.NamedTemporaryFile("w+", prefix="serve-")  # noqa: SIM115  (open as long as the server is)
        command = [sys.executable, "-m", "posology.cli", "serve", *map(str, arguments), "--port", "0"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        while "\nready: " not in (text := Path(self._log.name).read_text()):
            if self._process.poll() is not None:
                raise RuntimeError(text)
            time.sleep(0.1)
        address = text.split("listening on http://")[1].split()[0]
        self.host, _, port = address.partition(":")
        self.port = int(port)

    def memory(self) -> dict[str, float]:
        """Resident memory now and at its peak, MB."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        found = {
            line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))
        }
        return {"now": round(found["VmRSS"], 1), "peak": round(found["VmHWM"], 1)}

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(60):
            raise RuntimeError(Path(self._log.name).read_text())


@contextmanager
def serving(*arguments: object) -> Iterator[Server]:
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.stop()


class Connection:
    """One connection, kept open; as little Python around it as can be, since it runs on the server's cores."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def to(cls, server: Server) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def send(self, method: str, path: str, content: bytes) -> tuple[int, bytes]:
        """Status and headers of the answer."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        self._writer.write(head.encode() + content)
        headers = await self._reader.readuntil(b"\r\n\r\n")
        length = int(headers.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await self._reader.readexactly(length)
        return int(headers.split()[1]), headers


def requests(models: Sequence[dict[str, Any]], texts: Sequence[str], seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Path and body of requests without end, spread evenly over models."""
    draw = random.Random(seed)
    for model in itertools.cycle(models):
        text = draw.choice(texts)
        path = "/v1/entities" if model["kind"] == "token-classification" else "/v1/classify"
        yield path, json.dumps({"documents": [{"id": "1", "text": text}], "models": [model["name"]]}).encode()


async def closed_loop(
    server: Server, given: Iterator[tuple[str, bytes]], connections: int, seconds: float
) -> dict[str, Any]:
    """So many clients, each of which sends a request as soon as it has the answer to the one before."""
    times: list[float] = []
    statuses: Counter[int] = Counter()
    end = time.perf_counter() + seconds

    async def client() -> None:
        async with Connection.to(server) as connection:
            while (begin := time.perf_counter()) < end:
                status, _ = await connection.send("POST", *next(given))
                statuses[status] += 1
                times.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    return _told(times, statuses, time.perf_counter() - begin) | {"connections": connections}


async def open_loop(server: Server, given: Iterator[tuple[str, bytes]], rate: float, seconds: float) -> dict[str, Any]:
    """Requests that come when they come (Poisson), whether or not the server is done with those before."""
    times: list[float] = []
    statuses: Counter[int] = Counter()
    draw, idle = random.Random(1), list[tuple[float, Connection]]()  # the one that was used last at the end
    begin = due = time.perf_counter()

    async def one(due: float) -> None:
        if idle and time.perf_counter() - idle[-1][0] < _IDLE_SECONDS:
            _, connection = idle.pop()
        else:
            connection = Connection(*await asyncio.open_connection(server.host, server.port))
        status, _ = await connection.send("POST", *next(given))
        statuses[status] += 1
        times.append(time.perf_counter() - due)
        idle.append((time.perf_counter(), connection))

    tasks = []
    while (due := due + draw.expovariate(rate)) < begin + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    for _, connection in idle:
        connection._writer.close()
    return _told(times, statuses, time.perf_counter() - begin) | {"asked_per_second": round(rate, 1)}


def _told(times: Sequence[float], statuses: Counter[int], seconds: float) -> dict[str, Any]:
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
    milliseconds = {f"p{at}": round(1000 * cuts[at - 1], 1) for at in (50, 95, 99)}
    answered = statuses[200]
    return {
        "requests": len(times),
        "answers_per_second": round(answered / seconds, 1),
        "milliseconds": milliseconds,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


async def warm(server: Server, given: Iterator[tuple[str, bytes]], seconds: float) -> None:
    await closed_loop(server, given, 16, seconds)


async def measure_load(
    server: Server, models: Sequence[dict[str, Any]], texts: Sequence[str], options: Any
) -> dict[str, Any]:
    """Throughput on one model beside that on all, in turn; latencies at several loads."""
    alone = {
        kind: next(model for model in models if model["kind"] == kind and model["method"] == "lora")
        for kind in ("token-classification", "sequence-classification")
    }
    sides = {"one tagger": [alone["token-classification"]], "one classifier": [alone["sequence-classification"]]}
    sides |= {"all": list(models)}
    await warm(server, requests(models, texts), options.seconds / 2)
    rounds = []
    for number in range(options.rounds):
        found = {
            name: await closed_loop(server, requests(own, texts, number), 64, options.seconds)
            for name, own in sides.items()
        }
        rounds.append(found)
        print({name: own["answers_per_second"] for name, own in found.items()}, flush=True)
    ratios = {
        name: _spread([own["all"]["answers_per_second"] / own[name]["answers_per_second"] for own in rounds])
        for name in ("one tagger", "one classifier")
    }
    most = statistics.median(own["all"]["answers_per_second"] for own in rounds)
    loads = [await closed_loop(server, requests(models, texts, 9), count, options.seconds) for count in (1, 4, 16, 64)]
    loads += [
        await open_loop(server, requests(models, texts, 9), share * most, options.seconds)
        for share in (0.25, 0.5, 0.75)
    ]
    return {"rounds": rounds, "ratio_of_all_to": ratios, "loads": loads}


async def measure_overload(
    server: Server, model: dict[str, Any], text: str, texts: Sequence[str], seconds: float
) -> dict[str, Any]:
    """Long notes from many clients at once, and what comes after."""
    before = await closed_loop(server, requests([model], texts), 4, seconds / 2)
    note = " ".join([text] * 200)
    during = await closed_loop(server, requests([model], [note]), 256, seconds)
    begin = time.perf_counter()
    after = await closed_loop(server, requests([model], texts), 4, seconds / 2)
    return {
        "before": before,
        "during": during,
        "after": after,
        "after_seconds": round(time.perf_counter() - begin, KEPT),
    }


async def measure_swap(
    server: Server, models: Sequence[dict[str, Any]], texts: Sequence[str], seconds: float
) -> dict[str, Any]:
    """One model's adapter exchanged again and again while all are asked."""
    swaps: list[float] = []
    statuses: Counter[int] = Counter()

    async def swap() -> None:
        async with Connection.to(server) as connection:
            end = time.perf_counter() + seconds
            for name in itertools.cycle([models[0]["name"], models[4 % len(models)]["name"]]):
                if (begin := time.perf_counter()) > end:
                    return
                content = json.dumps({"artifact": name}).encode()
                status, _ = await connection.send("PUT", f"/v1/models/{models[0]['name']}", content)
                statuses[status] += 1
                swaps.append(time.perf_counter() - begin)
                await asyncio.sleep(0.2)

    load, _ = await asyncio.gather(closed_loop(server, requests(models, texts), 16, seconds), swap())
    told = {"swaps": len(swaps), "median_seconds": round(statistics.median(swaps), 4)}
    return {"load": load, **told, "statuses": {str(status): count for status, count in statuses.items()}}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def table(row: dict[str, Any]) -> str:
    """Markdown."""
    memory, count = row["memory"], row["adapters"]
    limit = memory["one"]["loaded"]["now"] + 2 * count + 300
    lines = [
        f"{count} adapters of {len(TRAINED)} kinds (task and method) on one backbone, {row['threads']} threads.",
        "",
        "| | resident after loading, MB | after the load, MB | peak, MB |",
        "|---|---|---|---|",
        *(
            f"| {title} | {memory[name]['loaded']['now']:.0f} | {memory[name]['used']['now']:.0f} | {memory[name]['used']['peak']:.0f} |"
            for name, title in {"one": "backbone with one head", "all": f"backbone with {count} adapters"}.items()
        ),
        "",
        f"Allowed for {count} adapters: backbone + {count} x 2 MB + 300 MB = {limit:.0f} MB.",
        "",
        "| load | answers/s | p50 ms | p95 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for load in row["load"]["loads"]:
        title = (
            f"{load['connections']} clients" if "connections" in load else f"{load['asked_per_second']:.0f} requests/s"
        )
        cells = [f"{load['milliseconds'][name]:.0f}" for name in ("p50", "p95", "p99")]
        lines.append(f"| {title} | {load['answers_per_second']:.0f} | {' | '.join(cells)} |")
    lines.append("")
    for name, ratio in row["load"]["ratio_of_all_to"].items():
        lines.append(
            f"Spread over {count} adapters, throughput is {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) "
            f"of the same load on {name}.  "
        )
    overload, swap = row["overload"], row["swap"]
    lines += [
        "",
        f"Overload (256 clients, notes of thousands of words): answers {overload['during']['statuses']}; p95 of light load "
        f"{overload['before']['milliseconds']['p95']:.0f} ms before, {overload['after']['milliseconds']['p95']:.0f} ms after "
        f"({overload['after']['statuses']}).  ",
        f"Swaps under load: {swap['swaps']}, {swap['median_seconds']:.2f} s each; answers {swap['load']['statuses']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=400, help="that artifacts are trained on")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    import posology
    from posology.files import write_json

    started = time.time()
    task = posology.PreparedTask.open(prepared("ncbi-disease"))
    texts = [document.text for document in task.documents("test")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = artifacts(folder, options.adapters, options.documents)
        facts = [_facts(own) for own in made]
        head = folder / f"trained-{TRAINED[-1][0]}-{TRAINED[-1][1]}"
        memory: dict[str, Any] = {"one": {}, "all": {}}
        with serving(head) as server:
            memory["one"]["loaded"] = server.memory()
            asyncio.run(closed_loop(server, requests([_facts(head)], texts), 64, options.seconds))
            memory["one"]["used"] = server.memory()
        with serving(*made, "--artifacts", folder, "--max-waiting", 2**15) as server:
            memory["all"]["loaded"] = server.memory()
            asyncio.run(closed_loop(server, requests(facts, texts), 64, options.seconds))
            memory["all"]["used"] = server.memory()
            print(memory, flush=True)
            row = {
                "adapters": options.adapters,
                "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
                "memory": memory,
                "load": asyncio.run(measure_load(server, facts, texts, options)),
                "overload": asyncio.run(measure_overload(server, facts[0], texts[0], texts, options.seconds)),
                "swap": asyncio.run(measure_swap(server, facts, texts, options.seconds)),
            }
    write_json(options.out, result([row], started))
    options.out.with_suffix(".md").write_text(table(row), encoding="utf-8")
    print(table(row))


def _facts(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "posology.json").read_text())
    return {"name": folder.name, "kind": record["kind"], "method": record["method"]}


if __name__ == "__main__":
    main()
