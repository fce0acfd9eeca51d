"""Time and memory of `posology prepare` for the three MIMIC-III tasks, against the rows of NOTEEVENTS.

    python benchmarks/mimic_scale.py [--rows 520795 1041590 2083180] [--folder DIR]

Writes tables of the size and mix of the true ones (at full size 2,083,180 notes in about 4 GB, 59,652 of them discharge
summaries) into a temporary folder, which needs some 6 GB and is removed. Texts are put together from few phrases, every
discharge summary is different. Each task is prepared in both protocols by a process of its own, whose time and peak of
resident memory the kernel tells; the largest size once more with NOTEEVENTS packed. Writes
benchmarks/results/mimic_scale.json, .png and .svg.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from common import HERE, result

TASKS = ("mimic-mp", "mimic-los", "mimic-triage")
PROTOCOLS = ("standard", "paper")
RESULTS = HERE / "results" / "mimic_scale.json"

CATEGORIES = {
    "Nursing/other": 822_497, "Radiology": 522_279, "Nursing": 223_556, "ECG": 209_051, "Physician ": 141_624,
    "Discharge summary": 59_652, "Echo": 45_794, "Respiratory ": 31_739, "Nutrition": 9_418, "General": 8_301,
    "Rehab Services": 5_431, "Social Work": 2_670, "Case Management ": 967, "Pharmacy": 103, "Consult": 98,
}  # fmt: skip
"""Notes of MIMIC-III by category."""
NOTES = sum(CATEGORIES.values())
ADMISSIONS, PATIENTS, WITH_SUMMARY = 58_976, 46_520, 52_726
CODES = (
    "41401", "0389", "41071", "V3001", "4241", "V3000", "51881", "486", "431", "5789", "4280", "430", "41011", "5849",
    "4240", "V3101", "5070", "41041", "5770", "1983",
)  # fmt: skip
OTHER_CODES = ("4019", "25000", "99591", "2724", "42731", "5990", "53081", "2859", "2449", "496")
SHARE_OF_CODES = 0.3

PHRASES = (
    "The patient was admitted to the [**Hospital Ward Name 121**] service for further care.",
    "Mr. [**Known lastname 4710**] was given fluids and started on vancomycin 1 g IV q12h and cefepime.",
    "He reports no chest pain, shortness of breath, nausea, vomiting or change in bowel habits.",
    "On [**2151-7-16**] a repeat CT of the head showed no interval change.",
    "Temp 98.6, BP 124/72, HR 88, RR 18, O2 sat 96% on room air; lungs clear, abdomen soft.",
    'She describes the pain as "pressure like", worse with exertion, relieved by rest.',
    "Creatinine rose to 2.1 from a baseline of 1.2 and came down with hydration.",
    "Followed by Dr. [**First Name (STitle) 33**] at [**Hospital1 18**]; outpatient stress test was equivocal.",
    "Hypertension, hyperlipidemia, type 2 diabetes, atrial fibrillation on warfarin, gout.",
    "Cardiac catheterization showed 90% stenosis of the LAD, and a stent was placed without complication.",
)
SECTIONS = {
    "Chief Complaint": 1, "Major Surgical or Invasive Procedure": 1, "History of Present Illness": 16,
    "Past Medical History": 8, "Social History": 3, "Family History": 2, "Physical Exam": 12, "Pertinent Results": 24,
    "Brief Hospital Course": 30, "Medications on Admission": 8, "Discharge Medications": 10,
    "Discharge Disposition": 1, "Discharge Diagnosis": 2, "Discharge Condition": 1, "Discharge Instructions": 8,
}  # fmt: skip
"""Sections of a discharge summary, with their phrases."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[NOTES // 4, NOTES // 2, NOTES])
    parser.add_argument("--folder", type=Path, help="where the temporary folder goes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file")
    arguments = parser.parse_args()
    started, measured = time.time(), []
    for rows in sorted(arguments.rows):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            tables = Path(name) / "tables"
            write_tables(tables, rows)
            measured += [measure(tables, Path(name), rows, packed=False, **which) for which in runs()]
            if rows == max(arguments.rows):
                pack(tables / "NOTEEVENTS.csv")
                measured += [measure(tables, Path(name), rows, packed=True, **which) for which in runs()]

    from posology.files import write_json

    write_json(arguments.out, result(measured, started))
    plot(measured, arguments.out)


def runs() -> Iterator[dict[str, str]]:
    for protocol in PROTOCOLS:
        for task in TASKS:
            yield {"task": task, "protocol": protocol}


def measure(tables: Path, folder: Path, rows: int, *, task: str, protocol: str, packed: bool) -> dict[str, Any]:
    """Prepares one task in a process of its own."""
    out = folder / "prepared"
    posology = Path(sys.executable).parent / "posology"
    command = [posology, "prepare", task, "--source", tables, "--out", out, "--protocol", protocol, "--quiet"]
    begin = time.perf_counter()
    # The temporary file of texts goes to the same disk.
    child = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(folder)}
    )
    _, status, usage = os.wait4(child.pid, 0)  # the usage of this child alone, not the largest of all
    seconds = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{task} ({protocol}) failed with {child.returncode}")

    from posology import PreparedTask

    documents = sum(PreparedTask.open(out).counts.values())
    shutil.rmtree(out)
    (notes,) = tables.glob("NOTEEVENTS.*")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    row = {
        "rows": rows, "bytes": notes.stat().st_size, "packed": packed, "task": task, "protocol": protocol,
        "documents": documents, "seconds": round(seconds, 1), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gib": round(peak / 2**30, 3),
    }  # fmt: skip
    print(row, flush=True)
    return row


def write_tables(folder: Path, rows: int) -> None:
    """Tables with so many notes; everything else in proportion."""
    folder.mkdir(parents=True)
    rng = random.Random(rows)
    share = rows / NOTES
    subjects = [rng.randrange(round(PATIENTS * share) or 1) + 1 for _ in range(round(ADMISSIONS * share))]
    admissions = [(subject, 100_001 + number) for number, subject in enumerate(subjects)]
    _write(folder, "ADMISSIONS", "subject_id,hadm_id,admittime,dischtime,admission_type,hospital_expire_flag",
           lambda: (_admission(subject, hadm, rng) for subject, hadm in admissions))  # fmt: skip
    for table, length in (("DIAGNOSES_ICD", 11), ("PROCEDURES_ICD", 4)):
        _write(folder, table, "subject_id,hadm_id,seq_num,icd9_code",
               lambda length=length: _codes(admissions, length, rng))  # fmt: skip
    header = "subject_id,hadm_id,chartdate,charttime,storetime,category,description,cgid,iserror,text"
    _write(folder, "NOTEEVENTS", header, lambda: _notes(admissions, rows, rng))


def _write(folder: Path, table: str, header: str, rows: Callable[[], Iterator[str]]) -> None:
    names = ",".join(f'"{name.upper()}"' for name in ["row_id", *header.split(",")])
    with open(folder / f"{table}.csv", "w", encoding="utf-8", newline="", buffering=2**20) as file:
        file.write(names + "\n")
        file.writelines(f"{number},{row}\n" for number, row in enumerate(rows(), start=1))


def _admission(subject: int, hadm: int, rng: random.Random) -> str:
    start = datetime(2101, 1, 1) + timedelta(minutes=rng.randrange(50_000_000))
    end = start + timedelta(days=rng.lognormvariate(1.8, 0.8))
    kind = rng.choices(("EMERGENCY", "ELECTIVE", "NEWBORN", "URGENT"), (42, 8, 8, 1))[0]
    return f'{subject},{hadm},{start:%Y-%m-%d %H:%M:%S},{end:%Y-%m-%d %H:%M:%S},"{kind}",{int(rng.random() < 0.1)}'


def _codes(admissions: list[tuple[int, int]], length: int, rng: random.Random) -> Iterator[str]:
    for subject, hadm in admissions:
        for number in range(1, length + 1):
            code = rng.choice(CODES if number == 1 and rng.random() < SHARE_OF_CODES else OTHER_CODES)
            yield f'{subject},{hadm},{number},"{code}"'


def _notes(admissions: list[tuple[int, int]], rows: int, rng: random.Random) -> Iterator[str]:
    categories = rng.choices(list(CATEGORIES), list(CATEGORIES.values()), k=rows)
    summarised = rng.sample(admissions, round(WITH_SUMMARY * rows / NOTES) or 1)
    bodies = [_summary(rng) for _ in range(200)]
    # Lengths as they fall in MIMIC-III, where a note that is no discharge summary has some 1,600 characters.
    others = ["\n".join(_phrases(1 + int(rng.expovariate(1 / 16)), rng)) for _ in range(2000)]
    count = 0
    for category in categories:
        if category != "Discharge summary":
            subject, hadm = admissions[int(rng.random() * len(admissions))]
            text = others[int(rng.random() * len(others))]
            yield f'{subject},{hadm},2151-07-16,2151-07-16 10:00:00,,"{category}","Report",,,"{text}"'
            continue
        addendum = count >= len(summarised)
        subject, hadm = summarised[count % len(summarised)]
        text = f"Admission Date:  [**2151-7-16**]       Discharge Date:  [**2151-8-4**]\n\nName: {_word(count)}\n\n"
        text += bodies[count % len(bodies)].replace("Chief Complaint:\n", f"Chief Complaint:\n{_word(count)} ")
        count += 1
        yield f'{subject},{hadm},2151-08-0{4 + addendum},,,"{category}","{"Addendum" if addendum else "Report"}",,,"{text}"'


def _summary(rng: random.Random) -> str:
    """About 10,000 characters, quotes doubled as a CSV field wants them."""
    return "\n\n".join(
        f"{heading}:\n" + "\n".join(_phrases(round(1.2 * number * rng.uniform(0.4, 1.6)) or 1, rng))
        for heading, number in SECTIONS.items()
    )


def _phrases(number: int, rng: random.Random) -> list[str]:
    return [phrase.replace('"', '""') for phrase in rng.choices(PHRASES, k=number)]


def _word(number: int) -> str:
    """A word of its own for each number: the published triage takes texts that differ in digits only for equal."""
    letters = ""
    while number or not letters:
        number, letter = divmod(number, 20)
        letters += "bcdfghjklmnpqrstvwyz"[letter]
    return letters


def pack(path: Path) -> None:
    """Replaces a file by its `.gz`."""
    with open(path, "rb") as plain, gzip.open(f"{path}.gz", "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed, 2**22)
    path.unlink()


def plot(measured: list[dict[str, Any]], out: Path) -> None:
    """Seconds and memory against rows, both axes linear and from zero."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, key, label in zip(panels, ("seconds", "peak_gib"), ("seconds", "peak memory (GiB)"), strict=True):
        for number, which in enumerate(runs()):
            style = {"color": f"C{number % len(TASKS)}", "linestyle": "-" if which["protocol"] == "standard" else "--"}
            for packed in (False, True):
                points = [row for row in measured if row["packed"] == packed and which.items() <= row.items()]
                panel.plot(
                    [row["rows"] / 1e6 for row in points],
                    [row[key] for row in points],
                    marker="s" if packed else "o",
                    label=None if packed else " ".join(which.values()),
                    **style | ({"linestyle": "", "markerfacecolor": "none"} if packed else {}),
                )
        panel.set(xlabel="rows of NOTEEVENTS (millions)", ylabel=label, xlim=0, ylim=0)
        panel.grid(alpha=0.3)
    panels[0].legend(title="squares: .csv.gz", fontsize="small")
    for ending in (".png", ".svg"):
        figure.savefig(out.with_suffix(ending), dpi=150)


if __name__ == "__main__":
    main()
