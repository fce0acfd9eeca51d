"""What one run gets of a cluster, and how many of such runs its nodes hold."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from posology import console
from posology.errors import UserError

PATIENCE_SECONDS = 900.0
"""How long is waited for a node that is large enough; clusters that grow by demand take minutes to."""


@dataclass
class Resources:
    """What a worker gets.

    Attributes:
        cpus: it computes with so many threads; 1 by default.
        gpus: a fraction lets workers share one.
        memory: bytes that Ray sets aside, so that no more workers go to a node than it holds.

    Raises:
        UserError: one of them is less than nothing.
    """

    cpus: float | None = None
    gpus: float = 0
    memory: int | None = None
    _none_since: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.cpus = 1 if self.cpus is None else self.cpus
        if not (self.cpus > 0 and self.gpus >= 0 and (self.memory is None or self.memory > 0)):
            raise UserError("a run cannot have less than nothing", "Give positive numbers", "cpus, gpus, memory")

    @property
    def threads(self) -> int:
        """Of one worker."""
        return max(1, int(self.cpus or 1))

    @property
    def options(self) -> dict[str, Any]:
        """As Ray calls them."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory}

    def slots(self, ray: Any) -> int:
        """How many workers the nodes hold that are there now; where none, it is said once, and waited for.

        Raises:
            UserError: for a quarter of an hour no node was large enough.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        slots = sum(
            min(int(node.get(name, 0) // amount) for name, amount in wanted.items() if amount) for node in nodes
        )
        if slots:
            self._none_since = None
            return slots
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in wanted}
        problem = f"a run needs {_named(wanted)}, and no node of the cluster has that (the most on any: {_named(most)})"
        now = time.monotonic()
        if self._none_since is None:
            self._none_since = now
            console.say(f"{problem}; waiting for one")
        elif now - self._none_since >= PATIENCE_SECONDS:
            raise UserError(problem, "Ask for less, or add a node", "cpus, gpus, memory")
        return 0


def _named(amounts: dict[str, Any]) -> str:
    """In words; what is not asked for is left out."""
    units = {"CPU": "{:g} CPU", "GPU": "{:g} GPU", "memory": "{:.1e} bytes of memory"}
    return ", ".join(units[name].format(amount) for name, amount in amounts.items() if amount)
