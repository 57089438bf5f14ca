"""The operator's command line, as far as it needs no network."""

import io
import json
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kersey_control import cli
from kersey_control.cli import text
from kersey_control.cli.config import unknown_names
from kersey_control.cli.flows import Wanted, reason
from kersey_control.cli.schema import FlowsFlags
from kersey_control.cli.share import fast_and_slow, share_text
from kersey_control.cli.status import status_lines
from kersey_control.errors import AlreadyRunningError, InvalidInputError, KerseyError
from kersey_control.flags import UsageError, flags_of, parse_flags
from kersey_control.lock import expect_no_other, sole_user
from kersey_control.told import (
    ToldDatapath,
    ToldFastPath,
    ToldLease,
    ToldPeers,
    ToldStatus,
    ToldStore,
    ToldXdp,
)
from kersey_loader.layout import Verdict
from operator_values import flow


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"], {}) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)
    assert "\n  2  bad command line" in printed


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run([], {})
    assert "Usage: kersey COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_each_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run([*name.split(), "--help"], {})
    printed = capsys.readouterr().out
    arguments = "".join(f" {each}" for each in cli.COMMANDS[name].arguments)
    assert printed.startswith(f"Usage: kersey {name}{arguments} [flags]\n")
    assert "\nExit status:\n  0  done\n" in printed


@pytest.mark.parametrize("word", ["--help", "-h", "help"])
@pytest.mark.parametrize(("first", "whole"), [("flush", "flush flows"), ("config", "config check")])
def test_the_first_of_two_words_has_the_help_of_what_it_begins(
    first: str, whole: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([first, word], {}) == 0
    printed = capsys.readouterr().out
    cli.run([*whole.split(), "--help"], {})
    assert printed == capsys.readouterr().out


def test_the_doctors_help_says_what_its_exit_status_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.run(["doctor", "-h"], {})
    printed = capsys.readouterr().out
    assert "  3  something should be looked at" in printed
    assert "  4  something keeps packets from arriving" in printed


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["version"], {})
    assert capsys.readouterr().out.startswith("kersey 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lease"], "got 'lease', expected one of version, status"),
        (["flush"], "got 'flush', expected one of flush flows"),
        (["flush", "peers"], "got 'flush peers', expected one of flush flows"),
        (["trace", "10.0.0.1"], "kersey trace: DST is missing"),
        (["trace", "--json"], "kersey trace: SRC is missing"),
        (["trace", "a", "b", "c"], "got 'c', expected nothing more"),
        (["version", "surplus"], "got 'surplus', expected nothing more"),
        (["status", "--jsn"], "did you mean --json"),
        (["flows", "--port"], "--port: needs a value"),
    ],
)
def test_a_bad_command_line_is_refused_in_words(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cli.run(words, {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flows", "--protocol=icmp6"], "--protocol: got 'icmp6', expected one of tcp, udp, icmp"),
        (["flows", "--port=0"], "--port: got '0', expected an integer from 1 to 65535"),
        (["flows", "--peer=10.244.1.1/24"], "--peer: got .*, expected an IPv4 address, or a sub"),
        (["drops", "--reason=fast"], "--reason: got 'fast', expected one of witnessed, unrelated"),
        (["drops", "--rate=0"], "--rate: got '0', expected an integer from 1 to 100000"),
        (["drops", "--count=0"], "--count: got '0', expected an integer above 0"),
        (["trace", "10.0.0.1", "x"], "DST: got 'x', expected an IPv4 address"),
        (["completion", "tcsh"], "shell: got 'tcsh', expected one of bash, zsh, fish"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected(words: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        cli.run(words, {})


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "FILE"],
        ["FILE", "--json"],
        ["--json", "--", "FILE"],
        ["FILE", "-json=true"],
    ],
)
def test_flags_and_arguments_may_stand_in_any_order(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "net-conf.json"
    file.write_text('{"Network": "10.9.0.0/16"}')
    cli.run(["config", "check", *(str(file) if word == "FILE" else word for word in words)], {})
    assert json.loads(capsys.readouterr().out)["config"]["network"] == "10.9.0.0/16"


def test_the_environment_says_where_things_are_but_never_what_to_show(tmp_path: Path) -> None:
    # Kubernetes sets the first of these beside a service called kersey.
    environ = {
        "KERSEY_PORT": "tcp://10.96.0.7:80",
        "KERSEY_PROTOCOL": "sctp",
        "KERSEY_STATE_DIR": str(tmp_path / "elsewhere"),
    }
    with pytest.raises(KerseyError, match=f"--state-dir={tmp_path}/elsewhere"):
        cli.run(["status", "--json"], environ)
    with pytest.raises(KerseyError, match="nothing of a fast path is pinned"):
        cli.run(["flows", f"--bpf-dir={tmp_path}"], environ)


def test_cleanup_asks_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(KerseyError, match="expected root"):
        cli.run(["cleanup"], {})


def test_the_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    subnet_file = tmp_path / "run" / "subnet.env"
    with sole_user(subnet_file), pytest.raises(AlreadyRunningError), sole_user(subnet_file):
        pass
    with sole_user(subnet_file):
        pass


def test_cleanup_waits_for_a_daemon_with_other_folders(tmp_path: Path) -> None:
    own = tmp_path / "own" / "subnet.env"
    expect_no_other(own)
    with (
        sole_user(tmp_path / "the other" / "subnet.env"),
        sole_user(own),
        pytest.raises(AlreadyRunningError, match="the other/subnet"),
    ):
        expect_no_other(own)
    with sole_user(own):
        expect_no_other(own)


def checked(config: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(config.encode())))
    return cli.run(["config", "check", *flags, "-"], {})


def test_a_config_is_shown_with_its_defaults_filled_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text_ = '{"Network": "10.9.0.0/16", "SubnetLen": 25, "Backend": {"Type": "vxlan", "VNI": 7}}'
    assert checked(text_, monkeypatch) == 0
    printed = capsys.readouterr()
    lines = dict(line.split(None, 1) for line in printed.out.splitlines())
    assert lines["subnets"] == "/25 from 10.9.0.128 to 10.9.255.128"
    assert lines["nodes"] == "511"
    assert lines["pods"] == "a node    125"
    assert lines["vni"] == "7"
    assert lines["port"] == "8472"
    assert lines["mtu"] == "the uplink's"
    assert lines["overhead"] == "50 bytes a packet"
    assert printed.err == ""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"Network": "10.9.0.0"}', "-: Network: got '10.9.0.0', expected an IPv4 network"),
        ('{"Network": "10.9.0.0/16", "Backend": {"Type": "x"}}', "-: Backend.Type: got 'x', exp"),
        ("nonsense", "-: network config: got .*, expected a JSON object"),
    ],
)
def test_a_config_that_cannot_be_used_names_the_field(
    config: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KerseyError, match=message) as raised:
        checked(config, monkeypatch)
    assert not isinstance(raised.value, InvalidInputError)  # the command line was right


def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KerseyError, match="absent: No such file"):
        cli.run(["config", "check", str(tmp_path / "absent")], {})


def test_misspelt_fields_are_named_as_they_are_silently_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text_ = '{"network": "10.9.0.0/16", "SubnetLenght": 25, "BACKEND": {"vni": 7, "MTUs": 1}}'
    assert checked(text_, monkeypatch, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ignored"] == ["SubnetLenght", "BACKEND.MTUs"]
    assert list(unknown_names({"Backend": "text"})) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("kersey ''", {"status", "doctor", "flush", "config"}),
        ("kersey st", {"status"}),
        ("kersey flush ''", {"flows"}),
        ("kersey config ''", {"check"}),
        ("kersey completion ''", {"bash", "zsh", "fish", "--help"}),
        ("kersey flows --pr", {"--protocol"}),
        ("kersey flows --protocol ''", {"tcp", "udp", "icmp"}),
        ("kersey flows --port ''", set()),
        ("cd /etc; kersey flows --state-dir host", {"hostname", "hosts"}),
        ("cd /etc; kersey config check hostn", {"hostname"}),
        ("kersey flush flows --s", {"--subnet-file", "--state-dir"}),
        ("kersey trace --po", {"--port"}),
        ("kersey drops --reason unk", {"unknown_node"}),
        ("kersey drops --sec", {"--seconds"}),
    ],
)
def test_bash_completes(line: str, expected: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["completion", "bash"], {})
    script = capsys.readouterr().out
    start, _, line = line.rpartition("; ")
    words = f"{start or ':'}; COMP_WORDS=({line}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))"
    ask = f'{script}\n{words}\n_kersey\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = set(done.stdout.split())
    assert expected <= found
    if len(expected) < 4 and "host" not in line:  # else there may be others
        assert found == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_flag(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["completion", shell], {}) == 0
    script = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert all(word in script for word in name.split())
        for entry in flags_of(command.schema):
            assert (f"-l {entry.name} " if shell == "fish" else entry.dashed) in script


VERDICTS = {
    "from_pod": {"fast": 60, "control": 5},
    "from_uplink": {"fast": 30, "stale": 4, "unrelated": 1000},
    "to_overlay": {"witnessed": 5, "unrelated": 900},
    "to_uplink": {"witnessed": 1},
    "to_pod": {"witnessed": 4},
}


def test_the_share_counts_each_packet_between_nodes_once() -> None:
    assert share_text(*fast_and_slow(VERDICTS)) == "90.0 % of 100 packets"
    redirected = {**VERDICTS, "wire": {"fast": 100, "decapsulated": 30}}
    assert share_text(*fast_and_slow(redirected)) == "95.0 % of 200 packets"


@pytest.mark.parametrize("program", ["from_uplink", "wire"])
def test_forged_packets_are_no_part_of_the_share_whoever_drops_them(program: str) -> None:
    flood = {**VERDICTS, program: {**VERDICTS.get(program, {}), "foreign_source": 10**6}}
    assert share_text(*fast_and_slow(flood)) == "90.0 % of 100 packets"


def test_a_share_of_nothing_is_said_in_words() -> None:
    assert share_text(*fast_and_slow({})) == "no packets yet"


def told(**fields: Any) -> ToldStatus:
    return msgspec.structs.replace(ToldStatus("1.2"), **fields)


def test_status_says_where_xdp_runs_if_it_was_asked_for() -> None:
    for xdp, line in ((None, []), (ToldXdp("native", "by driver"), ["xdp native: by driver"])):
        state = told(fast_path=ToldFastPath(xdp=xdp))
        lines = [" ".join(each) for each in status_lines(state, now=0.0)]
        assert [each for each in lines if each.startswith("xdp")] == line


def test_status_says_what_is_wrong_at_the_end() -> None:
    state = told(
        ready=False,
        silent_seconds=44.0,
        datapath=ToldDatapath("bpf", "loaded"),
        fast_path=ToldFastPath(
            {**VERDICTS, "to_pod": {"unknown_node": 1200, "pod_tunnel": 34}},
            {"attach": "no such device"},
        ),
        lease=ToldLease(None, "somebody else holds it"),
        store=ToldStore(connected=False, trouble="refused"),
        peers=ToldPeers(9, 2, {f"10.1.{n}.0/24": "why" for n in range(7)}),
        skipped_records=3,
        subnet="10.1.0.0/24",
        network="10.1.0.0/16",
    )
    lines = [" ".join(line) for line in status_lines(state, now=0.0)]
    assert lines[0] == "daemon kerseyd 1.2, not ready yet, pid 0"
    assert "lease 10.1.0.0/24 of 10.1.0.0/16, ends never" in lines
    assert "store lost: refused" in lines
    assert "forged 1,234 tunnel packets so far (kersey drops shows them live)" in lines
    assert lines[-11:] == [
        "peers 9 desired, 2 programmed, 7 failing",
        *(f"failing 10.1.{n}.0/24: why" for n in range(5)),
        "failing and 2 more (kersey peers)",
        "warning daemon: the control loop has been silent for 44 s",
        "warning attach: no such device",
        "warning lease: somebody else holds it",
        "warning store: 3 records skipped so far",
    ]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (12_345, "12.3 kB"),
        (123_456_789, "123 MB"),
        (5e18, "5000 PB"),
    ],
)
def test_bytes_are_shown_in_a_unit_that_fits(size: float, expected: str) -> None:
    assert text.amount(size) == expected


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    lines = list(text.table(("A", "LONG"), [("wide cell", "x"), ("y", "")]))
    assert lines == ["A          LONG", "wide cell  x", "y"]


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ([], True),
        (["--pod=10.244.1.2"], True),
        (["--pod=10.244.2.2"], False),
        (["--peer=198.18.0.12"], True),
        (["--peer=10.244.2.2"], True),
        (["--peer=10.244.2.0/24"], True),
        (["--peer=10.244.3.0/24"], False),
        (["--peer=10.244.1.2"], False),
        (["--port=40000"], True),
        (["--port=80"], True),
        (["--port=81"], False),
        (["--protocol=tcp"], True),
        (["--protocol=udp"], False),
        (["--protocol=tcp", "--port=81"], False),
    ],
)
def test_flows_are_picked_by_pod_peer_port_and_protocol(words: list[str], *, fits: bool) -> None:

    flags = parse_flags(FlowsFlags, words, {}).values
    wanted = Wanted(flags.pod, flags.peer, flags.port, flags.protocol)
    assert wanted.fits(flow(), IPv4Address("198.18.0.12")) is fits


@pytest.mark.parametrize(
    ("verdict", "ages", "expected"),
    [
        (Verdict.NOT_ADMITTED, (1.0, None), "not seen going in through the stack unchanged"),
        (Verdict.NOT_ADMITTED, (None, None), "not seen going out or in through the stack unch"),
        (Verdict.STALE, (9.0, 9.0), "idle, next packet is re-checked by the stack"),
        (Verdict.PORT_GONE, (1.0, 1.0), "its pod port is gone"),
        (Verdict.ROOM, (1.0, 1.0), "the kernel refuses"),
    ],
)
def test_a_slow_flow_has_a_reason(
    verdict: Verdict, ages: tuple[float | None, float | None], expected: str
) -> None:
    assert reason(flow(verdict=verdict, ages=ages)).startswith(expected)
