"""The options that `scripts/testbed up` and `scripts/demo` share."""

import argparse

BACKENDS = ("vxlan",)
DATAPATHS = ("auto", "bpf", "netlink")
_NODES = range(1, 51)
_PODS = range(101)


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add --nodes, --pods, --backend and --datapath."""
    parser.add_argument("--nodes", type=_nodes, default=3, help="default: 3", metavar="N")
    parser.add_argument(
        "--pods", type=_pods, default=2, help="pods on each node, default: 2", metavar="M"
    )
    parser.add_argument("--backend", choices=BACKENDS, default=BACKENDS[0])
    parser.add_argument(
        "--datapath", choices=DATAPATHS, default=DATAPATHS[0], help="as kerseyd's, default: auto"
    )


def network_config(backend: str) -> dict[str, object]:
    """Return the network configuration that the lease store gets."""
    return {"Network": "10.244.0.0/16", "Backend": {"Type": backend}}


def _nodes(text: str) -> int:
    return _number(text, _NODES)


def _pods(text: str) -> int:
    return _number(text, _PODS)


def _number(text: str, allowed: range) -> int:
    if not text.isdecimal() or int(text) not in allowed:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a number from {allowed[0]} to {allowed[-1]}"
        )
    return int(text)
