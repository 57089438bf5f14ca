"""What this node holds for itself, besides peers: device, address, rules, blackhole, subnet.env.

Every step is idempotent and is taken again whenever something may have changed. A step that fails
is reported once and does not keep the others from being taken: pods without masquerade still reach
pods.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network

from kersey_control.backends.base import Backend
from kersey_control.cni import CniConfig, first_config, write_cni_config
from kersey_control.errors import KernelError
from kersey_control.leftovers import leave_network
from kersey_control.masquerade import Rules, open_rules
from kersey_control.netconfig import NetworkConfig
from kersey_control.netlink import Links
from kersey_control.options import Options
from kersey_control.rules.base import Hazard
from kersey_control.status import Status
from kersey_control.subnet_file import SubnetFile, read_network, write_subnet_file
from kersey_control.uplink import Uplink

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Place:
    """Our subnet, and the rules that belong to it; None while the engine cannot be had."""

    subnet: IPv4Network
    rules: Rules | None


class LocalNode:
    """Keep this node's own part of the overlay in place. One thread at a time."""

    def __init__(
        self,
        *,
        options: Options,
        config: NetworkConfig,
        backend: Backend,
        links: Links,
        status: Status,
    ) -> None:
        self._options = options
        self._config = config
        self._backend = backend
        self._links = links
        self._status = status
        self._place: _Place | None = None
        self._hazards: frozenset[Hazard] = frozenset()
        self._troubles: dict[str, str] = {}

    def settle(self, subnet: IPv4Network) -> None:
        """Move into a subnet: address the device, put the rules up, tell the CNI plugin."""
        self._place = _Place(subnet, None)
        self._attempt("former network", self._leave_former_network)
        self._attempt("address", lambda: self._backend.assign(subnet))
        self.check_rules()
        self._attempt("subnet file", self._write_subnet_file)
        self._attempt("CNI configuration", self._write_cni_config)

    def check_device(self, uplink: Uplink) -> None:
        """Put the device, its address and subnet.env right. Raises KernelError without a device."""
        self._backend.prepare(uplink)
        self._status.mtu = self._backend.mtu
        if self._place is not None:
            self._backend.assign(self._place.subnet)
            self._attempt("subnet file", self._write_subnet_file)
            self._attempt("CNI configuration", self._write_cni_config)

    def check_rules(self) -> None:
        """Put the rules and, where asked for, the blackhole route right."""
        if self._place is None:
            return
        self._attempt("rules", self._ensure_rules)
        if self._options.ip_blackhole_route:
            subnet = self._place.subnet
            self._attempt("blackhole route", lambda: self._links.keep_blackhole(subnet))

    def check_hazards(self) -> None:
        """Report, once each, what others put where it stops pods' forwarded packets."""
        self._attempt("hazards", self._look_for_hazards)

    def _attempt(self, step: str, action: Callable[[], object]) -> None:
        try:
            action()
        except (KernelError, OSError) as error:
            if self._troubles.get(step) != str(error):
                logger.error("step failed", extra={"step": step, "reason": str(error)})  # noqa: TRY400  # the reason says it all
            self._troubles[step] = str(error)
        else:
            if self._troubles.pop(step, None) is not None:
                logger.info("step works again", extra={"step": step})
        self._status.setup_troubles = dict(self._troubles)

    def _leave_former_network(self) -> None:
        """Remove what belongs to the network that subnet.env, not written anew yet, still names."""
        former, network = read_network(self._options.subnet_file), self._config.network
        if former is not None and former != network:
            leave_network(former, network, self._links)

    def _ensure_rules(self) -> None:
        place = self._place
        if place is None:
            return
        if place.rules is None:
            rules = self._open_rules(place.subnet)
            rules.ensure()
            rules.remove_other()
            self._place = _Place(place.subnet, rules)
            self._look_for_hazards()
        elif place.rules.ensure():
            self._status.repairs = self._status.repairs + Counter(rules=1)  # += works in place

    def _open_rules(self, subnet: IPv4Network) -> Rules:
        return open_rules(
            nftables=self._config.enable_nftables,
            network=self._config.network,
            subnet=subnet,
            masquerade=self._options.ip_masq,
            forward=self._options.iptables_forward_rules,
            random_fully=not self._options.ip_masq_fully_random_disable,
        )

    def _look_for_hazards(self) -> None:
        if self._place is None or self._place.rules is None:
            return
        found = frozenset(self._place.rules.hazards())
        for hazard in found - self._hazards:
            logger.warning(
                "a foreign rule stops pod traffic", extra={"rule": hazard.rule, "why": hazard.why}
            )
        self._hazards = found
        in_order = sorted(found, key=lambda hazard: hazard.rule)
        self._status.foreign_rules = {hazard.rule: hazard.why for hazard in in_order}

    def _write_subnet_file(self) -> None:
        if self._place is None:
            return
        content = SubnetFile(
            network=self._config.network,
            subnet=self._place.subnet,
            mtu=self._backend.mtu,
            ip_masq=self._options.ip_masq,
        )
        if write_subnet_file(self._options.subnet_file, content):
            logger.info(
                "subnet file written",
                extra={"path": str(self._options.subnet_file), "mtu": content.mtu},
            )

    def _write_cni_config(self) -> None:
        folder = self._options.cni_conf_dir
        if self._place is None or folder is None:
            return
        path = folder / self._options.cni_conf_name
        content = CniConfig(
            name=self._options.cni_network,
            network=self._config.network,
            subnet=self._place.subnet,
            mtu=self._backend.mtu,
            mode=self._options.cni_mode,
            bandwidth=self._options.cni_bandwidth,
        )
        if not write_cni_config(path, content):
            return
        logger.info("CNI configuration written", extra={"path": str(path), "mtu": content.mtu})
        if (first := first_config(folder)) != path:
            logger.warning("runtimes take another CNI configuration", extra={"path": str(first)})
