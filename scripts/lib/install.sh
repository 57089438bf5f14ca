# shellcheck shell=bash
# What the scripts share: install what a fresh Debian lacks, make the venv, run things privately.
#
# Promises: packages come from the distribution and are only added; no service is started or left
# enabled; nothing is installed twice. Never writes outside the repository except through apt-get.
# To be sourced; sets `repo`, `venv`, `system_python` and `privately`.

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$repo/.venv
system_python=/usr/bin/python3
policy=/usr/sbin/policy-rc.d

say() { printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2; }

die() {
	say "$2"
	exit "$1"
}

need_root() { [ "$(id -u)" = 0 ] || die 2 "must be root: run with sudo $0"; }

has() { command -v "$1" >/dev/null; }

python_has() {
	"$system_python" -c "import importlib.util, sys
sys.exit(importlib.util.find_spec('$1') is None)" 2>/dev/null
}

# The names of the packages that are missing, found by what they bring: other systems name them
# differently. $1 is `test` for what only the tests need, `bench` for the datapath benchmark.
missing_packages() {
	has unshare || echo util-linux
	has mount || echo mount
	has ip || echo iproute2
	has ping || echo iputils-ping
	has nft || echo nftables
	has iptables-restore || echo iptables
	has etcd || echo etcd-server
	has etcdctl || echo etcd-client
	[ -x "$system_python" ] || echo python3
	python_has ensurepip || echo python3-venv
	python_has bcc || echo python3-bpfcc # compiles the fast path's programs
	[ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
	[ "$1" != test ] || missing_test_packages
	[ "$1" != bench ] || missing_bench_packages
}

missing_test_packages() {
	has openssl || echo openssl
	has conntrack || echo conntrack
	has ethtool || echo ethtool
	[ -x /usr/lib/cni/bridge ] || echo containernetworking-plugins
	has promtool || echo prometheus # the server too, which scrapes the testbed
	has chromium || echo chromium # shows the status page
	has vagrant || echo vagrant # validates the Vagrantfile; Ruby comes with it
	[ -e /usr/share/vagrant-plugins/plugins.d/vagrant-libvirt.json ] || echo vagrant-libvirt
	has systemd-analyze || echo systemd # verifies the units
}

missing_bench_packages() {
	has iperf3 || echo iperf3
	has conntrack || echo conntrack
	has tcc || echo tcc # compiles the load tool
	[ -e /usr/include/stdio.h ] || echo libc6-dev
}

# The machines have everything else in their own image.
missing_vm_packages() {
	has qemu-system-x86_64 || echo qemu-system-x86
	has qemu-img || echo qemu-utils
	has mmdebstrap || echo mmdebstrap
	has mke2fs || echo e2fsprogs
	has depmod || echo kmod
	has ssh || echo openssh-client
	has ip || echo iproute2
	python_has ensurepip || echo python3-venv # pip, for the package's wheels
}

prepare_vms() {
	local packages
	mapfile -t packages < <(missing_vm_packages)
	[ "${#packages[@]}" = 0 ] || install_packages "${packages[@]}"
}

install_packages() {
	has apt-get || die 1 "please install what provides: $*"
	say "installing packages: $*"
	export DEBIAN_FRONTEND=noninteractive
	local apt=(apt-get -q -o DPkg::Lock::Timeout=300)
	"${apt[@]}" update >&2 || say "the package lists are not all fresh; trying with what there is"
	without_services "${apt[@]}" install -y --no-install-recommends "$@" >&2 ||
		die 1 "apt-get could not install: $*"
}

# Runs a command during which package scripts may not start services, and afterwards takes those that
# it brought out of the boot sequence: the testbed runs its own etcd and Prometheus.
without_services() (
	brought=()
	for service in etcd prometheus; do
		has "$service" || brought+=("$service")
	done
	[ ! -e "$policy" ] || mv -- "$policy" "$policy.before-kersey"
	trap 'rm -f -- "$policy"; [ ! -e "$policy.before-kersey" ] || mv -- "$policy.before-kersey" "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	"$@" || exit
	for service in "${brought[@]}"; do
		! has "$service" || update-rc.d "$service" disable >&2 # for init scripts and for units
	done
)

# What the installed environment depends on; $1 is the extra.
stamp_of() { echo "$1 $(sha256sum <"$repo/pyproject.toml") $("$system_python" --version)"; }

venv_is_current() {
	[ -e "$venv/.kersey-stamp" ] || return
	local stamp
	stamp=$(cat "$venv/.kersey-stamp")
	# With the tests' needs installed it serves the demo too.
	[ "$stamp" = "$(stamp_of test)" ] || [ "$stamp" = "$(stamp_of "$1")" ]
}

make_venv() {
	"$system_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		die 1 "needs Python 3.11 or newer at $system_python, found $("$system_python" --version)"
	if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
		say "making the virtual environment $venv"
		"$system_python" -m venv --clear "$venv" || die 1 "cannot make $venv"
	fi
	say "installing Python packages into $venv (a minute or two)"
	rm -f -- "$venv/.kersey-stamp"
	local wanted=$repo
	[ "$1" != test ] || wanted="${repo}[test]"
	"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 -e "$wanted" >&2 ||
		die 1 "pip could not install Kersey"
	[ "$1" != test ] || make_wheels
	stamp_of "$1" >"$venv/.kersey-stamp"
}

# What the tests build the Debian package of: their namespaces have no network.
make_wheels() {
	rm -rf -- "$venv/wheels"
	"$repo/deploy/image/build-wheels" "$venv/wheels" >&2 || die 1 "pip could not build the wheels"
}

# Everything the demo needs; with `test` or `bench`, everything the tests or the benchmark need.
prepare() {
	local packages extra=$1
	[ "$extra" != bench ] || extra=demo # the same Python packages
	mapfile -t packages < <(missing_packages "$1")
	[ "${#packages[@]}" = 0 ] || install_packages "${packages[@]}"
	venv_is_current "$extra" || make_venv "$extra"
}

# A prefix for commands: their namespaces, mounts and files below /run are seen by nobody else and end
# with them. /run as a whole: iptables and `ip netns` keep locks and names there.
# shellcheck disable=SC2016,SC2034  # expanded by the inner shell; used by those who source this
privately=(
	unshare --mount --net --propagation private -- sh -c
	'mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/netns && ip link set lo up && exec "$@"' sh
)
