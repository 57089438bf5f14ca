"""What the daemon tells an operator over its socket: the answers as types, for both ends.

Values only. Addresses and networks are texts as people write them, times are seconds, counts are
since the programs started. A field is added here, never renamed: programs read `--json`.
"""

from enum import StrEnum
from typing import Any

import msgspec

from kersey_control.reach import Answering, Means, OneWay


class Verb(StrEnum):
    """What the daemon can be asked for; one line on the socket."""

    STATUS = "status"
    PEERS = "peers"
    FLUSH = "flush"


class Question(msgspec.Struct, frozen=True):
    """One request. `verb` is a text here, so that an unknown one can be named in the answer."""

    verb: str


class Answer(msgspec.Struct, frozen=True):
    """The result of a request; `error` says why there is none."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""


class ToldDatapath(msgspec.Struct, frozen=True):
    """Who forwards (`bpf` or `netlink`), and why."""

    mode: str = ""
    reason: str = ""


class ToldXdp(msgspec.Struct, frozen=True):
    """Where the uplink's XDP program runs (`native`, `generic`, or `off`), and why."""

    mode: str = ""
    reason: str = ""


class ToldFastPath(msgspec.Struct, frozen=True):
    """Packets by program and verdict, and what does not work. `xdp` None: not asked for."""

    verdicts: dict[str, dict[str, int]] = {}
    troubles: dict[str, str] = {}
    xdp: ToldXdp | None = None


class ToldUplink(msgspec.Struct, frozen=True):
    """The uplink and why it was chosen; `mtu` in bytes."""

    interface: str = ""
    address: str = ""
    public_ip: str = ""
    mtu: int = 0
    reason: str = ""


class ToldLease(msgspec.Struct, frozen=True):
    """Our lease's end in seconds since the epoch; None for a reservation, or before the first."""

    expires_at: float | None = None
    trouble: str = ""


class ToldStore(msgspec.Struct, frozen=True):
    """Whether the lease store answers, and if not, what it said last."""

    connected: bool = False
    trouble: str = ""


class ToldSilent(msgspec.Struct, frozen=True):
    """A peer that is programmed and does not answer. `one_way`: the direction that is cut."""

    subnet: str
    node: str
    via: str
    one_way: OneWay | None = None


class ToldPeers(msgspec.Struct, frozen=True):
    """How many peers there are; `refused` has a reason for each that is not programmed."""

    desired: int = 0
    programmed: int = 0
    refused: dict[str, str] = {}
    silent: tuple[ToldSilent, ...] = ()


class ToldOptions(msgspec.Struct, frozen=True):
    """What the daemon was told at its start, as far as others must know it. No secrets."""

    subnet_file: str = ""
    pins: str = ""
    datapath: str = ""
    admission: str = ""
    spoof_check: str = ""
    max_flows: int = 0
    renew_margin: float = 0.0
    store: str = "etcd"
    etcd_endpoints: tuple[str, ...] = ()
    etcd_prefix: str = ""
    probe_interval: int = 0
    probe_rate: int = 0
    probe_port: int = 0


class ToldStatus(msgspec.Struct, frozen=True):
    """The answer to `status`. `silent_seconds` is how long the control loop has owed a turn."""

    version: str
    pid: int = 0
    ready: bool = False
    silent_seconds: float = 0.0
    datapath: ToldDatapath = ToldDatapath()
    fast_path: ToldFastPath | None = None
    backend: str = ""
    device: str = ""
    tunnel: str = ""
    network: str | None = None
    subnet: str | None = None
    mtu: int = 0
    uplink: ToldUplink | None = None
    lease: ToldLease = ToldLease()
    store: ToldStore = ToldStore()
    peers: ToldPeers = ToldPeers()
    probes_trouble: str = ""
    skipped_records: int = 0
    options: ToldOptions = ToldOptions()


class ToldReach(msgspec.Struct, frozen=True):
    """Whether a peer answers probes, as `reach` has it. Losses are 0 to 1."""

    answering: Answering = Answering.UNKNOWN
    round_trip_seconds: float | None = None
    loss: float | None = None
    loss_out: float | None = None
    loss_in: float | None = None
    one_way: OneWay | None = None
    answered_seconds_ago: float | None = None
    asked: str = ""
    means: Means = Means.PROBE


class ToldPeer(msgspec.Struct, frozen=True):
    """One peer of the answer to `peers`. `condition` is programmed, failing or refused."""

    subnet: str
    node: str
    via: str
    condition: str
    reason: str = ""
    mac: str | None = None
    reach: ToldReach | None = None


def encode(value: object) -> bytes:
    """Return a value of this module as JSON."""
    return msgspec.json.encode(value)


def builtins(value: object) -> Any:
    """Return a value of this module as dicts, lists and scalars."""
    return msgspec.to_builtins(value)
