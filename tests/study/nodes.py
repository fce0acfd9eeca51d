"""A Ray cluster whose nodes are processes of this machine, on the loopback interface only, without telemetry."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when Ray is imported: keeps its services on 127.0.0.1

from ray.cluster_utils import Cluster

from posology.study.bulk import _FilePredictor
from posology.study.cluster import RayExecutor
from posology.study.driver import carry_out
from posology.study.ledger import Ledger
from tests.study.driving import make_cells

_STORE_BYTES = 80 * 2**20
HEAD_BYTES = 10**9
"""What the head has to give away; other nodes have twice as much and more, so that runs can be kept off the head."""


def add_node(cluster: Cluster, **changes: Any) -> Any:
    """One more node, of one processor."""
    return cluster.add_node(
        **{"num_cpus": 1, "object_store_memory": _STORE_BYTES, "node_ip_address": "127.0.0.1"} | changes
    )


@contextmanager
def cluster_of(nodes: int) -> Iterator[Cluster]:
    """So many nodes, the head among them, which end with the block."""
    cluster = Cluster()
    try:
        for number in range(nodes):
            add_node(cluster, **({} if number else {"include_dashboard": False, "memory": HEAD_BYTES}))
        yield cluster
    finally:
        cluster.shutdown()


def node_of(cluster: Cluster, process: int) -> Any:
    """The node that a worker belongs to, by its process id; None for the head."""
    stat = Path(f"/proc/{process}/stat").read_text()
    raylet = int(stat.rpartition(")")[2].split()[1])
    for node in cluster.worker_nodes:
        if any(info.process.pid == raylet for info in node.all_processes["raylet"]):
            return node
    return None


class Deadly(_FilePredictor):
    """Takes its process with it on one file."""

    def _predict(self, source: Path, target: Path) -> int:
        if source.stem == "deadly":
            os._exit(1)
        return super()._predict(source, target)


def main(address: str, ledger: str, task: str, backbone: str, runs: str, epochs: str) -> None:
    """A study on the cluster, in a process that tests kill."""
    with Ledger(ledger, write=True) as opened:
        carry_out(opened, "s", make_cells(Path(task), Path(backbone), int(runs), int(epochs)), RayExecutor(address))


if __name__ == "__main__":
    main(*sys.argv[1:])
