"""Energy from made-up counters: sums, rounds, and what cannot be read."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from posology.measure.energy import Energy, Meter, Nvml, Rapl, usual_meters

RANGE = 1_000_000


def _zone(root: Path, folder: str, name: str, microjoules: int) -> Path:
    zone = root / folder
    zone.mkdir()
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return zone / "energy_uj"


@pytest.fixture
def counters(tmp_path: Path) -> dict[str, Path]:
    """A machine of two packages, as Linux shows it."""
    names = {
        "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1", "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0",
    }  # fmt: skip
    (tmp_path / "intel-rapl").mkdir()
    return {folder: _zone(tmp_path, folder, name, 100) for folder, name in names.items()}


def _root(counters: dict[str, Path]) -> Path:
    return counters["intel-rapl:0"].parent.parent


def test_packages_and_memory_are_summed_and_nothing_twice(counters: dict[str, Path]) -> None:
    meter = Rapl(_root(counters))
    for number, counter in enumerate(counters.values()):
        counter.write_text(str(100 + 10**number))
    # package-0 is the first of these counters, dram the third, package-1 the fourth
    assert meter.joules() == pytest.approx((1 + 100 + 1000) / 1e6)
    assert meter.joules() == pytest.approx((1 + 100 + 1000) / 1e6)


def test_counters_that_come_round_go_on(counters: dict[str, Path]) -> None:
    meter, counter = Rapl(_root(counters)), counters["intel-rapl:0"]
    for value in (900_000, 300_000, 800_000, 200_000):  # twice round
        counter.write_text(str(value))
        meter.joules()
    assert meter.joules() == pytest.approx((2 * RANGE + 200_000 - 100) / 1e6)


def test_a_block_reads_counters_often_enough_to_see_them_come_round(counters: dict[str, Path]) -> None:
    counter = counters["intel-rapl:1"]
    with Energy([lambda: Rapl(_root(counters))], every=0.01) as energy:
        assert energy.joules is None
        for value in (900_000, 200_000):
            counter.write_text(f"{value}\n")
            time.sleep(0.2)
    assert energy.joules == pytest.approx((RANGE + 200_000 - 100) / 1e6)


@pytest.mark.parametrize("damage", ["unlink", "write_text"])
def test_what_cannot_be_read_is_not_measured(counters: dict[str, Path], damage: str) -> None:
    def break_it() -> None:
        counter = counters["intel-rapl:0:1"]
        counter.unlink() if damage == "unlink" else counter.write_text("nonsense")

    with Energy([lambda: Rapl(_root(counters))]) as energy:
        break_it()
    assert energy.joules is None
    with Energy([lambda: Rapl(_root(counters))]) as energy:
        pass
    assert energy.joules is None


def test_without_permission_or_counters_there_is_none(
    counters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_: Any) -> str:
        raise PermissionError(self.name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FileNotFoundError):
        usual_meters(tmp_path / "none")
    (meter,) = usual_meters(_root(counters))
    assert isinstance(meter, Rapl)
    monkeypatch.setattr(Path, "read_text", refuse)
    with Energy([lambda: Rapl(_root(counters))]) as energy:
        pass
    assert energy.joules is None


def test_an_error_in_the_block_goes_on(counters: dict[str, Path]) -> None:
    with pytest.raises(KeyError), Energy([lambda: Rapl(_root(counters))]):
        raise KeyError("own")


class _Library:
    """NVML with one GPU that takes 1500 mJ between two looks."""

    def __init__(self) -> None:
        self.millijoules, self.asked = 10_000, b""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, device: Any) -> int:
        self.asked = uuid
        return 0 if uuid.startswith(b"GPU-") else 2

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, found: Any) -> int:
        ctypes.cast(found, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.millijoules
        self.millijoules += 1500
        return 0


def test_a_gpu_and_its_processors_are_summed(counters: dict[str, Path]) -> None:
    library = _Library()
    meters: list[Any] = [lambda: Nvml(library, "GPU-1"), lambda: Rapl(_root(counters))]
    with Energy(meters) as energy:
        counters["intel-rapl:0"].write_text("500100")
    assert library.asked == b"GPU-1" and energy.joules == pytest.approx(1.5 + 0.5)


def test_a_gpu_that_does_not_count_is_not_measured() -> None:
    with pytest.raises(OSError, match="error 2"):
        Nvml(_Library(), "another")

    def failing() -> Meter:
        raise OSError("no such library")

    with Energy([failing]) as energy:
        pass
    assert energy.joules is None
