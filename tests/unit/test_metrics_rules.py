"""Rules and dashboard as files: what promtool says of them, and that they name what there is."""

import json
import re
import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from kersey_control.fast_path import NOT_WANTED

REPOSITORY = Path(__file__).parents[2]
PROMETHEUS = REPOSITORY / "deploy" / "prometheus"
RULES = (PROMETHEUS / "kersey.rules.yml").read_text()
CASES = (PROMETHEUS / "kersey.rules.test.yml").read_text()
ALERTS = re.findall(r"- alert: (\w+)\n", RULES)
DASHBOARD = json.loads((REPOSITORY / "deploy" / "grafana" / "kersey.json").read_text())


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_promtool_accepts_the_rules(requires: Callable[..., None]) -> None:
    requires("promtool")
    promtool("check", "rules", "kersey.rules.yml")


def test_alerts_fire_for_the_sick_node_alone_and_not_too_soon(
    requires: Callable[..., None],
) -> None:
    requires("promtool")
    promtool("test", "rules", "kersey.rules.test.yml")


def test_there_are_alerts_and_each_has_a_case_of_its_own() -> None:
    assert len(ALERTS) > 20
    assert re.findall(r"- name: (\w+)\n", CASES) == ALERTS
    for alert in ALERTS:
        assert f'labels: \'{{alertname="{alert}"' in CASES


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_names_a_paragraph_of_the_operators_page(alert: str) -> None:
    page = (REPOSITORY / "docs" / "OPERATIONS.md").read_text()
    rule = RULES.split(f"- alert: {alert}\n")[1].split("- alert:")[0]
    assert f"runbook: docs/OPERATIONS.md#{alert.lower()}\n" in rule
    paragraph = page.split(f"\n#### {alert}\n")[1].split("\n#")[0]
    assert len(paragraph.split()) > 25


def test_who_wants_no_fast_path_is_told_of_none() -> None:
    (reasons,) = re.findall(r'mode="netlink", reason!~"(.*?)"', RULES)
    assert set(reasons.split("|")) == NOT_WANTED
    assert all(f'reason="{reason}"' in CASES for reason in NOT_WANTED)


def test_the_page_explains_no_alert_that_there_is_not() -> None:
    page = (REPOSITORY / "docs" / "OPERATIONS.md").read_text()
    assert re.findall(r"\n#### (Kersey\w+)\n", page) == ALERTS


def rectangle(panel: dict[str, Any]) -> set[tuple[int, int]]:
    grid = panel["gridPos"]
    assert grid["x"] + grid["w"] <= 24
    return {
        (x, y)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    }


def test_panels_have_ids_of_their_own_and_do_not_cover_each_other() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    for one, other in combinations(panels, 2):
        assert not rectangle(one) & rectangle(other), (one["title"], other["title"])


def test_every_panel_says_what_it_shows_for_the_chosen_nodes() -> None:
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            selectors = re.findall(r"kersey_\w+\{([^}]*)\}", target["expr"])
            assert selectors
            assert all('instance=~"$instance"' in selector for selector in selectors)
