"""Whether the uplink gets an XDP program, and in which mode: a decision over what the kernel says.

Pure. Off is always right, only slower where forged packets flood the node; so whatever is not known
to be good stays off, with the reason.
"""

from dataclasses import dataclass

from kersey_loader.xdp import Features, Mode, XdpDevice

from kersey_control.options import Xdp

DISPATCHER = "xdp_dispatcher"
"""The program of libxdp (xdp-loader, xdp-tools) that runs others in turn."""

_HARM = {
    "veth": "it would switch off its peer's TSO: streams get slower by half or more",
    "virtio_net": "it would switch off the receive offloads of virtio_net: streams get slower",
    "tun": "it would switch off the segmentation offloads of tun: streams get slower",
}


@dataclass(frozen=True, slots=True)
class XdpChoice:
    """`mode` None is off; `reason` says why, or what is gained."""

    mode: Mode | None
    reason: str

    @property
    def name(self) -> str:
        """Return the mode as people are told."""
        return "off" if self.mode is None else self.mode.name.lower()


def choose_xdp(asked: Xdp, device: XdpDevice, *, foreign: str) -> XdpChoice:
    """Return what is to be on the device, where any was asked for.

    `foreign` is the name of somebody else's program that is on it now, empty if there is none.
    """
    if foreign:
        whose = "libxdp's dispatcher" if foreign == DISPATCHER else "another program"
        return XdpChoice(None, f"{whose}, {foreign}, is on {device.name} and stays there")
    if asked is Xdp.GENERIC:
        return XdpChoice(Mode.GENERIC, "checks senders; saves no packet the kernel's work for it")
    against = _against(device) if asked is Xdp.NATIVE else _against_by_itself(device)
    if against:
        return XdpChoice(None, against)
    return XdpChoice(Mode.NATIVE, f"by driver {device.driver} of {device.name}")


def _against(device: XdpDevice) -> str:
    """Return why native mode cannot be, as far as the kernel told."""
    if device.features is None or device.features & Features.BASIC:
        return ""
    if device.kind:
        return f"{device.name} is a {device.kind}, which has no native XDP"
    return f"driver {device.driver} of {device.name} has no native XDP"


def _against_by_itself(device: XdpDevice) -> str:
    """Return why native mode is not taken without being asked for."""
    if device.features is None:
        return "the kernel does not tell which devices have native XDP (Linux 6.3 does)"
    harm = _HARM.get(device.driver) or _HARM.get(device.kind)
    if harm:
        return f"{device.name}: {harm}; --xdp=native does it all the same"
    if device.kind:
        return _against(device) or (
            f"{device.name} is a {device.kind}: what is below it is not known;"
            " --xdp=native does it all the same"
        )
    return _against(device)
