"""Maps and programs as they are pinned on bpffs, so that they outlive every process of ours.

    <directory>/maps-<hash of layout and tunnel>/<map>
    <directory>/programs-<hash of text and maps>/<program>

Equal layout: the maps are adopted with their contents. Equal text too: the programs are adopted and
nothing is compiled. Never unpins what may still be in use; `prune` is for after the replacement.
"""

import hashlib
import json
import logging
import shutil
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from kersey_loader import compile_child
from kersey_loader.bpf import Descriptor, Map, map_info, open_map, open_pin, pin, program_info
from kersey_loader.errors import CompileError, LoaderError, ToolchainError, VerifierError
from kersey_loader.layout import MapSpec, Program, layout_hash
from kersey_loader.tunnel import TunnelKind

logger = logging.getLogger(__name__)

INTERPRETER = "/usr/bin/python3"
"""The distribution's: the one that its bcc package is for."""

CLOCK = "clock"
WIRE = Program.WIRE.function
"""The only one that is XDP, and that a kernel may refuse without harm to the others."""
FUNCTIONS = (*(program.function for program in Program if program is not Program.WIRE), CLOCK)

KEPT_FILES = "programs-*.json*"
"""All files of compiled programs in a folder, those too that were not written to their end."""

_CFLAGS = ("-Wno-address-of-packed-member",)

COMPILE_SECONDS = 900
"""For a compiler that hangs; it takes a second, but 240 s in an emulated machine on a busy host."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """Open maps and programs by name; `fresh` says that the maps were made just now."""

    maps: dict[str, Map]
    programs: dict[str, Descriptor]
    keep: frozenset[str]
    fresh: bool

    def close(self) -> None:
        """Close every descriptor; what is pinned or attached lives on."""
        for descriptor in (*self.maps.values(), *self.programs.values()):
            descriptor.close()


def open_maps(
    directory: Path, specs: tuple[MapSpec, ...], *, tunnel: TunnelKind, network: IPv4Network
) -> tuple[Path, dict[str, Map], bool]:
    """Adopt the pinned maps of this layout and network, or make and pin those that are missing.

    Returns their directory, the maps, and whether any of them is new. Raises BpfError.
    """
    home = directory / f"maps-{layout_hash(specs, tunnel=tunnel, network=network)}"
    home.mkdir(mode=0o700, exist_ok=True)
    maps, fresh = {}, False
    for spec in specs:
        found = open_map(home / spec.name, spec)
        if found is None:
            fresh = True
            (home / spec.name).unlink(missing_ok=True)
            found = Map.create(spec)
            pin(found.fd, home / spec.name)
        maps[spec.name] = found
    return home, maps, fresh


def open_programs(
    directory: Path,
    *,
    text: str,
    headers: Path,
    map_home: Path,
    maps: dict[str, Map],
    kept: Path | None = None,
) -> tuple[Path, dict[str, Descriptor]]:
    """Adopt the pinned programs of this text, or compile, load and pin them.

    `kept` is the file where compiled programs of this text are, or will be.

    Raises CompileError, VerifierError, ToolchainError or BpfError.
    """
    cflags = [f'-DKERSEY_MAPS="{map_home}"', *_CFLAGS]
    digest = hashlib.sha256(json.dumps([text, cflags]).encode()).hexdigest()[:16]
    home = directory / f"programs-{digest}"
    adopted = _adopt(home, maps)
    if adopted is not None:
        logger.debug("adopted pinned programs", extra={"path": str(home)})
        return home, adopted
    _discard(home)
    building = directory / f"programs-{digest}-new"  # bpffs refuses dots
    _discard(building)
    building.mkdir(mode=0o700)
    pins = {name: str(building / name) for name in FUNCTIONS}
    try:
        was_kept = _compile(
            {
                "text": text,
                "cflags": cflags,
                "headers": str(headers),
                "pins": pins,
                "xdp_pins": {WIRE: str(building / WIRE)},
                "maps": {name: str(map_home / name) for name in maps},
                "kept": "" if kept is None else str(kept),
                "digest": _digest(text, headers),
            }
        )
    except LoaderError:
        _discard(building)
        raise
    building.rename(home)
    programs = _adopt(home, maps)
    if programs is None:
        raise ToolchainError(f"{home}: the compiled programs do not use the pinned maps")
    done = "pinned programs compiled earlier" if was_kept else "compiled and pinned programs"
    logger.info(done, extra={"path": str(home)})
    return home, programs


def kept_name(tunnel: TunnelKind) -> str:
    """Return the name of the file that keeps the compiled programs for one kind of tunnel."""
    return f"programs-{tunnel}.json"


def prune(directory: Path, keep: frozenset[str]) -> tuple[str, ...]:
    """Remove the pins of other layouts and texts; returns the names of the removed directories."""
    stale = [
        path
        for path in directory.iterdir()
        if path.name not in keep and path.name.startswith(("maps-", "programs-"))
    ]
    for path in stale:
        _discard(path)
    return tuple(path.name for path in stale)


def _adopt(home: Path, maps: dict[str, Map]) -> dict[str, Descriptor] | None:
    """Open all programs, unless one is missing or works on other maps than ours.

    Without the XDP program, which this kernel has refused then, the others are all.
    """
    ids = {map_info(map_.fd).id for map_ in maps.values()}
    programs: dict[str, Descriptor] = {}
    for name in (*FUNCTIONS, WIRE):
        fd = open_pin(home / name)
        if fd is None and name == WIRE:
            continue
        if fd is None or not program_info(fd).map_ids <= ids:
            for program in (*programs.values(), Descriptor(-1 if fd is None else fd)):
                program.close()
            return None
        programs[name] = Descriptor(fd)
    return programs


def _discard(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _digest(text: str, headers: Path) -> str:
    """Return what tells one input of the compiler from another, wherever its maps are."""
    files = sorted(path for path in headers.rglob("*") if path.is_file())
    parts = [[str(path.relative_to(headers)), path.read_text()] for path in files]
    return hashlib.sha256(json.dumps([text, _CFLAGS, parts]).encode()).hexdigest()


def _compile(request: dict[str, object]) -> bool:
    """Run the child; True if nothing had to be compiled.

    Raises CompileError, VerifierError or ToolchainError.
    """
    try:
        child = subprocess.run(
            [INTERPRETER, "-I", compile_child.__file__],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"cannot run the compiler: {error}") from error
    match child.returncode:
        case 0:
            if child.stderr:
                logger.warning("remarks on the programs", extra={"output": child.stderr})
            return child.stdout.strip() == compile_child.KEPT
        case compile_child.EXIT_COMPILE:
            raise CompileError(child.stderr)
        case compile_child.EXIT_VERIFIER:
            raise VerifierError(child.stderr)
        case _:
            raise ToolchainError(f"the compiler ended with {child.returncode}: {child.stderr}")
