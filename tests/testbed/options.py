"""The options that `scripts/testbed up` and `scripts/demo` share."""

import argparse

from testbed.addresses import LARGEST_LINK
from testbed.backend import PURPOSES, Backend

DATAPATHS = ("auto", "bpf", "netlink")
_NODES = range(1, 51)
_PODS = range(101)
_LINKS = range(1, min(50, LARGEST_LINK) + 1)
BACKENDS_HELP = "backends:\n" + "\n".join(
    f"  {name:<9} {purpose}" for name, purpose in PURPOSES.items()
)


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add --nodes, --pods, --links, --backend, --direct-routing and --datapath."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter  # one line for each backend
    parser.epilog = BACKENDS_HELP
    parser.add_argument("--nodes", type=_nodes, default=3, help="default: 3", metavar="N")
    parser.add_argument(
        "--pods", type=_pods, default=2, help="pods on each node, default: 2", metavar="M"
    )
    parser.add_argument(
        "--links",
        type=_links,
        default=1,
        help="spread the nodes over L links with a router between them, default: 1",
        metavar="L",
    )
    parser.add_argument(
        "--backend", choices=PURPOSES, default=Backend().type, help="see below, default: vxlan"
    )
    parser.add_argument(
        "--direct-routing",
        action="store_true",
        help="vxlan and ipip: no tunnel between nodes on the same link",
    )
    parser.add_argument(
        "--datapath", choices=DATAPATHS, default=DATAPATHS[0], help="as kerseyd's, default: auto"
    )


def chosen_backend(arguments: argparse.Namespace) -> Backend:
    """Return the backend that the options name."""
    return Backend(arguments.backend, arguments.direct_routing)


def objection(arguments: argparse.Namespace) -> str | None:
    """Return what makes the options contradict each other, None if nothing does."""
    return chosen_backend(arguments).objection(links=arguments.links)


def _nodes(text: str) -> int:
    return _number(text, _NODES)


def _pods(text: str) -> int:
    return _number(text, _PODS)


def _links(text: str) -> int:
    return _number(text, _LINKS)


def _number(text: str, allowed: range) -> int:
    if not text.isdecimal() or int(text) not in allowed:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a number from {allowed[0]} to {allowed[-1]}"
        )
    return int(text)
