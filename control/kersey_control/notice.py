"""One thing that a cluster's operator should know of a node. A pure value."""

from typing import NamedTuple


class Notice(NamedTuple):
    """What happened, for people and for filters.

    `reason` is one CamelCase word that never changes, `message` is free text; a trouble that begins
    or lasts is a warning, its end is none.
    """

    reason: str
    message: str
    is_warning: bool
