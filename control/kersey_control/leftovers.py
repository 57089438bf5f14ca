"""Remove what an earlier run of this daemon left under another config: devices, programs, routes.

Only what bears our own mark is touched. Rules are not this module's, nor are the present network's
routes: they are compared with what is wanted anyway.
"""

import logging
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from kersey_loader.errors import LoaderError
from kersey_loader.remove import remove_network

from kersey_control.errors import KernelError
from kersey_control.instance import Instance
from kersey_control.netlink import Links
from kersey_control.reconcile import Plan
from kersey_control.rtnetlink import Rtnl

logger = logging.getLogger(__name__)


def remove_other_devices(links: Links, keep: frozenset[str]) -> None:
    """Delete our instance's devices other than those named; says what fails."""
    try:
        for link in links.of_instance():
            if link.name not in keep:
                links.delete(link)
                logger.info("device of an earlier config removed", extra={"device": link.name})
    except KernelError as error:
        logger.warning("device of an earlier config stays", extra={"reason": str(error)})


def remove_programs(directory: Path, instance: Instance) -> None:
    """Take the programs of an earlier run off all devices: nobody keeps their maps right now."""
    try:
        count = remove_network(directory, handle=instance)
    except LoaderError as error:
        logger.warning("programs of an earlier run stay", extra={"reason": str(error)})
    else:
        if count:
            logger.info("programs of an earlier run removed", extra={"pins": count})


def leave_network(former: IPv4Network, network: IPv4Network, links: Links) -> None:
    """Remove our routes to peers of another network, and its addresses from our devices.

    Such an address would be the source of what this node itself sends to pods. Raises KernelError.
    """
    for link in links.of_instance():
        for address in links.addresses(link.ifindex):
            if address.ip in former and address.ip not in network:
                links.remove_address(link.ifindex, address)
    with Rtnl() as rtnl:
        stale = [
            nexthop
            for nexthop in rtnl.nexthops()
            if (base := IPv4Address(nexthop.id)) in former and base not in network
        ]
        failures = rtnl.apply(Plan(remove=tuple(stale)))  # their routes go with them
    if failures:
        raise KernelError(f"{len(failures)} nexthops stay, the first for {failures[0].reason}")
    if stale:
        extra = {"network": str(former), "routes": len(stale)}
        logger.info("routes of an earlier network removed", extra=extra)
