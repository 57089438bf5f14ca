"""A cluster of network namespaces for the demo, the tests and the benchmarks.

Promises: real veths, bridges, routes and a real etcd, laid out as on a real node; everything is
removed again on close. Needs root. Never touches the machine's own interfaces, routes or services,
and imports nothing but the standard library.
"""

from testbed.backend import Backend
from testbed.capture import Capture, Frame
from testbed.cluster import Cluster
from testbed.daemon import Daemon
from testbed.errors import ClusterError
from testbed.etcd import Etcd
from testbed.namespace import Namespace
from testbed.node import Node, Pod, PodSubnet
from testbed.probe import Probe, ProbeReport, icmp_probe, udp_probe
from testbed.process import Process
from testbed.reach import Reach, ordered_pairs, ping, reachability
from testbed.stream import Stream, StreamReport, tcp_stream
from testbed.told import clean, fast_packets, told_by, wait_acquainted
from testbed.transfer import transfer
from testbed.vtep import Vtep, make_vtep
from testbed.waiting import wait_until
from testbed.wire import Form, WireError, WireFormat, WirePacket
from testbed.wire_watch import WireTally, WireWatch, tally

__all__ = [
    "Backend",
    "Capture",
    "Cluster",
    "ClusterError",
    "Daemon",
    "Etcd",
    "Form",
    "Frame",
    "Namespace",
    "Node",
    "Pod",
    "PodSubnet",
    "Probe",
    "ProbeReport",
    "Process",
    "Reach",
    "Stream",
    "StreamReport",
    "Vtep",
    "WireError",
    "WireFormat",
    "WirePacket",
    "WireTally",
    "WireWatch",
    "clean",
    "fast_packets",
    "icmp_probe",
    "make_vtep",
    "ordered_pairs",
    "ping",
    "reachability",
    "tally",
    "tcp_stream",
    "told_by",
    "transfer",
    "udp_probe",
    "wait_acquainted",
    "wait_until",
]
