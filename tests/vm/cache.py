"""Directories that are expensive to make and the same every time, kept between runs.

Below $XDG_CACHE_HOME/kersey, or /var/cache/kersey where root has none. A directory appears whole
or not at all; two runs at a time build it once. Never removed: `rm -r` is safe while nothing runs.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path


def cache_root() -> Path:
    """Return where made things are kept; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME", "/var/cache")) / "kersey" / "vm"


def fingerprint(*recipe: str) -> str:
    """Return a short name for what a recipe makes: another one wherever a part of it changes."""
    return sha256("\0".join(recipe).encode()).hexdigest()[:16]


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """Return the directory `name`, which `build` fills if there is none yet.

    `build` gets an empty directory on the same file system; when it raises, nothing stays.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    wanted = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.is_dir():
            made = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
            try:
                build(made)
                made.rename(wanted)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
    return wanted
