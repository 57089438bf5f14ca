"""Nodes of a cluster as flannel leaves them, and the leases that they amount to."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from kersey_control.lease import Lease
from kersey_control.subnets.base import Claim
from kube.api_server import PREFIX, ApiServer, Json

NODE = "n-own"
CONFIG = b'{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'


def cidr(number: int) -> str:
    return f"10.244.{number}.0/24"


def data(number: int) -> str:
    return f'{{"VNI":1,"VtepMAC":"0e:2a:00:00:00:{number % 256:02x}"}}'


def annotations(number: int, **changes: str) -> dict[str, str]:
    """Return what flannel writes to a node; `changes` as `ApiServer.annotate` takes them."""
    values = {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": data(number),
        "public-ip": f"198.18.0.{number}",
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    return {"other.example/key": "kept", **{PREFIX + key: text for key, text in values.items()}}


def join(api: ApiServer, number: int, *, name: str = "", **changes: str) -> str:
    """Add the node of this number, which takes part, and return its name."""
    name = name or f"n{number:04}"
    api.put(name, cidr=cidr(number), annotations=annotations(number, **changes))
    return name


def make_lease(number: int, *, name: str = "") -> Lease:
    """Return the lease of the node that `join` with the same number adds."""
    return Lease(
        subnet=IPv4Network(cidr(number)),
        public_ip=IPv4Address(f"198.18.0.{number}"),
        backend_type="vxlan",
        backend_data=data(number).encode(),
        node_id=name or f"n{number:04}",
    )


def make_claim(number: int = 200, **changes: object) -> Claim:
    claim = Claim(
        node_id="machine-id",
        public_ip=IPv4Address(f"198.18.0.{number}"),
        backend_type="vxlan",
        backend_data=data(number).encode(),
    )
    return replace(claim, **changes)  # type: ignore[arg-type]  # the tests name real fields


def expected(api: ApiServer) -> dict[IPv4Network, tuple[str, str, str, str]]:
    """Return what the server's nodes amount to: address, type, data and node by subnet.

    Written apart from the code under test; knows no nodes that share a subnet.
    """
    found = (_lease(node) for node in api.nodes.values())
    return dict(filter(None, found))


def held(state: dict[IPv4Network, Lease]) -> dict[IPv4Network, tuple[str, str, str, str]]:
    """Return a consumer's leases in the form of `expected`."""
    return {
        subnet: (
            str(lease.public_ip),
            lease.backend_type,
            lease.backend_data.decode(),
            lease.node_id,
        )
        for subnet, lease in state.items()
    }


def _lease(node: Json) -> tuple[IPv4Network, tuple[str, str, str, str]] | None:
    notes = node["metadata"].get("annotations", {})
    text = node["spec"].get("podCIDR", "")
    address = notes.get(PREFIX + "public-ip", "")
    is_member = notes.get(PREFIX + "kube-subnet-manager") == "true"
    if not (is_member and text and address) or address == "garbage":
        return None
    found = notes.get(PREFIX + "backend-data", "null")
    rest = (
        address,
        notes.get(PREFIX + "backend-type", ""),
        "" if found == "null" else found,
        node["metadata"]["name"],
    )
    return IPv4Network(text), rest
