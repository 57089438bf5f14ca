"""What the operator asked for on the command line and in the environment, checked and typed.

The classes below are the table of flags: one field, one flag. Flannel's flags keep their names,
defaults and FLANNELD_* variables, so that a flannel command line starts kerseyd unchanged; own
flags are added and never overload one of flannel's. Syntax and environment: `kersey_control.flags`.
Only `read_options` prints and exits; nothing here opens a file or a socket.
"""
# flag() makes a dataclasses.field(), which is evaluated once on purpose

import posixpath
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from kersey_control import __version__
from kersey_control.errors import InvalidInputError
from kersey_control.flags import (
    BOOLEAN,
    HelpRequestedError,
    Kind,
    Parsed,
    UsageError,
    flag,
    flags_of,
    format_help,
    integer,
    parse_flags,
    repeatable_flag,
)

_T = TypeVar("_T")
_E = TypeVar("_E", bound=StrEnum)
_MAX_INT = 2**31 - 1


class Datapath(StrEnum):
    """Who forwards: BPF where it can, BPF or nothing, or the kernel's own devices alone."""

    AUTO = "auto"
    BPF = "bpf"
    NETLINK = "netlink"


class Admission(StrEnum):
    """When a flow may take the fast path."""

    STRICT = "strict"
    DIRECT = "direct"
    OFF = "off"


class SpoofCheck(StrEnum):
    """What becomes of a tunnel packet whose sender is not who it should be."""

    DROP = "drop"
    COUNT = "count"
    OFF = "off"


class Xdp(StrEnum):
    """Where the uplink's XDP program runs, if there is to be one."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"
    OFF = "off"


class CniMode(StrEnum):
    """How pods are connected to their node: ports of one bridge, or a route each."""

    BRIDGE = "bridge"
    ROUTED = "routed"


class LogFormat(StrEnum):
    """How a log record is written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe records that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _checked(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return parse


def _optional(parse: Callable[[str], _T]) -> Callable[[str], _T | None]:
    return lambda text: parse(text) if text else None


def _choice(kind: type[_E]) -> Kind[_E]:
    return Kind(kind, f"one of {', '.join(kind)}", "|".join(kind))


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError
    return Path(text)


def _regex(text: str) -> re.Pattern[str]:
    """Compile a pattern; Go's syntax that Python reads otherwise (`[[:alpha:]]`) is refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return re.compile(text)
    except (re.error, FutureWarning, DeprecationWarning, RecursionError, OverflowError):
        raise ValueError from None


def _endpoints(text: str) -> tuple[str, ...]:
    endpoints = tuple(part.strip() for part in text.split(",") if part.strip())
    for endpoint in endpoints:
        url = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0:
            raise ValueError
    if not endpoints:
        raise ValueError
    return endpoints


def _prefix(text: str) -> str:
    """Return the prefix such that `<prefix>/config` is what Go's path.Join gives flannel."""
    path = posixpath.normpath(text).rstrip("/")
    if path == ".":
        raise ValueError
    return f"/{path.lstrip('/')}" if path.startswith("/") else path


_TEXT = Kind(str, "a text", "TEXT")
_NAME = Kind(str, "a name or an address", "NAME|IP")
_URL = Kind(str, "a URL", "URL")
PATH = Kind(_path, "a path", "PATH")
OPTIONAL_PATH = Kind(_optional(_path), "a path", "PATH")
_IPV4 = Kind(_optional(IPv4Address), "an IPv4 address", "IP")
_IPV6 = Kind(_optional(IPv6Address), "an IPv6 address", "IP")
_BIND = Kind(str, "an address to listen on", "IP")
_PORT = integer(0, 65535, placeholder="PORT")
_SECONDS = integer(1, _MAX_INT, placeholder="SECONDS")
_REGEX = Kind(_regex, "a regular expression (Python's syntax)", "REGEX")
_ENDPOINTS = Kind(_endpoints, "a comma-separated list of [http[s]://]host[:port]", "URL,...")
_PREFIX = Kind(_prefix, "a key prefix such as /coreos.com/network", "KEY")
_NODE_ID = Kind(
    _checked(r"[A-Za-z0-9._-]{0,64}"), "up to 64 letters, digits, dots, dashes or underscores", "ID"
)
_CONFLIST = Kind(
    _checked(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.conflist"), "a file name in .conflist", "NAME"
)
_CNI_NETWORK = Kind(
    _checked(r"[A-Za-z0-9][A-Za-z0-9_.-]*"),  # the specification's own rule
    "letters, digits, dots, dashes or underscores, the first a letter or digit",
    "NAME",
)
_LOG_LEVEL = Kind(_optional(LogLevel), f"one of {', '.join(LogLevel)}", "|".join(LogLevel))

_STORE = "Lease store"
_UPLINK = "Uplink"
_LEASE = "Lease and subnet file"
_CNI = "CNI configuration (off unless --cni-conf-dir is given)"
_DATAPATH = "Datapath"
_RULES = "Masquerade and forward rules"
_OBSERVE = "Health, metrics and probes"
_LOGS = "Logging"
_KUBE = "Lease store in the Kubernetes API (unused without --kube-subnet-mgr)"
_GENERAL = "General"


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdFlags:
    """How to reach etcd: what every command that reads leases needs."""

    etcd_endpoints: tuple[str, ...] = flag(
        _ENDPOINTS,
        default="http://127.0.0.1:4001,http://127.0.0.1:2379",
        group=_STORE,
        help="etcd endpoints, comma separated; each is tried in turn",
    )
    etcd_prefix: str = flag(
        _PREFIX, default="/coreos.com/network", group=_STORE, help="key prefix of this network"
    )
    etcd_keyfile: Path | None = flag(
        OPTIONAL_PATH, default="", group=_STORE, help="private key of the client certificate"
    )
    etcd_certfile: Path | None = flag(
        OPTIONAL_PATH, default="", group=_STORE, help="client certificate"
    )
    etcd_cafile: Path | None = flag(
        OPTIONAL_PATH,
        default="",
        group=_STORE,
        help="certificate authority of the servers; enough by itself for TLS",
    )
    etcd_username: str = flag(_TEXT, default="", group=_STORE, help="etcd user")
    etcd_password: str = flag(
        _TEXT,
        default="",
        group=_STORE,
        help="password of the etcd user; better given by environment",
        secret=True,
    )


@dataclass(frozen=True, kw_only=True)
class KubeFlags:
    """How to reach the Kubernetes API, and whether leases are there at all."""

    kube_subnet_mgr: bool = flag(
        BOOLEAN,
        default="false",
        group=_KUBE,
        help="the leases are in the Kubernetes API; the etcd flags are unused",
    )
    kube_api_url: str = flag(
        _URL,
        default="",
        group=_KUBE,
        help="API server, in place of the kubeconfig's; in a pod neither is needed",
    )
    kubeconfig_file: Path | None = flag(
        OPTIONAL_PATH, default="", group=_KUBE, help="kubeconfig file: server and credentials"
    )
    kube_annotation_prefix: str = flag(
        _TEXT,
        default="flannel.alpha.coreos.com",
        group=_KUBE,
        help="prefix of the node annotations",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(KubeFlags, EtcdFlags):
    """Everything that kerseyd can be told. `Options()` holds the defaults."""

    public_ip: IPv4Address | None = flag(
        _IPV4, default="", group=_UPLINK, help="address that other nodes reach this one by"
    )
    public_ipv6: IPv6Address | None = flag(
        _IPV6, default="", group=_UPLINK, help="the same for IPv6; unused as yet"
    )
    iface: tuple[str, ...] = repeatable_flag(
        _NAME, group=_UPLINK, help="interface, by name or address; the first usable one is taken"
    )
    iface_regex: tuple[re.Pattern[str], ...] = repeatable_flag(
        _REGEX, group=_UPLINK, help="if none yet: interface whose address, or name, matches"
    )
    iface_can_reach: IPv4Address | None = flag(
        _IPV4, default="", group=_UPLINK, help="if none yet: interface of the route to this address"
    )

    subnet_file: Path = flag(
        PATH,
        default="/run/flannel/subnet.env",
        group=_LEASE,
        help="where the CNI plugin reads this node's subnet and MTU",
    )
    subnet_lease_renew_margin: int = flag(
        integer(1, 1439, placeholder="MINUTES"),
        default="60",
        group=_LEASE,
        help="how long before its end a lease is renewed, in minutes",
    )
    node_id: str = flag(
        _NODE_ID,
        default="",
        group=_LEASE,
        help="identity of this node in its lease; derived from /etc/machine-id if not given",
        own=True,
    )
    state_dir: Path = flag(
        PATH,
        default="/run/kersey",
        group=_LEASE,
        help="where the daemon keeps what it must find again",
        own=True,
    )

    cni_conf_dir: Path | None = flag(
        OPTIONAL_PATH,
        default="",
        group=_CNI,
        help="where to write the container runtime's network configuration, mostly /etc/cni/net.d",
        own=True,
    )
    cni_conf_name: str = flag(
        _CONFLIST,
        default="10-kersey.conflist",
        group=_CNI,
        help="name of the file; runtimes take the first one of the folder",
        own=True,
    )
    cni_mode: CniMode = flag(
        _choice(CniMode),
        default="bridge",
        group=_CNI,
        help="pods as ports of the bridge cni0, or routed one by one (plugin ptp)",
        own=True,
    )
    cni_network: str = flag(
        _CNI_NETWORK,
        default="cbr0",
        group=_CNI,
        help="name of the network; host-local keeps taken addresses by it, so it must be what it"
        " was when living pods were added (cbr0 is flannel's)",
        own=True,
    )
    cni_bandwidth: bool = flag(
        BOOLEAN,
        default="false",
        group=_CNI,
        help="have the plugin bandwidth limit pods that ask for it",
        own=True,
    )

    datapath: Datapath = flag(
        _choice(Datapath),
        default="auto",
        group=_DATAPATH,
        help="bpf refuses to start where BPF cannot run; netlink uses the kernel's devices only",
        own=True,
    )
    admission: Admission = flag(
        _choice(Admission),
        default="strict",
        group=_DATAPATH,
        help="when a flow may leave the kernel's own path; direct is for clusters without"
        " network policies",
        own=True,
    )
    spoof_check: SpoofCheck = flag(
        _choice(SpoofCheck),
        default="drop",
        group=_DATAPATH,
        help="what to do with tunnel packets from senders that do not own their source address",
        own=True,
    )
    xdp: Xdp = flag(
        _choice(Xdp),
        default="off",
        group=_DATAPATH,
        help="check senders on the uplink before the kernel makes packets of frames; auto: where"
        " the NIC's driver can and it does not slow other traffic down",
        own=True,
    )
    xdp_redirect: bool = flag(
        BOOLEAN,
        default="false",
        group=_DATAPATH,
        help="with native XDP, hand frames of direct peers straight to pods that take them; not"
        " where senders leave checksums to the NIC that never leave the machine",
        own=True,
    )
    max_flows: int = flag(
        integer(1024, 1 << 24, placeholder="N"),
        default="65536",
        group=_DATAPATH,
        help="flows that can be on the fast path at a time; the map is allocated whole",
        own=True,
    )
    bpf_dir: Path = flag(
        PATH,
        default="/sys/fs/bpf/kersey",
        group=_DATAPATH,
        help="where this node's BPF programs and maps are pinned",
        own=True,
    )
    cache_dir: Path | None = flag(
        OPTIONAL_PATH,
        default="/var/cache/kersey",
        group=_DATAPATH,
        help="where compiled programs are kept, so that a node that boots need not compile them"
        " again; --cache-dir= is nowhere",
        own=True,
    )
    audit_interval: int = flag(
        _SECONDS,
        default="60",
        group=_DATAPATH,
        help="how often the kernel's state is compared with the leases without being told to",
        own=True,
    )
    ip_blackhole_route: bool = flag(
        BOOLEAN,
        default="false",
        group=_DATAPATH,
        help="keep a blackhole route for this node's subnet",
    )

    ip_masq: bool = flag(
        BOOLEAN,
        default="false",
        group=_RULES,
        help="masquerade traffic that leaves the pod network",
    )
    ip_masq_fully_random_disable: bool = flag(
        BOOLEAN, default="false", group=_RULES, help="masquerade without random source ports"
    )
    iptables_resync: int = flag(
        _SECONDS,
        default="5",
        group=_RULES,
        help="how often rules and the blackhole route are checked, in seconds",
    )
    iptables_forward_rules: bool = flag(
        BOOLEAN,
        default="true",
        group=_RULES,
        help="accept forwarded traffic from and to the pod network",
    )

    healthz_ip: str = flag(
        _BIND,
        default="0.0.0.0",  # noqa: S104  # flannel's default
        group=_OBSERVE,
        help="address of /healthz and /readyz",
    )
    healthz_port: int = flag(
        _PORT, default="0", group=_OBSERVE, help="port of /healthz and /readyz; 0 is off"
    )
    metrics_ip: str = flag(
        _BIND,
        default="0.0.0.0",  # noqa: S104  # scraped from other machines, like /healthz
        group=_OBSERVE,
        help="address of /metrics",
        own=True,
    )
    metrics_port: int = flag(
        _PORT, default="0", group=_OBSERVE, help="port of /metrics; 0 is off", own=True
    )
    metrics_peers: int = flag(
        integer(0, 1 << 16),
        default="100",
        group=_OBSERVE,
        help="peers with the most bytes that have metrics of their own; 0 is none, since a fleet"
        " has peers by the square of its nodes",
        own=True,
    )
    metrics_certfile: Path | None = flag(
        OPTIONAL_PATH,
        default="",
        group=_OBSERVE,
        help="certificate, with which /metrics is served by TLS; read again when it changes",
        own=True,
    )
    metrics_keyfile: Path | None = flag(
        OPTIONAL_PATH,
        default="",
        group=_OBSERVE,
        help="private key of that certificate",
        own=True,
    )
    metrics_cafile: Path | None = flag(
        OPTIONAL_PATH,
        default="",
        group=_OBSERVE,
        help="certificate authority that must have signed a client's certificate",
        own=True,
    )
    status_page: bool = flag(
        BOOLEAN,
        default="false",
        group=_OBSERVE,
        help="serve a page for browsers at / of the metrics port, to whoever may read /metrics",
        own=True,
    )

    probe_interval: int = flag(
        integer(0, 3600, placeholder="SECONDS"),
        default="5",
        group=_OBSERVE,
        help="how often each peer is asked whether it answers, more seldom where --probe-rate"
        " does not suffice; 0 is off",
        own=True,
    )
    probe_rate: int = flag(
        integer(1, 10000, placeholder="N"),
        default="20",
        group=_OBSERVE,
        help="questions a second to all peers together",
        own=True,
    )
    probe_port: int = flag(
        integer(1, 65535, placeholder="PORT"),
        default="8475",
        group=_OBSERVE,
        help="UDP port of these questions and answers, the same on all nodes",
        own=True,
    )

    log_format: LogFormat = flag(
        _choice(LogFormat),
        default="text",
        group=_LOGS,
        help="lines to read, or one JSON object a line",
        own=True,
    )
    log_level: LogLevel | None = flag(
        _LOG_LEVEL,
        default="",
        group=_LOGS,
        help="least severe records to write (default info, or debug with -v 1 and above)",
        own=True,
    )
    v: int = flag(
        integer(-_MAX_INT, _MAX_INT),
        default="0",
        group=_LOGS,
        help="1 and above: log debug records, unless --log-level says otherwise",
    )
    vmodule: str = flag(_TEXT, default="", group=_LOGS, help="read and ignored")
    log_backtrace_at: str = flag(
        _TEXT, default="", group=_LOGS, help="read and ignored", name="log_backtrace_at"
    )

    kube_subnet_mgr: bool = flag(
        BOOLEAN,
        default="false",
        group=_KUBE,
        help="leases are the nodes' podCIDRs and annotations; NODE_NAME, or POD_NAME and"
        " POD_NAMESPACE, must be set; the etcd flags are unused",
    )
    net_config_path: Path = flag(
        PATH,
        default="/etc/kube-flannel/net-conf.json",
        group=_KUBE,
        help="network config file, in place of etcd's key",
    )
    set_node_network_unavailable: bool = flag(
        BOOLEAN, default="true", group=_KUBE, help="clear the node's NetworkUnavailable condition"
    )

    version: bool = flag(
        BOOLEAN, default="false", group=_GENERAL, help="print the version and exit"
    )

    ignored_arguments: tuple[str, ...] = ()
    """What stood behind the last flag. Flannel ignores it without a word; the daemon warns."""

    @property
    def effective_log_level(self) -> LogLevel:
        """Return --log-level, or what -v asks for when it was not given."""
        return self.log_level or (LogLevel.DEBUG if self.v >= 1 else LogLevel.INFO)


def parse_options(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Return the daemon's options from `argv` (without the program's name) and `environ`.

    Raises UsageError, InvalidInputError naming the flag or the variable, or HelpRequestedError.
    """
    parsed = parse_flags(Options, argv, environ)
    options = replace(parsed.values, ignored_arguments=parsed.rest)
    if not options.version:
        _check_etcd(options)
        _check_daemon(options)
        _check_metrics(options)
    return options


def parse_etcd_flags(argv: Sequence[str], environ: Mapping[str, str]) -> Parsed[EtcdFlags]:
    """Return the etcd options alone, and the arguments behind them; errors as `parse_options`."""
    parsed = parse_flags(EtcdFlags, argv, environ)
    _check_etcd(parsed.values)
    return parsed


def read_options(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Return the daemon's options; print and exit on --help, --version (0) and on errors (2)."""
    try:
        options = parse_options(argv, environ)
    except HelpRequestedError:
        print(help_text())
        sys.exit(0)
    except (UsageError, InvalidInputError) as error:
        print(f"kerseyd: {error}\nkerseyd: --help lists all flags", file=sys.stderr)
        sys.exit(2)
    if options.version:
        print(f"kersey {__version__}")
        sys.exit(0)
    return options


def help_text() -> str:
    """Return what `kerseyd --help` prints."""
    return (
        "Usage: kerseyd [flags]\n\n"
        "Connects this node's pods with those of all other nodes of a flannel-compatible network.\n"
        "Flags marked + are Kersey's own, all others are flannel's. Write --flag=value or\n"
        "--flag value; a flag without a value is a switch, turned off by --flag=false. Each flag\n"
        "can be given as an environment variable: KERSEY_HEALTHZ_PORT, or, for flannel's flags,\n"
        "FLANNELD_HEALTHZ_PORT. The command line wins.\n\n" + format_help(flags_of(Options))
    )


def _check_etcd(options: EtcdFlags) -> None:
    certificate = ("--etcd-certfile", options.etcd_certfile)
    key = ("--etcd-keyfile", options.etcd_keyfile)
    _check_beside(certificate, key, "a client certificate is of no use without its key")
    _check_beside(key, certificate, "a client certificate is of no use without its key")
    if options.etcd_password and not options.etcd_username:
        raise UsageError(
            "--etcd-password: expected --etcd-username beside it, whose password it is"
        )


def _check_daemon(options: Options) -> None:
    if options.healthz_port and options.healthz_port == options.metrics_port:
        same = options.healthz_ip == options.metrics_ip
        if same or any(_is_wildcard(ip) for ip in (options.healthz_ip, options.metrics_ip)):
            raise UsageError(
                f"--metrics-port: got {options.metrics_port}, expected another port than"
                " --healthz-port, or another address"
            )


def _check_metrics(options: Options) -> None:
    certificate = ("--metrics-certfile", options.metrics_certfile)
    key = ("--metrics-keyfile", options.metrics_keyfile)
    clients = ("--metrics-cafile", options.metrics_cafile)
    _check_beside(certificate, key, "a certificate is of no use without its key")
    _check_beside(key, certificate, "a certificate is of no use without its key")
    _check_beside(clients, certificate, "clients show a certificate only to a server that has one")
    if options.status_page and not options.metrics_port:
        raise UsageError(
            "--status-page: expected --metrics-port beside it, where the page is served"
        )


def _check_beside(
    given: tuple[str, Path | None], needed: tuple[str, Path | None], since: str
) -> None:
    """Refuse one path without the other; both are given with the names of their flags."""
    if given[1] is not None and needed[1] is None:
        raise UsageError(
            f"{given[0]}: got {str(given[1])!r}, expected {needed[0]} beside it, since {since}"
        )


def _is_wildcard(text: str) -> bool:
    try:
        return not text or ip_address(text).is_unspecified
    except ValueError:
        return False
