"""Peers that do not answer, in words that an operator can act on. Pure."""

from kersey_control.peer import Via
from kersey_control.reach import OneWay
from kersey_control.told import ToldSilent

PLAIN = "plain traffic of pods"
"""What goes between nodes without a tunnel."""


def name_of(peer: ToldSilent) -> str:
    """Return a peer as messages call it."""
    return f"{peer.subnet} ({peer.node})"


def cut(way: OneWay, names: str, *, pronoun: str = "it") -> str:
    """Return which direction to and from peers is cut."""
    there, back = ("to", "from") if way is OneWay.OUT else ("from", "to")
    return f"packets {there} {names} are lost, those {back} {pronoun} arrive"


def one_way(peer: ToldSilent, way: OneWay, *, tunnel: str) -> str:
    """Return what is lost and where to look; `tunnel` as firewalls call it, empty without one."""
    what = tunnel if tunnel and peer.via != Via.DIRECT else PLAIN
    there = "to" if way is OneWay.OUT else "from"
    return f"{cut(way, name_of(peer))}: is {what} {there} it blocked by a firewall?"
