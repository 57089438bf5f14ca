"""The C text of the programs as the compiler gets it: one file, with nothing left to include.

bcc rewrites map calls in the main file only, so our own quoted includes are pasted in, once each,
with #line so that errors name the real file. lib/tunnel.h is whichever lib/tunnel_*.h is asked for.
"""

import re
from pathlib import Path

from kersey_loader.layout import assertions
from kersey_loader.tunnel import TunnelKind

PROGRAM_FILES = ("pod.bpf.c", "uplink.bpf.c", "overlay.bpf.c", "wire.bpf.c", "clock.bpf.c")

_INCLUDE = re.compile(r'^#include "([^"]+)"$')
_TUNNEL = "tunnel.h"
_HERE = Path(__file__).resolve().parent


def bpf_directory() -> Path:
    """Return where the C files are: inside an installed package, beside it in a source tree."""
    installed = _HERE / "bpf_sources"
    return installed if installed.is_dir() else _HERE.parents[1] / "bpf"


def program_text(directory: Path, tunnel: TunnelKind) -> str:
    """Return all programs for one tunnel, and the layout assertions, as one text."""
    pasted: set[Path] = set()
    parts = [_paste(directory / name, pasted, tunnel) for name in PROGRAM_FILES]
    return "".join(parts) + '#line 1 "assertions"\n' + assertions()


def _paste(path: Path, pasted: set[Path], tunnel: TunnelKind) -> str:
    if path.name == _TUNNEL:
        path = path.with_name(f"tunnel_{tunnel}.h")
    path = path.resolve()
    if path in pasted:
        return ""
    pasted.add(path)
    lines = [f'#line 1 "{path.name}"\n']
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        include = _INCLUDE.match(line)
        if include:
            lines.append(_paste(path.parent / include[1], pasted, tunnel))
            lines.append(f'#line {number + 1} "{path.name}"\n')
        elif line != "#pragma once":
            lines.append(line + "\n")
        else:
            lines.append("\n")
    return "".join(lines)
