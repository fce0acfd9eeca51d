"""How long `posology --help` and `import posology` take as whole processes.

    python benchmarks/startup.py

Writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import HERE, result

COMMANDS = {
    "posology --help": [str(Path(sys.executable).parent / "posology"), "--help"],
    "import posology": [sys.executable, "-c", "import posology"],
    "python alone": [sys.executable, "-c", ""],
}


def main() -> None:
    from posology.files import write_json

    started, rows = time.time(), []
    for name, command in COMMANDS.items():
        seconds = []
        for _ in range(21):
            begin = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - begin)
        rows.append({"command": name, "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)})
        print(f"{name}: median {rows[-1]['median']:.3f} s of {len(seconds)}")
    write_json(HERE / "results" / "startup.json", result(rows, started))


if __name__ == "__main__":
    main()
