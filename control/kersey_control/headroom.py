"""Room in front of pods' packets for the headers that the fast path puts there.

A bridge gives every port the largest headroom that any of its ports needs, and a veth passes that
on to the pod's end (net/bridge/br_if.c, drivers/net/veth.c). So one VXLAN device as a port, down
and without a remote, saves the fast path a reallocation for each UDP packet: 110 to 170 ns. It
carries nothing, ever. For pods without a bridge there is no such way.
"""

from kersey_control.addresses import Vni
from kersey_control.devices import Device
from kersey_control.instance import Instance
from kersey_control.netlink import Links

_LAST_VNI = 0xFFFFFF  # says nothing on the wire: a device that is down binds no port
_MASK = 0xFFF
_PREFIX = "kersey-room."


class Headroom:
    """One device, kept a port of the pods' bridge."""

    def __init__(self, links: Links, instance: Instance) -> None:
        self._links = links
        self.name = headroom_name(instance)
        self._vni = Vni(_LAST_VNI - (instance & _MASK))
        self._kept: Device | None = None

    def keep(self, bridge: Device) -> None:
        """Have the device in this bridge. Raises RequestError."""
        if self._kept != bridge:
            self._links.keep_headroom_port(
                self.name, vni=self._vni, bridge=bridge.ifindex, mtu=bridge.mtu
            )
            self._kept = bridge


def headroom_name(instance: Instance) -> str:
    """Return the device's name, which fits IFNAMSIZ."""
    return f"{_PREFIX}{instance & _MASK:03x}"


def is_headroom(name: str) -> bool:
    """Return whether a device of ours is one of these, of whatever instance."""
    return name.startswith(_PREFIX)
