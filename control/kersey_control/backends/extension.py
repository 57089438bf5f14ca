"""The extension backend: the operator's own commands carry the packets, or tell who does.

As flannel's (pkg/backend/extension): a command before the lease gives its BackendData, one after it
learns our subnet, one runs for each peer that comes and one for each that goes. Commands are lists
of words and never pass a shell; what a lease says reaches them by environment and standard input
alone. They run one after the other on a thread of their own, so that a slow one holds up no other
part of the daemon.
"""

import json
import logging
import os
import queue
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from threading import Thread

from kersey_control.backends.alloc import AllocBackend
from kersey_control.backends.base import PeerFollower
from kersey_control.errors import KernelError
from kersey_control.lease import Lease
from kersey_control.netconfig import ExtensionConfig
from kersey_control.peer import Peer
from kersey_control.rtnetlink import Rtnl
from kersey_control.uplink import Uplink

logger = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds after which a command is ended: the next one waits for it."""

_CLOSE_SECONDS = 2.0
_SHOWN = 500


@dataclass(frozen=True, slots=True)
class _Task:
    command: tuple[str, ...]
    environment: Mapping[str, str]
    data: bytes = b""


class ExtensionBackend(AllocBackend):
    """Hold a lease, and run the operator's commands as leases come and go."""

    name = lease_type = "extension"

    def __init__(self, config: ExtensionConfig, network: IPv4Network, rtnl: Rtnl) -> None:
        super().__init__(network, rtnl)
        self._config = config
        self._data: bytes | None = None
        self._subnet: IPv4Network | None = None
        self._commands = _Commands(config)

    @property
    def followers(self) -> tuple[PeerFollower, ...]:
        """Return the runner of the commands."""
        return (self._commands,)

    @property
    def lease_data(self) -> bytes:
        """Return what PreStartupCommand printed, as a JSON string; empty without that command."""
        return self._data or b""

    def prepare(self, uplink: Uplink) -> None:
        """Run PreStartupCommand at the first call. Raises KernelError if it fails."""
        super().prepare(uplink)
        if self._data is None:
            self._data = self._pre_startup()

    def assign(self, subnet: IPv4Network) -> None:
        """Run PostStartupCommand for a subnet that is new to us."""
        if subnet != self._subnet:
            self._subnet = subnet
            self._commands.run(
                self._config.post_startup,
                {
                    "NETWORK": str(self._network),
                    "SUBNET": str(subnet),
                    "PUBLIC_IP": str(self.uplink.public_ip),
                },
            )

    def peer(self, lease: Lease) -> Peer:
        """Return the peer that a lease describes, and remember its data for the command."""
        peer = super().peer(lease)
        self._commands.learn(lease)
        return peer

    def close(self) -> None:
        """End the runner; commands that wait are not run."""
        self._commands.close()

    def _pre_startup(self) -> bytes:
        if not self._config.pre_startup:
            return b""
        output = _run(_Task(self._config.pre_startup, {}))
        if output is None:
            raise KernelError(
                f"Backend.PreStartupCommand: got a failure of {self._config.pre_startup[0]},"
                " expected its output, which is our lease's data"
            )
        return json.dumps(output.decode(errors="replace").strip()).encode()


class _Commands:
    """Run commands in their order on one thread, and know which peers were told."""

    def __init__(self, config: ExtensionConfig) -> None:
        self._config = config
        self._told: dict[IPv4Network, tuple[IPv4Address, bytes]] = {}
        self._data: dict[IPv4Network, bytes] = {}
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = Thread(target=self._work, name="extension", daemon=True)
        self._thread.start()

    def learn(self, lease: Lease) -> None:
        """Remember the data of a lease until it becomes a peer."""
        self._data[lease.subnet] = lease.backend_data

    def run(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        """Have a command run after those that wait."""
        if command:
            self._tasks.put(_Task(command, environment))

    def replace_peers(self, peers: Iterable[Peer]) -> None:
        """Run the commands for those that came and those that went since they were told last."""
        wanted = {peer.subnet: peer for peer in peers}
        for subnet in self._told.keys() - wanted.keys():
            self.remove_peer(subnet)
        for peer in wanted.values():
            self.put_peer(peer)

    def put_peer(self, peer: Peer) -> None:
        """Run SubnetAddCommand unless this peer was told as it is."""
        data = self._data.get(peer.subnet, b"")
        if self._told.get(peer.subnet) != (peer.node, data):
            self._told[peer.subnet] = (peer.node, data)
            self._tell(self._config.subnet_add, peer.subnet, peer.node, data)

    def remove_peer(self, subnet: IPv4Network) -> None:
        """Run SubnetRemoveCommand if the peer was told."""
        self._data.pop(subnet, None)
        told = self._told.pop(subnet, None)
        if told is not None:
            self._tell(self._config.subnet_remove, subnet, *told)

    def close(self) -> None:
        """End the thread after the command that runs, if that ends soon."""
        self._tasks.put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _tell(
        self, command: tuple[str, ...], subnet: IPv4Network, node: IPv4Address, data: bytes
    ) -> None:
        if command:
            environment = {"SUBNET": str(subnet), "PUBLIC_IP": str(node)}
            self._tasks.put(_Task(command, environment, _plain(data)))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            _run(task)


def _plain(data: bytes) -> bytes:
    """Return the text of a JSON string, anything else as it is: what PreStartupCommand printed."""
    try:
        value = json.loads(data) if data else ""
    except (ValueError, RecursionError):
        return data
    return value.encode() if isinstance(value, str) else data


def _run(task: _Task) -> bytes | None:
    """Return what a command printed, None if it failed, with the reason in the log."""
    try:
        done = subprocess.run(
            task.command,
            input=task.data,
            capture_output=True,
            env={**os.environ, **task.environment},
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.error("command failed", extra={"command": task.command[0], "reason": str(error)})  # noqa: TRY400  # the reason says it all
        return None
    if done.returncode:
        logger.error(
            "command failed",
            extra={
                "command": task.command[0],
                "status": done.returncode,
                "output": done.stderr[-_SHOWN:].decode(errors="replace"),
            },
        )
        return None
    logger.info("command run", extra={"command": task.command[0], **task.environment})
    return done.stdout
