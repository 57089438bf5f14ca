"""The operator's command, run in a node of the testbed as an operator there would."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from testbed import Node

KERSEY = Path(sys.executable).with_name("kersey")


def files_of(node: Node) -> tuple[str, ...]:
    """Return the flags that say where a node's files are."""
    return (
        f"--subnet-file={node.daemon.subnet_file}",
        f"--state-dir={node.state_dir}",
        f"--bpf-dir={node.bpf_dir}",
    )


def kersey(node: Node, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command without a word about files."""
    return node.namespace.run(KERSEY, *arguments, check=check)


def asked(node: Node, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command on the node's own files."""
    return kersey(node, *arguments, *files_of(node), check=check)


def asked_json(node: Node, *arguments: str, check: bool = True) -> Any:
    """Return what a command on the node's own files prints with --json."""
    return json.loads(asked(node, *arguments, "--json", check=check).stdout)
