"""Rights, and the sysctls that decide whether the kernel forwards pods' packets at all."""

import os
from collections.abc import Iterator, Mapping

from kersey_control.doctor.finding import Finding, error, warning
from kersey_control.doctor.host import Host
from kersey_control.fast_path import LIBERAL
from kersey_control.node_view import NodeView

_STRICT = 1
_BRIDGE_CALL = "net/bridge/bridge-nf-call-iptables"


def check_rights() -> Iterator[Finding]:
    """Look whether we may see everything."""
    if os.geteuid() != 0:
        yield warning(
            f"running as uid {os.geteuid()}, not as root",
            "the daemon's socket, its pins, the rules and other processes cannot be seen,"
            " so that most checks below say nothing",
            "sudo kersey doctor",
        )


def check_device(view: NodeView) -> Iterator[Finding]:
    """Look whether the overlay device is there and up."""
    overlay = view.overlay
    name = overlay.name if overlay else view.told.device if view.told else ""
    yield from judge_device(name, exists=overlay is not None, up=overlay is not None and overlay.up)


def judge_device(name: str, *, exists: bool, up: bool) -> Iterator[Finding]:
    """Say that the overlay device cannot carry packets; an empty name is a backend without one."""
    if name and not (exists and up):
        yield error(
            f"{name} is {'down' if exists else 'missing'}",
            "no packet between pods of this node and others gets through",
            f"ip link set {name} up" if exists else "restart kerseyd, which makes it again",
        )


def check_forwarding(host: Host, view: NodeView) -> Iterator[Finding]:
    """Look whether the kernel forwards at all, and on every device of the overlay."""
    names = overlay_devices(host, view)
    yield from judge_forwarding(
        whole=host.sysctl("net/ipv4/ip_forward") != "0",
        devices={name: host.sysctl(f"net/ipv4/conf/{name}/forwarding") != "0" for name in names},
    )


def judge_forwarding(*, whole: bool, devices: Mapping[str, bool]) -> Iterator[Finding]:
    """Say where forwarding is off; `devices` are those that pods' packets come in by."""
    if not whole:
        yield error(
            "net.ipv4.ip_forward is 0",
            "the kernel drops every packet between pods and other nodes",
            "sysctl -w net.ipv4.ip_forward=1",
        )
        return
    for name in [name for name, is_on in devices.items() if not is_on]:
        yield error(
            f"net.ipv4.conf.{name}.forwarding is 0",
            f"the kernel drops every packet that comes in by {name} and is for somebody else",
            f"sysctl -w net.ipv4.conf.{name}.forwarding=1",
        )


def check_reverse_path(host: Host, view: NodeView) -> Iterator[Finding]:
    """Look for strict reverse path filters on uplink and overlay device."""
    names = [name for name in (view.uplink, view.overlay and view.overlay.name) if name]
    yield from judge_reverse_path(
        overall=_number(host.sysctl("net/ipv4/conf/all/rp_filter")),
        devices={name: _number(host.sysctl(f"net/ipv4/conf/{name}/rp_filter")) for name in names},
    )


def judge_reverse_path(*, overall: int, devices: Mapping[str, int]) -> Iterator[Finding]:
    """Say where the filter is strict: the greater of both values counts (ip-sysctl)."""
    for name, value in devices.items():
        if max(overall, value) == _STRICT:
            yield warning(
                f"rp_filter is strict on {name}",
                "packets whose way back leads through another device are dropped in silence, as"
                " on nodes with several uplinks or with policy routing",
                f"sysctl -w net.ipv4.conf.{name}.rp_filter=2",
            )


def check_bridge(host: Host) -> Iterator[Finding]:
    """Look whether a bridge shows pods' packets to the rules where services need it."""
    yield from judge_bridge(
        call=host.sysctl(_BRIDGE_CALL), has_services="KUBE-SERVICES" in host.ruleset
    )


def judge_bridge(*, call: str | None, has_services: bool) -> Iterator[Finding]:
    """Say what services miss; `call` is None without br_netfilter."""
    if has_services and call != "1":
        yield warning(
            "br_netfilter is not loaded" if call is None else f"{_dotted(_BRIDGE_CALL)} is {call}",
            "a pod that reaches another pod of this node through a service gets its answers from"
            " the wrong address, and drops them",
            f"modprobe br_netfilter && sysctl -w {_dotted(_BRIDGE_CALL)}=1",
        )


def check_conntrack(host: Host, view: NodeView) -> Iterator[Finding]:
    """Look whether conntrack forgives what it does not see of fast flows."""
    is_fast = view.told is not None and view.told.datapath.mode == "bpf"
    yield from judge_conntrack(liberal=host.sysctl(LIBERAL), is_fast=is_fast)


def judge_conntrack(*, liberal: str | None, is_fast: bool) -> Iterator[Finding]:
    """Say what happens to returning packets; `liberal` is None where there is no conntrack."""
    if is_fast and liberal == "0":
        yield error(
            f"{_dotted(LIBERAL)} is 0",
            "conntrack calls packets of TCP connections that return from the fast path invalid,"
            " and kube-proxy's rules drop what is invalid: connections stall",
            f"sysctl -w {_dotted(LIBERAL)}=1",
        )


def overlay_devices(host: Host, view: NodeView) -> list[str]:
    """Return the devices by which packets come in that must be forwarded."""
    found = host.pod_ports(view)
    names = {device.ifindex: device.name for device in host.devices}
    bridge = [found.bridge.name] if found.bridge else []
    routed = [
        device.name
        for device in host.devices
        if device.ifindex in found.ports and not device.master
    ]
    wanted = [view.uplink, view.overlay.name if view.overlay else "", *bridge, *routed]
    return [name for name in wanted if name in names.values()]


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _dotted(path: str) -> str:
    return path.replace("/", ".")
