"""Which daemon of this host one is: each network's daemon has a subnet file of its own.

What a daemon leaves in the kernel bears this mark, so that its next run finds what an earlier one
left under another config, and never touches what another daemon on the host has.
"""

from pathlib import Path
from typing import NewType
from zlib import crc32

Instance = NewType("Instance", int)
"""From 1 to 2**31 - 1: also the handle of our filters."""


def instance_of(subnet_file: Path) -> Instance:
    """Return the instance that a subnet file stands for; sole_user() lets only one of it run."""
    path = str(subnet_file.absolute()).encode()
    return Instance(crc32(path) & 0x7FFFFFFF or 1)
