"""What the server has at one path, as a value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Resource:
    """A body, made anew for each answer, and how it is announced.

    `make` is called on one thread for all resources of a server.
    """

    make: Callable[[], bytes]
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
