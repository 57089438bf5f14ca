"""The network's configuration (`net-conf.json`): parsing, defaults and rules. Pure.

Promises: any bytes at all give a valid NetworkConfig or an InvalidInputError that names the field,
the value and the rule. Reads what flannel reads (pkg/subnet/config.go; Go's encoding/json: names
match in any case, the last of several wins, unknown names are ignored, null leaves the default),
and refuses some texts that flannel accepts and fails on later. Never reads a file or a store.
"""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, NoReturn, TypeAlias, TypeVar

from kersey_control.addresses import Vni
from kersey_control.errors import InvalidInputError

_KERNEL_VXLAN_PORT = 8472
_UDP_PORT = 8285
_MAX_VNI = 2**24 - 1
_MAX_PORT = 2**16 - 1
_MAX_MTU = 2**16 - 1
_MIN_UNDERLAY_MTU = 576 + 50  # what every IPv4 host must accept (RFC 791), and what VXLAN adds
_FLANNEL_ONLY = frozenset({"ipsec", "tencent-vpc", "wireguard"})
_CIDR = re.compile(r"[0-9a-fA-F.:]+/[0-9]{1,3}")  # no netmasks, no zones: as Go's ParseCIDR

_T = TypeVar("_T")
_Address = TypeVar("_Address", IPv4Address, IPv6Address)
_Network = TypeVar("_Network", IPv4Network, IPv6Network)


@dataclass(frozen=True, slots=True)
class VxlanConfig:
    """The vxlan backend's settings; `mtu` is the underlay's and None means the uplink's."""

    vni: Vni
    port: int
    mtu: int | None
    gbp: bool
    learning: bool
    direct_routing: bool


@dataclass(frozen=True, slots=True)
class UdpConfig:
    """The udp backend's settings: the UDP port of every node."""

    port: int


@dataclass(frozen=True, slots=True)
class IpipConfig:
    """The ipip backend's settings."""

    direct_routing: bool


@dataclass(frozen=True, slots=True)
class HostGwConfig:
    """The host-gw backend has no settings."""


@dataclass(frozen=True, slots=True)
class AllocConfig:
    """The alloc backend has no settings."""


@dataclass(frozen=True, slots=True)
class ExtensionConfig:
    """The extension backend's commands, each a program and its arguments; empty if not given."""

    pre_startup: tuple[str, ...]
    post_startup: tuple[str, ...]
    subnet_add: tuple[str, ...]
    subnet_remove: tuple[str, ...]


BackendConfig: TypeAlias = (
    VxlanConfig | UdpConfig | IpipConfig | HostGwConfig | AllocConfig | ExtensionConfig
)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """One valid network: the pod network, how it is cut into subnets, and the backend.

    The v6 fields are None unless EnableIPv6 is true.
    """

    network: IPv4Network
    subnet_len: int
    subnet_min: IPv4Address
    subnet_max: IPv4Address
    backend: BackendConfig
    enable_nftables: bool = False
    network_v6: IPv6Network | None = None
    subnet_len_v6: int | None = None
    subnet_min_v6: IPv6Address | None = None
    subnet_max_v6: IPv6Address | None = None

    def contains_lease_subnet(self, subnet: IPv4Network) -> bool:
        """Return whether a node may lease `subnet`: right length, from SubnetMin to SubnetMax."""
        return (
            subnet.prefixlen == self.subnet_len
            and self.subnet_min <= subnet.network_address <= self.subnet_max
        )


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """The fields in which a new config differs, by what it takes to follow it."""

    live: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()


def parse_network_config(text: bytes, given: IPv4Network | None = None) -> NetworkConfig:
    """Return the network that `text` describes; InvalidInputError names field, value and rule.

    `given` is this node's subnet where somebody else cuts the network. Then all are taken to be as
    long as it is, and what the text says about IPv4 subnets is not looked at, as in flannel.
    """
    fields = _Fields(_decode(text), "")
    if not fields.flag("EnableIPv4", default=True):
        fields.refuse("EnableIPv4", "true (networks without IPv4 are not supported yet)")
    network = fields.network("Network", IPv4Network)
    cut = _cut(network, _CutFields(fields, ""), _V4) if given is None else _cut_as(given, network)
    config = NetworkConfig(
        network=network,
        subnet_len=cut.length,
        subnet_min=cut.first,
        subnet_max=cut.last,
        backend=_backend(fields),
        enable_nftables=fields.flag("EnableNFTables", default=False),
    )
    return _with_v6(config, fields)


def compare(old: NetworkConfig, new: NetworkConfig) -> ConfigChange:
    """Return which fields differ, and which of them a running node can follow.

    The range of subnets can be followed as long as the network is cut as before: it only decides
    what is leased from now on.
    """
    changed = [name for name, value in _FIELDS.items() if value(old) != value(new)]
    live = _LIVE if "Network" in changed or "SubnetLen" in changed else _LIVE | _LIVE_RANGE
    if "Backend.Type" in changed:
        live -= _LIVE
    return ConfigChange(
        live=tuple(name for name in changed if name in live),
        restart=tuple(name for name in changed if name not in live),
    )


def apply_live(old: NetworkConfig, new: NetworkConfig) -> NetworkConfig:
    """Return `old` with what `compare` calls live taken from `new`."""
    live = compare(old, new).live
    return replace(
        old,
        subnet_min=new.subnet_min if "SubnetMin" in live else old.subnet_min,
        subnet_max=new.subnet_max if "SubnetMax" in live else old.subnet_max,
        backend=_with_live(old.backend, new.backend),
    )


def _with_live(old: BackendConfig, new: BackendConfig) -> BackendConfig:
    if isinstance(old, VxlanConfig) and isinstance(new, VxlanConfig):
        return replace(old, mtu=new.mtu)
    return old


def _setting(name: str) -> Callable[[NetworkConfig], object]:
    """Return a reader of one setting of the backend, None where the backend has no such setting."""
    return lambda config: getattr(config.backend, name, None)


_FIELDS: Mapping[str, Callable[[NetworkConfig], object]] = {
    "Network": lambda config: config.network,
    "SubnetLen": lambda config: config.subnet_len,
    "SubnetMin": lambda config: config.subnet_min,
    "SubnetMax": lambda config: config.subnet_max,
    "EnableNFTables": lambda config: config.enable_nftables,
    "EnableIPv6": lambda config: config.network_v6 is not None,
    "IPv6Network": lambda config: config.network_v6,
    "IPv6SubnetLen": lambda config: config.subnet_len_v6,
    "IPv6SubnetMin": lambda config: config.subnet_min_v6,
    "IPv6SubnetMax": lambda config: config.subnet_max_v6,
    "Backend.Type": lambda config: type(config.backend),
    "Backend.VNI": _setting("vni"),
    "Backend.Port": _setting("port"),
    "Backend.MTU": _setting("mtu"),
    "Backend.GBP": _setting("gbp"),
    "Backend.Learning": _setting("learning"),
    "Backend.DirectRouting": _setting("direct_routing"),
    "Backend.PreStartupCommand": _setting("pre_startup"),
    "Backend.PostStartupCommand": _setting("post_startup"),
    "Backend.SubnetAddCommand": _setting("subnet_add"),
    "Backend.SubnetRemoveCommand": _setting("subnet_remove"),
}
_LIVE = frozenset({"Backend.MTU"})
_LIVE_RANGE = frozenset({"SubnetMin", "SubnetMax"})


class _Object(dict[str, object]):
    """A JSON object: folded names, the last of equal ones, without those that were only null."""


class _Fields:
    """Read one JSON object's fields by name, each with its type; `path` is what errors call it."""

    def __init__(self, values: object, path: str) -> None:
        if not isinstance(values, _Object):
            _refuse(path or "network config", values, "a JSON object")
        self._values = values
        self._prefix = f"{path}." if path else ""

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise InvalidInputError for the field as it was given."""
        _refuse(self._prefix + name, self._get(name), expected)

    def nested(self, name: str) -> "_Fields":
        """Return a nested object; an absent one is empty."""
        values = self._get(name)
        return _Fields(_Object() if values is None else values, self._prefix + name)

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a boolean."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """Return a string, None if absent."""
        value = self._get(name)
        if value is not None and not isinstance(value, str):
            self.refuse(name, "a string")
        return value

    def words(self, name: str) -> tuple[str, ...]:
        """Return a list of strings, or the words of one string; empty if absent."""
        value = self._get(name)
        if isinstance(value, str):
            try:
                return tuple(shlex.split(value))
            except ValueError as error:
                self.refuse(name, f"words with balanced quotes ({error})")
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            self.refuse(name, "a string or a list of strings")
        return tuple(value)

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        """Return an integer from `low` to `high`."""
        value = self._get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(name, f"an integer from {low} to {high}")
        return value

    def address(self, name: str, kind: type[_Address]) -> _Address | None:
        """Return an address; absent and all-zero both mean None."""
        text = self.text(name)
        if text is None:
            return None
        address = _attempt(kind, text)
        if address is None or "%" in text:
            self.refuse(name, f"an {kind.__name__[:4]} address")
        return address if int(address) else None

    def network(self, name: str, kind: type[_Network]) -> _Network:
        """Return a network, host bits masked off; absent and `/0` of all zeroes are refused."""
        network = self.optional_network(name, kind)
        if network is None:
            self.refuse(
                name, f"an {kind.__name__[:4]} network such as {_EXAMPLE[kind]}; it is required"
            )
        return network

    def optional_network(self, name: str, kind: type[_Network]) -> _Network | None:
        """Return a network, host bits masked off; None if absent or all-zero with length 0."""
        text = self.text(name)
        if text is None:
            return None
        network = _attempt(lambda cidr: kind(cidr, strict=False), text)
        if network is None or not _CIDR.fullmatch(text):
            self.refuse(name, f"an {kind.__name__[:4]} network such as {_EXAMPLE[kind]}")
        return network if network.prefixlen or int(network.network_address) else None

    def _get(self, name: str) -> object:
        return self._values.get(name.casefold())


_EXAMPLE: Mapping[type, str] = {IPv4Network: "10.244.0.0/16", IPv6Network: "fd00:10:244::/56"}


@dataclass(frozen=True, slots=True)
class _Family(Generic[_Address]):
    """The figures of 1.3 of flannel's rules that differ between the address families."""

    address: type[_Address]
    bits: int
    usual_len: int

    @property
    def longest(self) -> int:
        """The longest subnet: two addresses for pods besides the node's own and the base."""
        return self.bits - 2


_V4 = _Family(IPv4Address, bits=32, usual_len=24)
_V6 = _Family(IPv6Address, bits=128, usual_len=64)


@dataclass(frozen=True, slots=True)
class _CutFields:
    """Where the fields of one family are, and what they are called there."""

    fields: _Fields
    prefix: str

    @property
    def length(self) -> str:
        return f"{self.prefix}SubnetLen"

    @property
    def first(self) -> str:
        return f"{self.prefix}SubnetMin"

    @property
    def last(self) -> str:
        return f"{self.prefix}SubnetMax"


@dataclass(frozen=True, slots=True)
class _Cut(Generic[_Address]):
    """How a network is cut: the subnets' length, the first and the last base address."""

    length: int
    first: _Address
    last: _Address


def _cut(
    network: IPv4Network | IPv6Network, names: _CutFields, family: _Family[_Address]
) -> _Cut[_Address]:
    """Return how `network` is cut; its first subnet is left out unless it is asked for."""
    length = _subnet_len(network, names, family)
    size = 1 << (family.bits - length)
    first = names.fields.address(names.first, family.address)
    last = names.fields.address(names.last, family.address)
    cut = _Cut(
        length,
        first or family.address(int(network.network_address) + size),
        last or family.address(int(network.broadcast_address) + 1 - size),
    )
    for name, given in ((names.first, first), (names.last, last)):
        if given is None:
            continue
        if given not in network:
            names.fields.refuse(name, f"an address inside {network}")
        if int(given) % size:
            names.fields.refuse(name, f"the base address of a /{length}")
    if cut.first > cut.last:
        name = names.first if first is not None else names.last
        names.fields.refuse(
            name, f"{names.first} <= {names.last}, but they are {cut.first} and {cut.last}"
        )
    return cut


def _cut_as(given: IPv4Network, network: IPv4Network) -> _Cut[IPv4Address]:
    """Return the cut that has this subnet in it, and nothing to choose."""
    if not given.subnet_of(network):
        _refuse("podCIDR", str(given), f"a subnet of Network {network}")
    return _Cut(given.prefixlen, given.network_address, given.network_address)


def _subnet_len(
    network: IPv4Network | IPv6Network, names: _CutFields, family: _Family[_Address]
) -> int:
    """Return the subnets' prefix length; a network holds at least four of them."""
    shortest = network.prefixlen + 2
    if shortest > family.longest:
        names.fields.refuse(
            f"{names.prefix}Network", f"a prefix length of at most {family.longest - 2}"
        )
    given = names.fields.integer(names.length, 0, low=0, high=family.bits)
    if not given:
        return max(family.usual_len, shortest)
    if not shortest <= given <= family.longest:
        names.fields.refuse(
            names.length,
            f"from {shortest} to {family.longest}, so that {network} holds at least"
            " four subnets and a subnet holds pods",
        )
    return given


def _with_v6(config: NetworkConfig, fields: _Fields) -> NetworkConfig:
    """Return `config` with the v6 fields if EnableIPv6; a malformed network is refused anyway."""
    fields.optional_network("IPv6Network", IPv6Network)
    if not fields.flag("EnableIPv6", default=False):
        return config
    network = fields.network("IPv6Network", IPv6Network)
    cut = _cut(network, _CutFields(fields, "IPv6"), _V6)
    return replace(
        config,
        network_v6=network,
        subnet_len_v6=cut.length,
        subnet_min_v6=cut.first,
        subnet_max_v6=cut.last,
    )


def _backend(top: _Fields) -> BackendConfig:
    """Return the backend's settings; vxlan when none is named, as flannel's documentation says."""
    fields = top.nested("Backend")
    kind = (fields.text("Type") or "vxlan").lower()
    if kind in _FLANNEL_ONLY:
        fields.refuse("Type", f"one of {_offered()}; flannel alone has this one")
    if kind not in _BACKENDS:
        fields.refuse("Type", f"one of {_offered()}; no backend has this name")
    return _BACKENDS[kind](fields)


def _vxlan(fields: _Fields) -> VxlanConfig:
    return VxlanConfig(
        vni=Vni(fields.integer("VNI", 1, low=1, high=_MAX_VNI)),
        port=fields.integer("Port", 0, low=0, high=_MAX_PORT) or _KERNEL_VXLAN_PORT,
        mtu=_underlay_mtu(fields),
        gbp=fields.flag("GBP", default=False),
        learning=fields.flag("Learning", default=False),
        direct_routing=fields.flag("DirectRouting", default=False),
    )


def _udp(fields: _Fields) -> UdpConfig:
    return UdpConfig(port=fields.integer("Port", _UDP_PORT, low=1, high=_MAX_PORT))


def _ipip(fields: _Fields) -> IpipConfig:
    return IpipConfig(direct_routing=fields.flag("DirectRouting", default=False))


def _extension(fields: _Fields) -> ExtensionConfig:
    return ExtensionConfig(
        pre_startup=_command(fields, "PreStartupCommand"),
        post_startup=_command(fields, "PostStartupCommand"),
        subnet_add=_command(fields, "SubnetAddCommand"),
        subnet_remove=_command(fields, "SubnetRemoveCommand"),
    )


def _command(fields: _Fields, name: str) -> tuple[str, ...]:
    """Return a program and its arguments: a list, or a text that is cut as a shell cuts words.

    No shell ever sees it: what a lease says reaches the program by its environment and input only.
    """
    words = fields.words(name)
    if words and not words[0]:
        fields.refuse(name, "a program and its arguments")
    return words


_BACKENDS: Mapping[str, Callable[[_Fields], BackendConfig]] = {
    "vxlan": _vxlan,
    "udp": _udp,
    "host-gw": lambda _fields: HostGwConfig(),
    "ipip": _ipip,
    "alloc": lambda _fields: AllocConfig(),
    "extension": _extension,
}


def _offered() -> str:
    return ", ".join(_BACKENDS)


def _underlay_mtu(fields: _Fields) -> int | None:
    mtu = fields.integer("MTU", 0, low=0, high=_MAX_MTU)
    if mtu and mtu < _MIN_UNDERLAY_MTU:
        fields.refuse("MTU", f"0 (the uplink's) or from {_MIN_UNDERLAY_MTU} to {_MAX_MTU} bytes")
    return mtu or None


def _decode(text: bytes) -> object:
    """Return the JSON value; whatever is wrong with the text becomes InvalidInputError."""
    try:
        # The standard decoder, because it alone shows every pair of an object in order.
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=_fold, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        _refuse("network config", text, f"a JSON object in UTF-8 ({error})")


def _fold(pairs: list[tuple[str, object]]) -> _Object:
    return _Object((name.casefold(), value) for name, value in pairs if value is not None)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _attempt(parse: Callable[[str], _T], text: str) -> _T | None:
    try:
        return parse(text)
    except ValueError:
        return None


def _refuse(field: str, value: object, expected: str) -> NoReturn:
    raise InvalidInputError(field=field, value=_shown(value), expected=expected)


def _shown(value: object) -> object:
    """Return what an error message shows of a value: never a whole structure or a long text."""
    match value:
        case dict():
            return "{...}"
        case list():
            return "[...]"
        case str() | bytes():
            return value[:200]
        case _:
            return value
