"""Room in front of pods' packets for the headers that the fast path puts there.

A bridge gives every port the largest headroom that any of its ports needs, and a veth passes that
on to the pod's end (net/bridge/br_if.c, drivers/net/veth.c). So one VXLAN device as a port, down
and without a remote, saves the fast path a reallocation for each UDP packet: 110 to 170 ns. It
carries nothing, ever. For pods without a bridge there is no such way.
"""

from kersey_control.addresses import Vni
from kersey_control.devices import Device
from kersey_control.netlink import Links

_NEVER_USED = 0xFFFFFF  # a VNI; a device that is down binds no port and clashes with none


class Headroom:
    """One device, kept a port of the pods' bridge."""

    def __init__(self, links: Links, vni: Vni) -> None:
        self._links = links
        self._name = f"kersey-room.{vni}"[:15]  # IFNAMSIZ
        self._vni = Vni(_NEVER_USED - vni)
        self._kept: Device | None = None

    def keep(self, bridge: Device) -> None:
        """Have the device in this bridge. Raises RequestError."""
        if self._kept != bridge:
            self._links.keep_headroom_port(
                self._name, vni=self._vni, bridge=bridge.ifindex, mtu=bridge.mtu
            )
            self._kept = bridge
