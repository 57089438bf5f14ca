"""Who this node is, across restarts and changes of address: the node id in its lease.

Promises the same id for the same machine, or at least for the same state directory. Never
publishes /etc/machine-id itself, which machine-id(5) asks to keep off the network.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
from pathlib import Path

from kersey_control.errors import InvalidInputError

logger = logging.getLogger(__name__)

NODE_ID_FILE = "node-id"
"""The name of the kept id in the state directory."""

_MACHINE_ID = Path("/etc/machine-id")
_ID = re.compile(r"[0-9a-f]{32}")
_PURPOSE = b"kersey node id"


def read_machine_id() -> str | None:
    """Return the machine's id; None where there is none yet, as in a container or a fresh image."""
    try:
        text = _MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if _ID.fullmatch(text) and int(text, 16) else None


def node_id(chosen: str, *, machine_id: str | None, state_dir: Path) -> str:
    """Return the id: the operator's choice, else derived from the machine's, else a kept one.

    The kept one, 32 hexadecimal digits, is made when first needed. Raises InvalidInputError when
    the file that holds it does not, and OSError when it cannot be read or written.
    """
    if chosen:
        return chosen
    if machine_id is not None:
        return _derived(machine_id)
    return _kept(state_dir / NODE_ID_FILE)


def _derived(machine_id: str) -> str:
    """Return a keyed hash, the way of machine-id(5): equal ids stay equal, the original hidden."""
    return hmac.digest(machine_id.encode(), _PURPOSE, hashlib.sha256)[:16].hex()


def _kept(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return _made(path)
    except UnicodeDecodeError:
        text = ""
    if not _ID.fullmatch(text):
        # A new id would make us a stranger to our own lease, so an operator has to decide.
        raise InvalidInputError(field=str(path), value=text[:64], expected="32 hexadecimal digits")
    return text


def _made(path: Path) -> str:
    """Create the file complete or not at all: a link fails where another process was faster."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{secrets.token_hex(16)}\n")
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    else:
        logger.info("node id created", extra={"path": str(path)})
    finally:
        Path(draft).unlink()
    return _kept(path)
