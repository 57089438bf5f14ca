"""`kersey trace`: which way a packet between two addresses takes, and why."""

from ipaddress import IPv4Address

from kersey_control.cli.schema import TraceFlags
from kersey_control.cli.text import print_json
from kersey_control.doctor.host import Host
from kersey_control.errors import InvalidInputError
from kersey_control.node_view import view_node
from kersey_control.trace import Packet, Step, trace

_MARKS = {True: "ok", False: "FAULT", None: ""}


def run(flags: TraceFlags, source: str, destination: str) -> int:
    """Print the steps; 1 if the packet would not arrive."""
    packet = Packet(
        _address("SRC", source), _address("DST", destination), flags.protocol, flags.port
    )
    steps = trace(packet, view_node(flags), Host())
    if flags.json:
        print_json([{"step": step.name, "says": step.says, "ok": step.ok} for step in steps])
    else:
        for step in steps:
            print(_line(step))
    return 1 if any(step.ok is False for step in steps) else 0


def _line(step: Step) -> str:
    return f"{_MARKS[step.ok]:6} {step.name:13} {step.says}"


def _address(field: str, text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError:
        raise InvalidInputError(field=field, value=text, expected="an IPv4 address") from None
