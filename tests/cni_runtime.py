"""A container runtime's part in CNI, and nothing more: the rules of libcni, the real plugins.

Written from the CNI specification 0.4.0, sections "network configuration lists" and "parameters":
each plugin gets the list's name and version, the result of the one before it, and of the runtime's
arguments those whose capability it declares. CHECK and DEL are given what ADD ended with; DEL goes
backwards. One thing is added: `host-local`, the only one that keeps state, is told to keep it below
`state`, not in the machine's /var/lib/cni.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

from testbed import Namespace

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins puts them."""

INTERFACE = "eth0"
_TIMEOUT = 30
_SUFFIXES = {".conf", ".conflist", ".json"}


class PluginError(Exception):
    """Report what a plugin refused, with its own code and words."""


@dataclass(frozen=True, slots=True)
class Container:
    """A pod as the runtime knows it: its network namespace and what ADD answered."""

    name: str
    namespace: Namespace
    result: Mapping[str, Any]
    runtime_config: Mapping[str, object]

    @property
    def address(self) -> IPv4Address:
        """Return the pod's address."""
        return IPv4Interface(self.result["ips"][0]["address"]).ip

    @property
    def port(self) -> str:
        """Return the name of the pod's veth in the node."""
        own = [str(each["name"]) for each in self.result["interfaces"] if not each.get("sandbox")]
        return next(name for name in own if name.startswith("veth"))


class CniRuntime:
    """What a node's kubelet and container runtime would do with the folder of configurations."""

    def __init__(self, node: Namespace, *, conf_dir: Path, state: Path) -> None:
        self._node = node
        self._conf_dir = conf_dir
        self._state = state
        self._state.mkdir(parents=True, exist_ok=True)

    @property
    def reserved(self) -> list[str]:
        """Return the addresses that host-local holds as taken, by network and in order."""
        found = self._state.glob("networks/*/*")
        return sorted(path.name for path in found if path.name[0].isdigit())

    def config(self) -> dict[str, Any]:
        """Return the configuration that a runtime takes: the first file by name."""
        files = [path for path in self._conf_dir.iterdir() if path.suffix in _SUFFIXES]
        document: dict[str, Any] = json.loads(min(files).read_text())
        return document

    def add(self, name: str, namespace: Namespace, **runtime_config: object) -> Container:
        """Connect a pod; `runtime_config` is by capability, e.g. `portMappings`.

        Where a plugin fails, everything is taken back and its error raised.
        """
        config, result = self.config(), None
        try:
            for plugin in config["plugins"]:
                stdin = self._stdin(config, plugin, result, runtime_config)
                result = self._call("ADD", name, namespace, stdin)
        except PluginError:
            self._delete(name, namespace, None, runtime_config)
            raise
        return Container(name, namespace, result or {}, runtime_config)

    def check(self, pod: Container) -> None:
        """Have every plugin compare the pod with what ADD answered. Raises PluginError."""
        config = self.config()
        for plugin in config["plugins"]:
            stdin = self._stdin(config, plugin, pod.result, pod.runtime_config)
            self._call("CHECK", pod.name, pod.namespace, stdin)

    def delete(self, pod: Container) -> None:
        """Disconnect a pod; once more does no harm."""
        self._delete(pod.name, pod.namespace, pod.result, pod.runtime_config)

    def _delete(
        self,
        name: str,
        namespace: Namespace,
        result: Mapping[str, Any] | None,
        runtime_config: Mapping[str, object],
    ) -> None:
        config = self.config()
        for plugin in reversed(config["plugins"]):
            stdin = self._stdin(config, plugin, result, runtime_config)
            self._call("DEL", name, namespace, stdin)

    def _call(
        self, verb: str, name: str, namespace: Namespace, stdin: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        done = subprocess.run(
            # Not `ip netns exec`: a mount namespace for each call costs more than the plugin.
            ["nsenter", f"--net={self._node.path}", PLUGINS / stdin["type"]],
            input=json.dumps(stdin),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            env=_environment(verb, name, namespace),
        )
        if done.returncode:
            raise PluginError(f"{verb} {stdin['type']}: {done.stdout.strip()} {done.stderr}")
        answer: dict[str, Any] | None = json.loads(done.stdout) if done.stdout.strip() else None
        return answer

    def _stdin(
        self,
        config: Mapping[str, Any],
        plugin: Mapping[str, Any],
        result: Mapping[str, Any] | None,
        runtime_config: Mapping[str, object],
    ) -> dict[str, Any]:
        document = _plugin_config(config, plugin, result, runtime_config)
        if "ipam" in document:
            document["ipam"] = {**document["ipam"], "dataDir": str(self._state / "networks")}
        return document


def _environment(verb: str, name: str, namespace: Namespace) -> dict[str, str]:
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": str(namespace.path) if namespace.exists else "",
        "CNI_IFNAME": INTERFACE,
        "CNI_PATH": str(PLUGINS),
        "CNI_ARGS": "",
    }


def _plugin_config(
    config: Mapping[str, Any],
    plugin: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    runtime_config: Mapping[str, object],
) -> dict[str, Any]:
    """Return what one plugin of the list reads on its standard input."""
    document = {**plugin, "name": config["name"], "cniVersion": config["cniVersion"]}
    if result is not None:
        document["prevResult"] = result
    wanted = {
        name: value
        for name, value in runtime_config.items()
        if plugin.get("capabilities", {}).get(name)
    }
    if wanted:
        document["runtimeConfig"] = wanted
    return document
