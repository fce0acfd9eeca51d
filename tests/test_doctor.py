"""The doctor's findings on this machine, and on machines that are worse."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from posology import doctor, machine


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return doctor.report()


def _problems(found: dict[str, Any]) -> str:
    return "\n".join(each["problem"] for each in found["problems"])


def test_report_is_json_and_tells_what_the_machine_is(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    assert 1 <= found["cpu"]["usable_cores"] <= found["cpu"]["cores"]
    assert found["cpu"]["threads"] >= 1
    assert 0 < found["memory"]["available_bytes"] <= found["memory"]["total_bytes"]
    assert found["disk"]["free_bytes"] > 0


def test_precision_is_the_engines(found: dict[str, Any]) -> None:
    from posology.engine.precision import decide

    assert found["precision"]["bf16"] is decide().bf16
    assert found["precision"]["device"] == decide().device.type


def test_matrix_peak_is_a_speed_this_machine_can_have(found: dict[str, Any]) -> None:
    """Bounds by orders of magnitude only: a core does more than 0.1 and less than 10,000 GFLOP/s."""
    peaks = found["matrix_peak_gflops"]
    assert set(peaks) == {"fp32", "bf16"}
    limit = 1e4 * found["cpu"]["cores"] if not found["gpus"] else 1e7
    assert all(0.1 < peak < limit for peak in peaks.values())


def test_matrix_peak_stops_in_time_where_products_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def slow(matrix: Any, seconds: float) -> float:
        sizes.append(matrix.shape[0])
        return 0.05

    monkeypatch.setattr(doctor, "_fastest_product", slow)
    assert doctor.matrix_peak("bfloat16") == 0.05
    assert sizes == [256]


def test_lines_put_problems_with_their_mends_first(found: dict[str, Any]) -> None:
    ill = {**found, "problems": [{"problem": "the disk is full", "mend": "Free some space"}], "minilm": False}
    told = doctor.lines(ill)
    assert told[0] == "! the disk is full. Free some space."
    assert any("minilm is missing" in line for line in told)
    well = doctor.lines({**found, "problems": []})
    assert well[0] == "No problems found."
    assert any(found["cpu"]["model"] in line for line in well)


def test_a_missing_and_an_old_library_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["polars>=2", "torch>=2.13", "ray>=2.60; extra == 'ray'", "fastapi; extra == 'serve'"]
    versions = {"torch": "2.1.0+cpu", "fastapi": "1.0"}
    monkeypatch.setattr(metadata, "requires", lambda name: texts)
    monkeypatch.setattr(metadata, "metadata", lambda name: _Extras())
    monkeypatch.setattr(doctor, "_version", versions.get)
    libraries, extras, problems = doctor._installation()
    assert libraries == {"polars": None, "torch": "2.1.0+cpu"}
    assert extras == {"ray": ["ray>=2.60"], "serve": []}
    assert [each["problem"].split(",")[0] for each in problems] == ["polars is missing", "torch is 2.1.0+cpu"]


class _Extras:
    def get_all(self, name: str) -> list[str]:
        assert name == "Provides-Extra"
        return ["ray", "serve"]


def test_an_installation_without_metadata_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    libraries, extras, (problem,) = doctor._installation()
    assert (libraries, extras) == ({}, {})
    assert "without being installed" in problem["problem"]


def test_this_installation_has_its_core_libraries() -> None:
    try:
        metadata.version("posology")
    except metadata.PackageNotFoundError:
        pytest.skip("posology runs from its folder here, without being installed")
    libraries, extras, problems = doctor._installation()
    assert not problems
    assert {"torch", "transformers", "peft", "polars"} <= set(libraries)
    assert {"ray", "serve", "export", "hub", "quantise", "track", "demo", "dev"} == set(extras)


def test_little_memory_little_disk_and_no_model_are_problems(found: dict[str, Any]) -> None:
    poor = {
        **found,
        "minilm": False,
        "memory": {"total_bytes": 8 * 10**9, "available_bytes": 10**9},
        "disk": {"folder": "results", "free_bytes": 10**6},
    }
    problems = doctor._resource_problems(poor)
    assert ["minilm" in problems[0]["problem"], "1.0 GB" in problems[1]["problem"]] == [True, True]
    assert problems[2]["problem"] == "results has only 0.0 GB of free disk"


def test_more_threads_than_cores_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "matrix_peak", lambda *arguments: 1.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    poor: dict[str, Any] = {"cpu": {"usable_cores": 4}, "gpus": []}
    (problem,) = doctor._try_torch(poor)
    assert problem["mend"] == "Set OMP_NUM_THREADS=4"


def test_a_broken_pytorch_is_reported_and_the_rest_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(found: dict[str, Any]) -> list[doctor.Problem]:
        raise OSError("libtorch_cpu.so: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor, "_torch", broken)
    found = doctor.report()
    assert "libtorch_cpu.so: cannot open shared object file)" in _problems(found)
    assert "precision" not in found
    assert any(line.startswith("Memory") for line in doctor.lines(found))


def test_usable_cores_obeys_a_containers_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for quota, cores in {"150000 100000": 2, "max 100000": 16, "": 16, "1000 100000": 1}.items():
        monkeypatch.setattr(machine, "_first_line", lambda path, quota=quota: quota)
        assert machine.usable_cores() == cores


def test_memory_obeys_a_containers_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {"/sys/fs/cgroup/memory.max": "2000000", "/sys/fs/cgroup/memory.current": "500000"}
    monkeypatch.setattr(machine, "_first_line", lines.__getitem__)
    if not Path("/proc/meminfo").exists():
        pytest.skip("only Linux tells what memory is available")
    assert machine.machine_memory() == {"total_bytes": 2_000_000, "available_bytes": 1_500_000}
