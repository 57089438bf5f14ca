"""`kersey cleanup`: everything of Kersey's out of this node, or only the fast path."""

import os
from collections.abc import Iterator

from kersey_control.cleanup import clean_node, release_node
from kersey_control.cli.schema import CleanupFlags
from kersey_control.errors import KerseyError
from kersey_control.lock import expect_no_other, sole_user
from kersey_control.netlink import Links
from kersey_control.rtnetlink import Rtnl

_ALL_GONE = (
    "nothing of Kersey is left on this node; its lease in etcd ends by itself within 24 hours,"
    " its annotations in Kubernetes stay"
)
_RELEASED = "the kernel carries pods' packets by itself now; flanneld can take the node over"


def run(flags: CleanupFlags) -> int:
    """Remove from this node everything that is Kersey's, or only the fast path, saying what."""
    if os.geteuid() != 0:
        raise KerseyError("cleanup: got an unprivileged user, expected root (sudo kersey cleanup)")
    with sole_user(flags.subnet_file) as lock, Links() as links, Rtnl() as rtnl:
        expect_no_other(flags.subnet_file)
        for line in _removed(flags, links, rtnl):
            print(f"removed {line}")
        lock.unlink(missing_ok=True)
    print(_RELEASED if flags.keep_network else _ALL_GONE)
    return 0


def _removed(flags: CleanupFlags, links: Links, rtnl: Rtnl) -> Iterator[str]:
    if flags.keep_network:
        return release_node(
            state_dir=flags.state_dir,
            bpf_dir=flags.bpf_dir,
            cache_dir=flags.cache_dir,
            links=links,
        )
    return clean_node(
        subnet_file=flags.subnet_file,
        state_dir=flags.state_dir,
        bpf_dir=flags.bpf_dir,
        cache_dir=flags.cache_dir,
        cni_conf_dir=flags.cni_conf_dir,
        links=links,
        rtnl=rtnl,
    )
