"""Energy that a piece of work takes, where the hardware counts it: RAPL for processors, NVML for a GPU.

- RAPL (Intel since Sandy Bridge, AMD since Zen; Linux's powercap interface) counts microjoules of each processor package
  and, where it can, of memory. The counters wrap around after some minutes to hours, so they are read twice a minute.
  Most systems let only root read them: `chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj`.
- NVML (the NVIDIA driver's own library) counts millijoules of a whole GPU since the driver was loaded (Volta and later).

Both count all that the machine or the GPU does, not one process: other work at the same time is in the figure. Mainboard,
disks, fans and losses of the power supply are not.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

POWERCAP = Path("/sys/class/powercap")
_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")  # not intel-rapl-mmio, which counts the same packages once more
_COUNTED = re.compile(r"package-\d+.*|dram")  # not cores, which are part of a package; not psys, which holds all of it
_EVERY_SECONDS = 30.0
_FAILURES = (OSError, ValueError, AttributeError, RuntimeError)


class Meter(Protocol):
    """Something that counts energy."""

    def joules(self) -> float:
        """Since it was made; raises OSError or ValueError where it cannot be read."""
        ...


class Rapl:
    """The energy of all processor packages and their memory.

    Args:
        root: the folder of the powercap interface.

    Raises:
        OSError: there is none, or this process may not read it.
        ValueError: it holds something else than numbers.
    """

    def __init__(self, root: Path = POWERCAP):
        folders = sorted(folder for folder in root.iterdir() if _ZONE.fullmatch(folder.name))
        self._zones = [folder for folder in folders if _COUNTED.fullmatch(_text(folder / "name"))]
        if not self._zones:
            raise FileNotFoundError(f"{root} counts no package")
        self._last = [self._read(zone) for zone in self._zones]
        self._microjoules = 0

    def joules(self) -> float:
        """See `Meter`. To be called before a counter comes round once more."""
        for number, zone in enumerate(self._zones):
            now = self._read(zone)
            passed = now - self._last[number]
            if passed < 0:
                passed += int(_text(zone / "max_energy_range_uj"))
            self._microjoules += passed
            self._last[number] = now
        return self._microjoules / 1e6

    @staticmethod
    def _read(zone: Path) -> int:
        return int(_text(zone / "energy_uj"))


class Nvml:
    """The energy of the GPU that PyTorch uses here.

    Args:
        library: NVML, where it is not to be looked for.
        uuid: of the GPU; by default PyTorch's current one.

    Raises:
        OSError: there is no such library, or the GPU does not count.
    """

    def __init__(self, library: Any = None, uuid: str | None = None):
        self._library = ctypes.CDLL("libnvidia-ml.so.1") if library is None else library
        uuid = uuid or f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        self._device = ctypes.c_void_p()
        self._check(self._library.nvmlInit_v2())
        self._check(self._library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(self._device)))
        self._first = self._read()

    def joules(self) -> float:
        """See `Meter`."""
        return (self._read() - self._first) / 1e3

    def _read(self) -> int:
        millijoules = ctypes.c_ulonglong()
        self._check(self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(millijoules)))
        return millijoules.value

    @staticmethod
    def _check(code: int) -> None:
        if code != 0:
            raise OSError(f"NVML gives error {code}")


class Energy:
    """Measures the energy of a block: `with Energy() as energy: ...`, then `energy.joules`.

    Args:
        meters: what counts; by default NVML where PyTorch uses a GPU, which must count then, and RAPL, which must count
            where it uses none.
        every: seconds after which counters are read, so that none comes round unseen.

    Attributes:
        joules: after the block; None where it was not measured.
    """

    def __init__(self, meters: Sequence[Callable[[], Meter]] | None = None, *, every: float = _EVERY_SECONDS):
        self._make, self._every = meters, every
        self._meters: list[Meter] = []
        self._end = threading.Event()
        self.joules: float | None = None

    def __enter__(self) -> Energy:
        with contextlib.suppress(*_FAILURES):
            self._meters = usual_meters() if self._make is None else [make() for make in self._make]
        if self._meters:
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._meters:
            self._end.set()
            self._thread.join()
            self.joules = self._read()

    def _follow(self) -> None:
        while self._meters and not self._end.wait(self._every):
            self._read()

    def _read(self) -> float | None:
        try:
            return sum(meter.joules() for meter in self._meters)
        except _FAILURES:
            self._meters = []  # what has failed once may have missed a round
            return None


def usual_meters(root: Path = POWERCAP) -> list[Meter]:
    """What counts on this machine: see `Energy`.

    Raises:
        OSError: nothing counts for what PyTorch computes on.
    """
    if not torch.cuda.is_available():
        return [Rapl(root)]
    meters: list[Meter] = [Nvml()]
    with contextlib.suppress(*_FAILURES):
        meters.append(Rapl(root))
    return meters


def _text(file: Path) -> str:
    return file.read_text(encoding="ascii").strip()
