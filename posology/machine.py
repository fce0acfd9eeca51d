"""What this machine has: no more than a container leaves of it."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path


def processor_name() -> str:
    """The processor as the system calls it, such as `Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, platform.processor() or platform.machine())


def usable_cores() -> int:
    """Cores this process may use: what its affinity and its container's quota leave of the machine's."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        return max(1, min(affinity, math.ceil(int(quota) / int(period))))
    return affinity


def machine_memory() -> dict[str, int | None]:
    """Total and available bytes, no more than the container allows; None where the system does not tell."""
    values = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            values[name] = int(value.split()[0]) * 1024
    except OSError:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
        return {"total_bytes": total, "available_bytes": None}
    total, available = values["MemTotal"], values["MemAvailable"]
    limit, used = _first_line("/sys/fs/cgroup/memory.max"), _first_line("/sys/fs/cgroup/memory.current")
    if limit.isdecimal() and used.isdecimal():
        total, available = min(total, int(limit)), min(available, max(0, int(limit) - int(used)))
    return {"total_bytes": total, "available_bytes": available}


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().strip().partition("\n")[0]
    except OSError:
        return ""
