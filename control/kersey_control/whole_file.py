"""Files that others read while we write them.

Promises: a reader sees the old file or the whole new one, also after a power loss; mode 0644 and
folders of mode 0755 whatever the umask; an equal file is left alone.
"""

import os
import tempfile
from pathlib import Path

_FILE_MODE = 0o644
_DIR_MODE = 0o755


def write_whole_file(path: Path, text: str) -> bool:
    """Make the file say `text`; return whether it had to change. Raises OSError."""
    content = text.encode()
    if _is_right(path, content):
        return False
    _make_directories(path.parent)
    _replace(path, content)
    return True


def _is_right(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content and path.stat().st_mode & 0o777 == _FILE_MODE
    except OSError:
        return False


def _make_directories(path: Path) -> None:
    missing = [level for level in (path, *path.parents) if not level.exists()]
    for level in reversed(missing):
        level.mkdir(exist_ok=True)
        level.chmod(_DIR_MODE)  # mkdir's own mode is subject to the umask


def _replace(path: Path, content: bytes) -> None:
    """Put `content` in place of the file, by a neighbour that is complete before it gets the name.

    The neighbour's name starts with a dot and ends in no suffix that readers of folders look for.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(handle, _FILE_MODE)
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
