"""A million sentences: throughput, memory over time, killed and resumed, beside `transformers.pipeline(batch_size=32)`.

    python benchmarks/bulk.py [--sentences 1000000] [--sample 1024] [--repeats 5] [--backends bf16 int8 ...] [--threads N]

Trains LoRA on the bundled model for NCBI-disease, briefly, and exports it. Then, each in processes of its own:

- `ratio`: `posology predict` on `--sample` sentences, all different, against the pipeline with the same merged weights, both
  in the same process, taking turns, from strings to answers; the share of words with the same tag.
- `million`: the sentences of NCBI-disease and ChemProt, in turn, with ids of their own, by the fastest backend. No sentence
  occurs twice within a block, so each is read. Memory is that of the process, looked at every second.
- `killed`: the same with SIGKILL at random moments, until it is done: how many lines are, byte by byte, those of `million`,
  which may have more sentences (`--sentences 100000 --skip ratio million hospital`).
- `hospital`: half of the sentences are repeats of the others nearby, as in exports of electronic records, where repeated
  texts are answered once. This figure is in no ratio.

Backends: `bf16` (`fp32` where the processor has no bf16), `onnx-fp32`, `int8` (ONNX). Writes benchmarks/results/bulk.json and
bulk.md; rows of earlier runs that are not measured again stay there.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import CACHE, HERE, prepared, result

WORK = CACHE / "bulk"
RESULTS = HERE / "results" / "bulk.json"
BACKENDS = ("bf16", "onnx-fp32", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--train-seconds", type=float, default=240.0)
    parser.add_argument("--train", type=int, help="train on so many sentences only")
    parser.add_argument("--skip", nargs="*", choices=("ratio", "million", "killed", "hospital"), default=())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratio-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ratio_of:  # a process of its own
        print(json.dumps(ratio(arguments.ratio_of, arguments)))
        return
    from posology.files import write_json

    started = time.time()
    WORK.mkdir(parents=True, exist_ok=True)
    folders = make_models(arguments)
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.is_file() else []

    def keep(row: dict[str, Any]) -> None:
        rows[:] = [old for old in rows if (old["what"], old["backend"]) != (row["what"], row["backend"])] + [row]
        write_json(RESULTS, result(rows, started, sentences=arguments.sentences, sample=arguments.sample))
        RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
        print(json.dumps(row), flush=True)

    if "ratio" not in arguments.skip:
        for backend in arguments.backends:
            keep(alone(backend, arguments))
    ratios = [row for row in rows if row["what"] == "ratio"]
    fastest = max(ratios, key=lambda row: row["ratio"]["median"])["backend"]
    texts = corpus()
    source = WORK / f"{arguments.sentences}.jsonl"
    if not source.is_file():
        write(source, (texts[row % len(texts)] for row in range(arguments.sentences)))
    whole = WORK / "whole.jsonl"
    if "million" not in arguments.skip:
        keep({"what": "million", "backend": fastest, **watched(folders[fastest], source, whole)})
    if "killed" not in arguments.skip:
        keep({"what": "killed", "backend": fastest, **killed(folders[fastest], source, whole, arguments)})
    if "hospital" not in arguments.skip:
        often = WORK / f"{arguments.sentences}-often.jsonl"
        draw, few = random.Random(arguments.seed), texts[: max(1, min(len(texts), 2000))]
        if not often.is_file():
            write(
                often, (draw.choice(few) if row % 2 else texts[row % len(texts)] for row in range(arguments.sentences))
            )
        keep({"what": "hospital", "backend": fastest, **watched(folders[fastest], often, WORK / "often.jsonl")})


def make_models(arguments: argparse.Namespace) -> dict[str, Path]:
    """Trains and exports, if that is not done yet."""
    data = prepared("ncbi-disease", train=arguments.train)
    artifact = WORK / "artifact"
    if not artifact.is_dir():
        command("train", data, "--out", artifact, "--method", "lora", "--max-seconds", arguments.train_seconds)
    folders = {"bf16": artifact}
    for backend, precision in {"onnx-fp32": "fp32", "int8": "int8"}.items():
        folders[backend] = WORK / backend
        if backend in arguments.backends and not folders[backend].is_dir():
            command("export", artifact, "--out", folders[backend], "--precision", precision, "--data", data)
    return folders


def corpus() -> list[str]:
    """Every sentence of both corpora, once, in an order that mixes them."""
    import posology

    texts = [
        document.text
        for name in ("ncbi-disease", "chemprot")
        for split in ("train", "validation", "test")
        for document in posology.PreparedTask.open(prepared(name)).documents(split)
    ]
    texts = sorted(set(texts))
    random.Random(0).shuffle(texts)
    return texts


def write(path: Path, texts: Iterator[str]) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        for row, text in enumerate(texts):
            stream.write(json.dumps({"id": row, "text": text}, ensure_ascii=False) + "\n")


def alone(backend: str, arguments: argparse.Namespace) -> dict[str, Any]:
    own = [sys.executable, __file__, "--ratio-of", backend, "--sample", str(arguments.sample)]
    done = subprocess.run([*own, "--repeats", str(arguments.repeats)], stdout=subprocess.PIPE, check=True, cwd=HERE)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def ratio(backend: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One backend and the pipeline, in turn, on the same sentences."""
    import numpy as np
    import torch
    from peft import PeftModel
    from transformers import AutoModelForTokenClassification, pipeline

    import posology
    from posology.corpus.document import Document
    from posology.corpus.tags import words_of
    from posology.engine.artifact import load, read_record, source_of
    from posology.engine.backbone import load_model, load_tokenizer
    from posology.engine.decode import tags_of
    from posology.engine.recipe import Recipe
    from posology.ship.exported import load_any

    artifact = WORK / "artifact"
    record = read_record(artifact)
    sample = random.Random(1).sample(corpus(), arguments.sample)
    source = WORK / "sample.jsonl"
    write(source, iter(sample))
    origin = source_of(artifact, record)
    model, _ = load_model(origin, record["kind"], tags_of(record["labels"]), Recipe(**record["recipe"]))
    merged = PeftModel.from_pretrained(model, str(artifact), local_files_only=True).merge_and_unload()
    assert isinstance(merged, AutoModelForTokenClassification._model_mapping[type(merged.config)])
    tokenizer = load_tokenizer(origin)
    tokenizer.model_max_length = record["recipe"]["max_length"]
    peer = pipeline("token-classification", model=merged, tokenizer=tokenizer, batch_size=32, device=-1)
    folder = artifact if backend == "bf16" else WORK / backend
    ours = load_any(folder)
    readers = _readers(ours)

    def predict() -> list[Any]:
        documents = [Document(str(row), text) for row, text in enumerate(sample)]
        (answers,) = readers.answer(documents, lambda _: None)
        from posology.engine.predict import rows_of

        rows_of(ours, answers)
        return answers.logits

    def asked() -> list[Any]:
        return list(peer(sample))

    logits, found = predict(), asked()  # warm, and for comparison
    names, equal, all_ = tags_of(record["labels"]), 0, 0
    for text, own, entities in zip(sample, logits, found, strict=True):
        tags = {entity["start"]: entity["entity"] for entity in entities}
        for (start, _), values in zip(words_of(text), own, strict=False):
            if not np.isnan(values[0]):
                equal += names[int(values.argmax())] == tags.get(start, "O")
                all_ += 1
    times: dict[str, list[float]] = {"ours": [], "pipeline": []}
    for number in range(arguments.repeats):
        sides = {"ours": predict, "pipeline": asked}
        for name in list(sides) if number % 2 else list(reversed(sides)):
            began = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - began)
    ratios = [peer / own for peer, own in zip(times["pipeline"], times["ours"], strict=True)]
    # The command too, start and end included, so that nothing is left out by the loop above.
    posology.predict(folder, source, WORK / "sample.out.jsonl", id="id", overwrite=True, fresh=True)
    began = time.perf_counter()
    posology.predict(folder, source, WORK / "sample.out.jsonl", id="id", overwrite=True, fresh=True)
    whole = time.perf_counter() - began
    precise = "bf16" if backend != "bf16" or load(artifact).precision.bf16 else "fp32"  # type: ignore[attr-defined]
    return {
        "what": "ratio",
        "backend": backend if backend != "bf16" else precise,
        "sentences": len(sample),
        "threads": torch.get_num_threads(),
        "ours_per_second": spread([len(sample) / own for own in times["ours"]]),
        "pipeline_per_second": spread([len(sample) / own for own in times["pipeline"]]),
        "ratio": spread(ratios),
        "command_per_second": len(sample) / whole,
        "same_tags": equal / all_,
        "words": all_,
    }


def _readers(model: Any) -> Any:
    from posology.engine.shared import Readers

    return Readers([model])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def watched(model: Path, source: Path, out: Path) -> dict[str, Any]:
    """Runs the command, and looks at its memory every second."""
    clean(out)
    began = time.time()
    process = start(model, source, out)
    samples: list[tuple[float, float]] = []
    while process.poll() is None:
        samples.append((time.time() - began, memory(process.pid)))
        time.sleep(1)
    seconds = time.time() - began
    answer = json.loads(process.stdout.read())  # type: ignore[union-attr]
    if process.returncode:
        raise SystemExit(f"predict failed with {process.returncode}")
    # Tenths of the time after the first, in which it loads.
    parts = [
        max((held for at, held in samples if seconds * part / 10 <= at < seconds * (part + 1) / 10), default=0.0)
        for part in range(10)
    ]
    documents = answer["documents"]
    return {
        "sentences": documents,
        "seconds": seconds,
        "per_second": documents / seconds,
        "while_running_per_second": answer["documents_per_second"],
        "answered_once_more": answer["repeated"],
        "peak_megabytes": max(held for _, held in samples),
        "peak_megabytes_by_tenth": parts,
        "growth": parts[-1] / parts[1] if parts[1] else None,
        **counted(source, out),
    }


def killed(model: Path, source: Path, whole: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Kills the command at random moments, and begins it again."""
    out = WORK / "killed.jsonl"
    clean(out)
    draw, done, kills = random.Random(arguments.seed), [], 0
    journal = out.with_name(f".{out.name}.parts") / "journal.jsonl"
    while not out.exists():
        process = start(model, source, out)
        known = lines(journal)
        if kills < arguments.kills:
            wanted = known + draw.randrange(1, 4)  # after so many further blocks, and then at any moment
            while process.poll() is None and lines(journal) < wanted:
                time.sleep(0.2)
            time.sleep(draw.random() * 5)
        if kills < arguments.kills and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        done.append(lines(journal))
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"predict failed with {process.returncode}")
    row = {"kills": kills, "sentences": lines(out), "blocks_done_at_each_end": done, **counted(source, out)}
    if whole.is_file():  # of as many sentences, or of more
        row["same_lines_as_never_killed"], row["same_until_line"] = same_lines(out, whole)
    return row


def same_lines(one: Path, other: Path) -> tuple[int, int]:
    """How many lines of a file are, byte by byte, those at the same place in another, and how many before the first other."""
    with open(one, "rb") as first, open(other, "rb") as second:
        same = [mine == theirs for mine, theirs in zip(first, second, strict=False)]
    return sum(same), same.index(False) if False in same else len(same)


def counted(source: Path, out: Path) -> dict[str, int]:
    """Ids that are missing, that occur twice, and that are out of order."""
    ids = [json.loads(line)["id"] for line in open(out, encoding="utf-8")]  # noqa: SIM115
    expected = [str(json.loads(line)["id"]) for line in open(source, encoding="utf-8")]  # noqa: SIM115
    return {
        "missing": len(set(expected) - set(ids)),
        "twice": len(ids) - len(set(ids)),
        "out_of_order": sum(one != other for one, other in zip(ids, expected, strict=False)),
    }


def start(model: Path, source: Path, out: Path) -> subprocess.Popen[bytes]:
    program = str(Path(sys.executable).with_name("posology"))
    return subprocess.Popen(
        [program, "predict", str(model), str(source), str(out), "--id", "id", "--json"], stdout=subprocess.PIPE
    )


def command(*arguments: object) -> None:
    subprocess.run([str(Path(sys.executable).with_name("posology")), *map(str, arguments)], check=True)


def memory(process: int) -> float:
    """Megabytes of a process's resident set."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1e3
    except OSError:
        pass
    return 0.0


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def clean(out: Path) -> None:
    out.unlink(missing_ok=True)
    shutil.rmtree(out.with_name(f".{out.name}.parts"), ignore_errors=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    found = [
        "| backend | sentences/s | pipeline(batch_size=32), sentences/s | times faster | the command, start to end | same tags |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["what"] == "ratio":
            ours, peer, times = (
                f"{row[name]['median']:.{digits}f} ({row[name]['min']:.{digits}f} to {row[name]['max']:.{digits}f})"
                for name, digits in (("ours_per_second", 0), ("pipeline_per_second", 0), ("ratio", 2))
            )
            found.append(
                f"| {row['backend']} | {ours} | {peer} | {times} | {row['command_per_second']:.0f} | {row['same_tags']:.2%} |"
            )
    for row in rows:
        if row["what"] in ("million", "hospital"):
            tenths = ", ".join(f"{part:,.0f}" for part in row["peak_megabytes_by_tenth"])
            found += [
                "",
                f"{row['what']} ({row['backend']}): {row['sentences']:,} sentences in {row['seconds']:,.0f} s, "
                f"{row['per_second']:,.0f} a second, start included; {row['answered_once_more']:,} had the text of another one "
                f"near them and were not read again; {row['missing']} missing, {row['twice']} twice, {row['out_of_order']} out "
                f"of order. Peak memory in each tenth of the time: {tenths} MB.",
            ]
        elif row["what"] == "killed":
            same = row.get("same_lines_as_never_killed")
            found += [
                "",
                f"killed ({row['backend']}): {row['sentences']:,} sentences, {row['kills']} kills; {row['missing']} missing, "
                f"{row['twice']} twice, {row['out_of_order']} out of order"
                + (
                    "."
                    if same is None
                    else f"; {same:,} lines byte by byte those of the run that was never killed, the first "
                    f"{row['same_until_line']:,} without exception. The last block of a shorter file has other texts beside it in a "
                    "longer one, and in int8 the scales of a pass follow from all of its texts."
                ),
            ]
    return "\n".join(found) + "\n"


if __name__ == "__main__":
    main()
