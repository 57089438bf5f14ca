"""Remove what an earlier run of this daemon left under another config: its devices and programs.

Only what bears our own mark is touched. Routes and rules are not this module's: those of a device
go with it, and the others are compared with what is wanted anyway.
"""

import logging
from pathlib import Path

from kersey_loader.errors import LoaderError
from kersey_loader.remove import remove_network

from kersey_control.errors import KernelError
from kersey_control.instance import Instance
from kersey_control.netlink import Links

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
