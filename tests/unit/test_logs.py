"""The two log formats, as another process reads them from stderr."""

import json
import re
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from ipaddress import IPv4Address
from kersey_control.logs import configure_logging
from kersey_control.options import LogFormat, LogLevel

configure_logging(LogFormat.TEXT, LogLevel.ERROR)
configure_logging(LogFormat(sys.argv[1]), LogLevel(sys.argv[2]))
log = logging.getLogger("kersey_control.subnets.etcd")
log.debug("detail")
log.info("lease taken", extra={"subnet": IPv4Address("10.0.0.1"), "why": 'a "b"\\nc', "n": 3,
                               "empty": "", "time": "mine", "text": "\\u00fc"})
logging.getLogger("pyroute2").info("chatter")
logging.getLogger("pyroute2").warning("two\\nlines")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("loop failed", extra={"turn": 7})
"""


def lines_of(form: str, level: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", PROGRAM, form, level],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_text_lines_have_time_level_place_message_and_fields() -> None:
    lines = lines_of("text", "info")
    head, _, rest = lines[0].partition(" ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", head)
    assert rest == (
        r'info etcd lease taken subnet=10.0.0.1 why="a \"b\"\nc" n=3 empty="" time=mine text="ü"'
    )
    assert lines[1].endswith(r"warning pyroute2 two\nlines")
    assert lines[2].endswith("error etcd loop failed turn=7")
    assert lines[3].startswith("Traceback")
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_json_lines_are_objects_with_the_same_fields() -> None:
    taken, foreign, failed = map(json.loads, lines_of("json", "info"))
    assert re.fullmatch(r"\d{4}-.*Z", taken.pop("time"))
    assert taken == {
        "level": "info",
        "logger": "kersey_control.subnets.etcd",
        "message": "lease taken",
        "subnet": "10.0.0.1",
        "why": 'a "b"\nc',
        "n": 3,
        "empty": "",
        "text": "ü",
    }
    assert (foreign["logger"], foreign["message"]) == ("pyroute2", "two\nlines")
    assert failed["turn"] == 7
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("level", "messages"),
    [
        ("debug", ["detail", "lease taken", "two\nlines", "loop failed"]),
        ("warning", ["two\nlines", "loop failed"]),
    ],
)
def test_the_level_is_for_our_own_records(level: str, messages: list[str]) -> None:
    assert [json.loads(line)["message"] for line in lines_of("json", level)] == messages
