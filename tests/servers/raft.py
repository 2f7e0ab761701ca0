# SPDX-License-Identifier: Apache-2.0
"""Three OpenBao servers that keep their data together; any of them may fail."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Self

from tests.servers.openbao import SealableOpenBao
from tests.servers.process import free_port, hand_over

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_PATIENCE = 90.0


class Node(SealableOpenBao):
    """One of the servers; it can be killed and started again."""

    def __init__(self, name: str) -> None:
        super().__init__(initialise=False)
        self.name = name
        self._cluster_port = free_port()

    def join(self, first: Node) -> None:
        """Become a member of the first node's cluster."""
        self.root.adapter.post("/v1/sys/storage/raft/join", json={"leader_api_addr": first.addr})
        self.share(first)
        self.unseal()

    def share(self, first: Node) -> None:
        """Know what all nodes of a cluster have in common."""
        self._unseal_key, self.root_token = first._unseal_key, first.root_token

    def kill(self) -> None:
        """End the server at once, as a power cut would."""
        self._daemon.kill()

    def restart(self) -> None:
        """Start the server again with what its disk holds, and unseal it."""
        self._start(self._resources, [f"-config={self._config_file}"], ready_status=503)
        self.unseal()

    def step_down(self) -> None:
        """Give up leadership."""
        self.root.adapter.put("/v1/sys/step-down")

    def _boot(self, resources: contextlib.ExitStack) -> None:
        data = self.folder / "data"
        data.mkdir()
        hand_over(data)
        # Elections within two seconds instead of ten.
        raft = {"path": str(data), "node_id": self.name, "performance_multiplier": "1"}
        cluster = f"https://127.0.0.1:{self._cluster_port}"
        self._config |= {"storage": {"raft": raft}, "api_addr": self.addr, "cluster_addr": cluster}
        super()._boot(resources)

    def _listener(self) -> dict[str, Any]:
        return {**super()._listener(), "cluster_address": f"127.0.0.1:{self._cluster_port}"}


class Raft:
    """A cluster of three on this machine; on entering the context it starts, and waits until any of them may fail."""

    def __init__(self) -> None:
        self.nodes = [Node(f"node-{number}") for number in (1, 2, 3)]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as resources:
            for node in self.nodes:
                resources.enter_context(node)
            first, *others = self.nodes
            first.initialise()
            _wait_until(lambda: first.health() == 200, "leader")
            # A new node may vote after one second instead of ten.
            autopilot = {"server_stabilization_time": "1s"}
            first.root.adapter.post("/v1/sys/storage/raft/autopilot/configuration", json=autopilot)
            for node in others:
                node.join(first)
            self.wait_until_whole()
            self._resources = resources.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._resources.close()

    @property
    def addr(self) -> str:
        """All addresses, as `VAULT_ADDR` takes them."""
        return ",".join(node.addr for node in self.nodes)

    @property
    def leader(self) -> Node:
        """The node that leads now."""
        _wait_until(lambda: any(node.health() == 200 for node in self.nodes), "leader")
        return next(node for node in self.nodes if node.health() == 200)

    def wait_for_another_leader(self, former: Node) -> None:
        """Return when a node other than this one leads."""
        _wait_until(lambda: any(node.health() == 200 for node in self.nodes if node is not former), "other leader")

    def wait_until_whole(self) -> None:
        """Return when all nodes answer and vote: before, the loss of one may leave no majority."""
        _wait_until(lambda: all(node.health() in {200, 429} for node in self.nodes), "nodes that answer")
        _wait_until(lambda: self._voters() == len(self.nodes), "voters")

    def _voters(self) -> int:
        with contextlib.suppress(Exception):  # whatever a cluster without a leader answers
            answer = self.leader.root.adapter.get("/v1/sys/storage/raft/configuration")
            return sum(server["voter"] for server in answer["data"]["config"]["servers"])
        return 0


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the cluster has not all its {what} after {_PATIENCE:g} s")
        time.sleep(0.05)
