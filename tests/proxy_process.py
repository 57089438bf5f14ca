"""A proxy in a process of its own, for tests that kill it and for measurements.

Run as `proxy_process.py NODE PEER... [--kind udp|ipip] [--merge] [--mtu N]`, with the numbers of
`proxy_lab`'s nodes. The device's address and routes are the caller's. It writes `ready` to standard
output and then, for each line that it reads, its counters as JSON; it ends with its input.
"""

import argparse
import json
import sys
from dataclasses import asdict
from ipaddress import IPv4Address, IPv4Network

from kersey_control.carriers import IpipCarrier, UdpCarrier
from kersey_control.node_table import NodeTable
from kersey_control.peer import Peer, Via
from kersey_control.proxy import Proxy
from kersey_control.tun import Tun

NETWORK = IPv4Network("10.244.0.0/16")


def _peer(number: int) -> Peer:
    node = IPv4Address("198.18.0.0") + number
    return Peer(IPv4Network(f"10.244.{number}.0/24"), node, Via.UDP)


def main() -> None:
    """Pump until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("node", type=int)
    parser.add_argument("peers", type=int, nargs="*")
    parser.add_argument("--kind", default="udp")
    parser.add_argument("--merge", action="store_true")
    asked = parser.parse_args()
    own = _peer(asked.node)
    carrier = (
        UdpCarrier(own.node, merge=asked.merge) if asked.kind == "udp" else IpipCarrier(own.node)
    )
    table = NodeTable.of(map(_peer, asked.peers), network=NETWORK)
    with (
        Tun("flannel0") as tun,
        carrier,
        Proxy(
            tun,
            carrier,
            table=table,
            address=own.subnet[0],
            hops=1 if asked.kind == "udp" else 0,
        ) as proxy,
    ):
        print("ready", flush=True)
        for _ in sys.stdin:
            print(json.dumps(asdict(proxy.counters)), flush=True)


if __name__ == "__main__":
    main()
