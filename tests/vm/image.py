"""The disk that every machine starts from: Debian with what a node may have, before Kersey."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from vm.archive import RELEASE, default_suites, sources
from vm.cache import cached, fingerprint
from vm.command import run
from vm.disk import make_disk

_PACKAGES = (
    *(
        "systemd-sysv",
        "dbus",
        "udev",
        "kmod",
        "procps",
        "sudo",
        "ca-certificates",
        "openssh-server",
    ),
    *("iproute2", "iputils-ping", "nftables", "iptables", "conntrack", "ethtool", "tcpdump"),
    *("python3", "python3-venv", "python3-bpfcc", "etcd-server", "etcd-client"),
    *("containernetworking-plugins", "iperf3"),
)

_NETWORK = """[Match]
Name=eth0

[Network]
DHCP=ipv4
Gateway=10.0.2.2
"""
"""QEMU offers no way out where it is restricted to this machine; the route is part of the trap that
eth0 is in every Vagrant machine: a default route by an address that all machines have."""

_SETUP = f"""set -e
root=$1
mkdir -p "$root/root/.ssh" "$root/usr/lib/modules"
cp "$2" "$root/root/.ssh/authorized_keys"
chmod -R go= "$root/root/.ssh"
: >"$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/var/lib/dbus/machine-id"
cat >"$root/etc/systemd/network/eth0.network" <<'END'
{_NETWORK}END
systemctl --root="$root" enable systemd-networkd systemd-network-generator >&2
systemctl --root="$root" disable etcd apt-daily.timer apt-daily-upgrade.timer nftables >&2
systemctl --root="$root" mask systemd-networkd-wait-online serial-getty@ttyS0 systemd-logind >&2
printf 'UseDNS no\\nUsePAM no\\nLoginGraceTime 0\\n' >"$root/etc/ssh/sshd_config.d/lab.conf"
"""
"""$1 is the new root, $2 the public key. machine-id stays empty: each machine makes its own.

No services of login sessions: on a busy host an emulated machine would do little else than start
them, time them out and start them again."""

_MEGABYTES = 4096


@dataclass(frozen=True, slots=True)
class Image:
    """A disk to make overlays of, and the key that opens every machine made of it."""

    disk: Path
    key: Path


def image() -> Image:
    """Return the image, built if its recipe has changed or there is none. Raises VmError."""
    recipe = fingerprint(RELEASE, *_PACKAGES, _SETUP, str(_MEGABYTES))
    made = cached(f"image-{recipe}", _build)
    return Image(disk=made / "root.ext4", key=made / "key")


def _build(made: Path) -> None:
    key = made / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "kersey-vm", "-f", key])
    with tempfile.TemporaryDirectory(prefix="kersey-image-") as scratch:
        setup = Path(scratch) / "setup"
        setup.write_text(_SETUP)
        root = Path(scratch) / "root"
        run(
            [
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"),
                f"--include={','.join(_PACKAGES)}",
                f'--customize-hook=sh {setup} "$1" {key}.pub',
                *(RELEASE, root),
                *sources(*default_suites()),
            ]
        )
        make_disk(made / "root.ext4", root, megabytes=_MEGABYTES)
