"""When the demo fails, and with which words."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from testbed import Backend, Form, Reach, WireTally, cli, demo
from testbed.demo import Outcome, Traffic

UNEXPECTED = "plain packet 10.244.1.2 > 10.244.2.2 from node1 to node2"


def outcome(
    *, rtt_ms: float | None = 0.1, unexpected: tuple[str, ...] = (), **counts: int
) -> Outcome:
    pods: list[Any] = [
        SimpleNamespace(name=f"pod{n}", node=SimpleNamespace(name=f"node{n}", link=1))
        for n in (1, 2)
    ]
    cluster: Any = SimpleNamespace(nodes=[pod.node for pod in pods], pods=pods)
    wire = WireTally(
        Counter({Form[form]: count for form, count in counts.items()}), "port 1", unexpected
    )
    return Outcome(cluster, Backend(), Traffic(0, 0), wire, [Reach(pods[0], pods[1], rtt_ms)])


def test_answers_in_the_right_form_are_no_problem() -> None:
    assert outcome(VXLAN=2).problem is None


def test_a_pair_without_an_answer_is_a_problem() -> None:
    assert outcome(rtt_ms=None, VXLAN=2).problem == "1 pairs got no answer"


def test_a_packet_in_another_form_is_a_problem_with_an_example() -> None:
    assert outcome(VXLAN=2, PLAIN=1, unexpected=(UNEXPECTED,)).problem == (
        f"1 packets in a form that the backend does not use: {UNEXPECTED}"
    )


def test_a_silent_wire_between_nodes_is_a_problem() -> None:
    assert outcome().problem == "nothing was seen on the wire"


def test_the_wire_is_summed_up_in_words_and_as_json() -> None:
    found = outcome(VXLAN=1200, PLAIN=4)
    assert str(found.wire) == "on the wire: 1,200 vxlan packets (port 1), 4 plain"
    assert '"wire": {"vxlan": 1200, "udp": 0, "ipip": 0, "plain": 4}' in found.as_json()
    assert str(outcome(PLAIN=7).wire) == "on the wire: 7 plain packets, 0 in a tunnel"
    assert str(outcome().wire) == "on the wire: no pod packets"


@pytest.mark.parametrize("program", ["demo", "testbed"])
def test_contradicting_options_are_a_wrong_call(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--backend", "udp", "--direct-routing"]
    with pytest.raises(SystemExit, match="2"):
        demo.main(wrong) if program == "demo" else cli.main(["up", *wrong])
    assert "expected vxlan or ipip" in capsys.readouterr().err
