"""The command line: flannel's flags, Go's syntax, the environment, and refusals that help."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kersey_control.errors import InvalidInputError
from kersey_control.flags import HelpRequestedError, UsageError, flags_of, format_help
from kersey_control.options import (
    Admission,
    CniMode,
    Datapath,
    LogFormat,
    LogLevel,
    Options,
    SpoofCheck,
    Xdp,
    parse_etcd_flags,
    parse_options,
)

FLANNEL_DEFAULTS: Mapping[str, object] = {
    "etcd-endpoints": ("http://127.0.0.1:4001", "http://127.0.0.1:2379"),
    "etcd-prefix": "/coreos.com/network",
    "etcd-keyfile": None,
    "etcd-certfile": None,
    "etcd-cafile": None,
    "etcd-username": "",
    "etcd-password": "",
    "iface": (),
    "iface-regex": (),
    "iface-can-reach": None,
    "public-ip": None,
    "public-ipv6": None,
    "subnet-file": Path("/run/flannel/subnet.env"),
    "subnet-lease-renew-margin": 60,
    "ip-masq": False,
    "ip-masq-fully-random-disable": False,
    "kube-subnet-mgr": False,
    "kube-api-url": "",
    "kubeconfig-file": None,
    "kube-annotation-prefix": "flannel.alpha.coreos.com",
    "net-config-path": Path("/etc/kube-flannel/net-conf.json"),
    "set-node-network-unavailable": True,
    "healthz-ip": "0.0.0.0",  # noqa: S104  # flannel's default
    "healthz-port": 0,
    "iptables-resync": 5,
    "iptables-forward-rules": True,
    "ip-blackhole-route": False,
    "version": False,
    "v": 0,
    "vmodule": "",
    "log_backtrace_at": "",
}
OWN_DEFAULTS: Mapping[str, object] = {
    "datapath": Datapath.AUTO,
    "metrics-port": 0,
    "metrics-ip": "0.0.0.0",  # noqa: S104  # our default
    "metrics-peers": 100,
    "metrics-certfile": None,
    "metrics-keyfile": None,
    "metrics-cafile": None,
    "status-page": False,
    "probe-interval": 5,
    "probe-rate": 20,
    "probe-port": 8475,
    "log-format": LogFormat.TEXT,
    "log-level": None,
    "node-id": "",
    "state-dir": Path("/run/kersey"),
    "cache-dir": Path("/var/cache/kersey"),
    "bpf-dir": Path("/sys/fs/bpf/kersey"),
    "max-flows": 65536,
    "admission": Admission.STRICT,
    "spoof-check": SpoofCheck.DROP,
    "xdp": Xdp.OFF,
    "xdp-redirect": False,
    "audit-interval": 60,
    "cni-conf-dir": None,
    "cni-conf-name": "10-kersey.conflist",
    "cni-mode": CniMode.BRIDGE,
    "cni-network": "cbr0",
    "cni-bandwidth": False,
}


def parse(*argv: str, **environ: str) -> Options:
    return parse_options(argv, environ)


def run(*argv: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    program = "import os, sys; from kersey_control.options import read_options;"
    program += "read_options(sys.argv[1:], os.environ)"
    return subprocess.run(
        [sys.executable, "-c", program, *argv],
        env={**os.environ, "COLUMNS": "80", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_flag_has_its_name_and_default() -> None:
    options = parse()
    found = {entry.name: getattr(options, entry.field) for entry in flags_of(Options)}
    assert found == {**FLANNEL_DEFAULTS, **OWN_DEFAULTS}


def test_flannels_flags_and_no_others_are_read_from_flannels_variables() -> None:
    with_variable = {
        entry.name
        for entry in flags_of(Options)
        if f"FLANNELD_{entry.name.upper().replace('-', '_')}" in entry.variables
    }
    assert with_variable == set(FLANNEL_DEFAULTS)


def test_a_flannel_command_line_is_read_unchanged() -> None:
    options = parse(
        "-etcd-endpoints=https://198.18.0.1:2379,198.18.0.2:2379",
        "--etcd-prefix",
        "/net/",
        "-etcd-cafile=/ca.pem",
        "--iface=eth1",
        "-iface",
        "198.18.0.3",
        "--iface-regex",
        "^10\\.",
        "--iface-can-reach=198.18.0.9",
        "--public-ip",
        "203.0.113.7",
        "--public-ipv6=fd00::7",
        "-ip-masq",
        "--iptables-forward-rules=false",
        "--subnet-file=/tmp/x.env",
        "-subnet-lease-renew-margin",
        "90",
        "--healthz-port=8081",
        "-v",
        "4",
        "--vmodule=a=1",
        "--log_backtrace_at=x:1",
    )
    assert options.etcd_endpoints == ("https://198.18.0.1:2379", "198.18.0.2:2379")
    assert options.etcd_prefix == "/net"
    assert options.etcd_cafile == Path("/ca.pem")
    assert options.iface == ("eth1", "198.18.0.3")
    assert options.iface_regex == (re.compile("^10\\."),)
    assert options.iface_can_reach == IPv4Address("198.18.0.9")
    assert options.public_ip == IPv4Address("203.0.113.7")
    assert options.public_ipv6 == IPv6Address("fd00::7")
    assert options.ip_masq
    assert not options.iptables_forward_rules
    assert options.subnet_file == Path("/tmp/x.env")  # noqa: S108  # only a name here
    assert options.subnet_lease_renew_margin == 90
    assert options.healthz_port == 8081
    assert options.effective_log_level is LogLevel.DEBUG
    assert options.vmodule == "a=1"


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_a_switch_is_turned_on_by_each_of_gos_words(text: str) -> None:
    assert parse(f"--ip-masq={text}").ip_masq


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_a_switch_is_turned_off_by_each_of_gos_words(text: str) -> None:
    assert not parse(f"-iptables-forward-rules={text}").iptables_forward_rules


@pytest.mark.parametrize("text", ["", "yes", "no", "tRUE", "2"])
def test_any_other_word_is_no_boolean(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse(f"--ip-masq={text}")
    assert (caught.value.field, caught.value.value) == ("--ip-masq", text)


@pytest.mark.parametrize(
    ("argv", "rest"),
    [
        (["--ip-masq", "false", "--v=1"], ("false", "--v=1")),
        (["--ip-masq", "--", "--v=1"], ("--v=1",)),
        (["--ip-masq", "-", "--v=1"], ("-", "--v=1")),
        (["--ip-masq", "", "--v=1"], ("", "--v=1")),
    ],
)
def test_flags_end_where_go_ends_them(argv: Sequence[str], rest: tuple[str, ...]) -> None:
    options = parse(*argv)
    assert options.ip_masq
    assert options.v == 0
    assert options.ignored_arguments == rest


def test_a_value_may_look_like_a_flag_or_hold_equals_signs() -> None:
    options = parse("--etcd-username", "--v", "--etcd-password=a=b==")
    assert (options.etcd_username, options.etcd_password, options.v) == ("--v", "a=b==", 0)


def test_the_last_of_several_values_counts() -> None:
    assert parse("--healthz-port=1", "--healthz-port=2").healthz_port == 2


@pytest.mark.parametrize(
    ("text", "number"), [("0x1F91", 8081), ("010", 8), ("0o10", 8), ("0b11", 3), ("+7", 7)]
)
def test_numbers_are_read_as_gos_literals(text: str, number: int) -> None:
    assert parse(f"--healthz-port={text}").healthz_port == number


@pytest.mark.parametrize("text", ["", " 1", "1_0", "1.0", "1e3", "-1", "65536", "09", "\u0661"])
def test_a_port_is_a_plain_number_in_range(text: str) -> None:
    with pytest.raises(InvalidInputError, match="from 0 to 65535"):
        parse(f"--healthz-port={text}")


def test_the_command_line_wins_over_the_environment() -> None:
    options = parse(
        "--iface=eth1", FLANNELD_IFACE="eth2", KERSEY_IFACE="eth3", FLANNELD_PUBLIC_IP="198.18.0.1"
    )
    assert options.iface == ("eth1",)
    assert options.public_ip == IPv4Address("198.18.0.1")


def test_an_empty_flag_still_wins_over_the_environment() -> None:
    options = parse(
        "--iface=", "--public-ip=", FLANNELD_IFACE="eth2", FLANNELD_PUBLIC_IP="198.18.0.1"
    )
    assert options.iface == ()
    assert options.public_ip is None


def test_own_variables_win_over_flannels() -> None:
    assert parse(FLANNELD_V="1", KERSEY_V="2").v == 2


def test_an_empty_variable_counts_as_unset() -> None:
    options = parse(FLANNELD_HEALTHZ_PORT="", KERSEY_HEALTHZ_PORT="", FLANNELD_IFACE_REGEX="")
    assert options == parse()


def test_a_repeatable_flag_takes_one_value_from_the_environment() -> None:
    assert parse(FLANNELD_IFACE="eth1,eth2").iface == ("eth1,eth2",)


def test_own_flags_are_not_read_from_flannels_variables() -> None:
    assert parse(FLANNELD_DATAPATH="nonsense") == parse()
    assert parse(KERSEY_DATAPATH="bpf").datapath is Datapath.BPF


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLANNELD_HEALTHZ_PORT", "http"),
        ("KERSEY_HEALTHZ_PORT", "70000"),
        ("FLANNELD_IP_MASQ", "yes"),
        ("KERSEY_ADMISSION", "lax"),
    ],
)
def test_a_bad_variable_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse(**{name: value})
    assert (caught.value.field, caught.value.value) == (name, value)


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ("--public-ip=fd00::1", "an IPv4 address"),
        ("--public-ipv6=198.18.0.1", "an IPv6 address"),
        ("--iface-can-reach=example.org", "an IPv4 address"),
        ("--iface-regex=(", "a regular expression"),
        ("--iface-regex=[[:alpha:]]", "a regular expression"),
        ("--subnet-lease-renew-margin=0", "from 1 to 1439"),
        ("--subnet-lease-renew-margin=1440", "from 1 to 1439"),
        ("--iptables-resync=0", "from 1"),
        ("--subnet-file=", "a path"),
        ("--etcd-endpoints=", "host[:port]"),
        ("--etcd-endpoints=http://", "host[:port]"),
        ("--etcd-endpoints=127.0.0.1:0", "host[:port]"),
        ("--etcd-endpoints=127.0.0.1:x", "host[:port]"),
        ("--etcd-endpoints=ftp://a:1", "host[:port]"),
        ("--etcd-endpoints=http://[::1:2379", "host[:port]"),
        ("--etcd-prefix=", "a key prefix"),
        ("--datapath=ebpf", "one of auto, bpf, netlink"),
        ("--admission=", "one of strict, direct, off"),
        ("--spoof-check=on", "one of drop, count, off"),
        ("--xdp=on", "one of auto, native, generic, off"),
        ("--log-format=yaml", "one of text, json"),
        ("--log-level=trace", "one of debug, info, warning, error"),
        ("--node-id=a b", "letters, digits"),
        ("--audit-interval=0", "from 1"),
    ],
)
def test_a_bad_value_is_refused_with_flag_value_and_rule(argument: str, rule: str) -> None:
    flag, _, value = argument.partition("=")
    with pytest.raises(InvalidInputError) as caught:
        parse(argument)
    assert (caught.value.field, caught.value.value) == (flag, value)
    assert rule in caught.value.expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--helthz-port=1"],
            r"^--helthz-port: there is no such flag; did you mean --healthz-port\?",
        ),
        (["-ipmasq"], r"did you mean --ip-masq\?"),
        (["--xylophone"], r"^--xylophone: there is no such flag$"),
        (["---v=1"], r"^---v=1: expected a flag"),
        (["-=1"], r"^-=1: expected a flag"),
        (["--healthz-port"], r"^--healthz-port: needs a value, an integer from 0 to 65535"),
        (["--etcd-certfile=/c"], "expected --etcd-keyfile beside it"),
        (["--etcd-keyfile=/k"], "expected --etcd-certfile beside it"),
        (["--etcd-password=x"], "expected --etcd-username beside it"),
        (["--healthz-port=81", "--metrics-port=81"], "--metrics-port: got 81, expected another"),
        (
            ["--healthz-port=81", "--metrics-port=81", "--metrics-ip=127.0.0.1"],
            "--metrics-port: got 81, expected another",
        ),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(argv: Sequence[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(*argv)


def test_one_port_on_two_addresses_is_no_contradiction() -> None:
    options = parse(
        "--healthz-port=81", "--metrics-port=81", "--metrics-ip=127.0.0.1", "--healthz-ip=127.0.0.2"
    )
    assert options.metrics_port == options.healthz_port == 81


@pytest.mark.parametrize(
    ("given", "prefix"),
    [("/", ""), ("//a//b/", "/a/b"), ("a/b", "a/b"), ("/a/../b", "/b"), ("/a/./b", "/a/b")],
)
def test_the_prefix_names_the_keys_that_go_would(given: str, prefix: str) -> None:
    assert parse(f"--etcd-prefix={given}").etcd_prefix == prefix


@pytest.mark.parametrize(
    ("argv", "level"),
    [
        ([], LogLevel.INFO),
        (["-v=0"], LogLevel.INFO),
        (["-v=1"], LogLevel.DEBUG),
        (["-v=10", "--log-level=warning"], LogLevel.WARNING),
    ],
)
def test_verbosity_means_debug_unless_a_level_is_named(
    argv: Sequence[str], level: LogLevel
) -> None:
    assert parse(*argv).effective_log_level is level


@pytest.mark.parametrize("argument", ["-h", "-help", "--help"])
def test_help_is_asked_for_as_in_go(argument: str) -> None:
    with pytest.raises(HelpRequestedError):
        parse("--ip-masq", argument, "--nonsense")


def test_a_password_stays_out_of_what_is_printed_of_the_options() -> None:
    assert "hunter2" not in repr(parse("--etcd-username=u", "--etcd-password=hunter2"))


def test_the_etcd_flags_can_be_read_alone() -> None:
    parsed = parse_etcd_flags(["--etcd-prefix=/x", "leases"], {"KERSEY_ETCD_ENDPOINTS": "a:1"})
    assert (parsed.values.etcd_prefix, parsed.values.etcd_endpoints) == ("/x", ("a:1",))
    assert parsed.rest == ("leases",)
    with pytest.raises(UsageError, match="no such flag"):
        parse_etcd_flags(["--ip-masq"], {})


@given(
    st.lists(
        st.sampled_from([f"--{entry.name}" for entry in flags_of(Options)])
        | st.builds(
            "-{}={}".format,
            st.sampled_from([entry.name for entry in flags_of(Options)]),
            st.text("a1:/.,[]()*\\-= \0", max_size=8),
        )
        | st.text("a1-=/", max_size=6),
        max_size=4,
    )
)
def test_any_command_line_gives_options_or_a_named_refusal(argv: list[str]) -> None:
    try:
        options = parse_options(argv, {})
    except (UsageError, InvalidInputError, HelpRequestedError):
        return
    assert isinstance(options, Options)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_help_lists_every_flag_within_the_width(width: int) -> None:
    text = format_help(flags_of(Options), width=width)
    for entry in flags_of(Options):
        mark = "+" if entry.row.own else " "
        assert f"\n{mark} {entry.dashed}" in text
    if width >= 80:
        assert max(map(len, text.splitlines())) <= width


def test_help_goes_to_stdout_and_succeeds() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: kerseyd")
    assert "\nUplink:\n" in done.stdout


def test_version_goes_to_stdout_and_succeeds_whatever_else_is_given() -> None:
    done = run("--version", "--kube-subnet-mgr")
    assert (done.returncode, done.stdout, done.stderr) == (0, "kersey 0.1.0\n", "")


def test_a_refusal_goes_to_stderr_with_exit_2() -> None:
    done = run("--datapth=bpf")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--datapth: there is no such flag; did you mean --datapath?" in done.stderr
    done = run(FLANNELD_HEALTHZ_PORT="http")
    assert done.returncode == 2
    assert "FLANNELD_HEALTHZ_PORT: got 'http', expected an integer" in done.stderr


@pytest.mark.parametrize(
    "argument",
    [
        "--cni-conf-name=10-kersey.conf",
        "--cni-conf-name=../10-kersey.conflist",
        "--cni-conf-name=.conflist",
        "--cni-network=",
        "--cni-network=-x",
        "--cni-network=a/b",
        "--cni-mode=ptp",
    ],
)
def test_a_cni_option_that_no_runtime_would_take_is_refused(argument: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_options([argument], {})
