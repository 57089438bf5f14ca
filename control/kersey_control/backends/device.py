"""What all overlay devices have in common: addresses, MTU, and what must not configure them."""

import logging
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from kersey_control.addresses import gateway_of
from kersey_control.errors import KernelError
from kersey_control.netlink import Links, RequestError, write_sysctl
from kersey_control.uplink import Uplink

logger = logging.getLogger(__name__)

MIN_MTU = 576
"""The smallest MTU that we give to pods: what every IPv4 host must accept (RFC 791)."""


def keep_address(links: Links, ifindex: int, subnet: IPv4Network, network: IPv4Network) -> None:
    """Give a device the subnet's base as a /32, and take other pod addresses from it.

    Raises RequestError.
    """
    wanted = IPv4Interface((gateway_of(subnet), 32))
    present = links.addresses(ifindex)
    if wanted not in present:
        links.add_address(ifindex, wanted)
        logger.info("overlay address added", extra={"address": str(wanted)})
    for address in present:
        if address != wanted and address.ip in network:
            links.remove_address(ifindex, address)
            logger.info("overlay address removed", extra={"address": str(address)})


def ignore_router_advertisements(device: str) -> None:
    """Keep IPv6 routers on the overlay from configuring us; harmless where IPv6 is off."""
    try:
        if write_sysctl(f"net/ipv6/conf/{device}/accept_ra", "0"):
            logger.info("accept_ra switched off", extra={"device": device})
    except RequestError as error:  # a read-only /proc/sys must not end the network
        logger.warning("sysctl not set", extra={"error": str(error)})


def outer_source(links: Links, uplink: Uplink) -> IPv4Address:
    """Return the outer source address: the public one if this host has it, as others know it.

    Behind NAT the host does not have it, and the kernel would drop what it is to send from it.
    Raises RequestError.
    """
    public = uplink.public_ip
    if public == uplink.address or links.has_address(public):
        return public
    return uplink.address


def pod_mtu(device: str, uplink: Uplink, overhead: int) -> int:
    """Return what the uplink's MTU leaves for pods' packets. Raises KernelError if too little."""
    mtu = uplink.mtu - overhead
    if mtu < MIN_MTU:
        raise KernelError(
            f"MTU of {device}: got {mtu} ({uplink.name} has {uplink.mtu}), expected at least"
            f" {MIN_MTU}"
        )
    return mtu
