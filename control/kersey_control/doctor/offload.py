"""Checksums that hardware shall compute for tunnel packets: an old source of silent losses."""

from collections.abc import Iterator

from kersey_control.doctor.finding import Finding, warning
from kersey_control.doctor.host import Host
from kersey_control.node_view import NodeView


def check(host: Host, view: NodeView) -> Iterator[Finding]:
    """Look whether our VXLAN device sends outer checksums that hardware has to compute."""
    overlay = view.overlay
    if overlay is not None and overlay.vxlan is not None:
        yield from judge(
            device=overlay.name,
            outer=overlay.vxlan.udp_checksum,
            offloaded=host.sends_with_checksum_offload(overlay.name) is not False,
        )


def judge(*, device: str, outer: bool, offloaded: bool) -> Iterator[Finding]:
    """Say what is known to go wrong: some drivers get these checksums wrong."""
    if outer and offloaded:
        yield warning(
            f"{device} sends outer UDP checksums, and leaves them to the network card",
            "some cards and drivers compute them wrongly for tunnel packets: pings pass, but TCP"
            " and DNS to pods of other nodes hang for a minute and more",
            f"ip link del {device} (kerseyd makes it again at once, without outer checksums), or"
            f" ethtool -K {device} tx-checksum-ip-generic off",
        )
