"""docs/operations.md, the dashboard and the alerts speak of the metrics that a real scrape shows, and of no others."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it ships none
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from backend.common import keys
from tests.integration.running_api import RunningApi, host_is_seen
from tests.valkey_server import Valkey
from tests.waiting import wait_until_async

DOCS = Path(__file__).parents[2] / "docs"
FREE = {"host", "queue", "route", "method", "status"}
"""Labels whose values a deployment makes, or that are too many to list."""
NAME = re.compile(r"\b(?:greenroom|process|python)_[a-z0-9_]+")
LIBRARYS = ("process_", "python_")


@pytest.fixture
async def families(api: RunningApi, valkey: Valkey) -> dict[str, Metric]:
    """What a scrape shows when nothing is away."""
    host_is_seen(valkey)
    valkey.client.hset(keys.host("h"), mapping={f"{s}_measured": 1 for s in ("warm", "busy", "launcher")})
    valkey.client.hset(keys.host("h"), mapping={f"{s}_memory_bytes": 1 for s in ("warm", "busy", "launcher")})
    valkey.client.hset(keys.SWEEP, "swept_at_ms", valkey.now_ms())

    async def read() -> dict[str, Metric]:
        text = (await api.get("/metrics")).text
        found = {family.name: family for family in text_string_to_metric_families(text)}
        return found if {"greenroom_hosts", "greenroom_queue_length"} <= found.keys() else {}

    return await wait_until_async(read, what="Redis and the broker answer a scrape in time")


def full_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def row(family: Metric) -> str:
    """The line of the table that says what this metric is."""
    values: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label != "le":
                values.setdefault(label, {})[value] = None
    labels = [f"`{label}`" + ("" if label in FREE else f": {', '.join(found)}") for label, found in values.items()]
    return f"| `{full_name(family)}` | {family.type} | {'; '.join(labels)} | {family.documentation} |"


def test_the_table_says_of_each_metric_what_the_scrape_says(families: dict[str, Metric]) -> None:
    text = (DOCS / "operations.md").read_text().partition("## Metrics\n")[2].partition("\n## ")[0]
    written = [line for line in text.splitlines() if line.startswith("| `greenroom_")]
    ours = [family for family in families.values() if not family.name.startswith(LIBRARYS)]
    assert written == [row(family) for family in sorted(ours, key=full_name)]


def samples_of(families: dict[str, Metric]) -> set[str]:
    return {sample.name for family in families.values() for sample in family.samples}


@pytest.mark.parametrize("name", ["alerts.yml", "grafana.json"])
def test_every_metric_that_is_asked_for_exists(name: str, families: dict[str, Metric]) -> None:
    asked = set(NAME.findall(" ".join(expressions(name))))
    assert len(asked) > 10
    assert asked <= samples_of(families)


@pytest.mark.parametrize("name", ["alerts.yml", "grafana.json"])
def test_every_label_that_is_asked_for_exists(name: str, families: dict[str, Metric]) -> None:
    known = {
        sample.name: {label: {s.labels.get(label) for s in family.samples} for label in sample.labels}
        for family in families.values()
        for sample in family.samples
    }
    for expression in expressions(name):
        for metric, matchers in re.findall(r"\b(greenroom_\w+)\{([^}]*)\}", expression):
            for label, value in re.findall(r'(\w+)[=!]~?"([^"]*)"', matchers):
                if label in ("job", "instance"):
                    continue
                assert label in known[metric], (metric, label)
                if label not in ("host", "queue", "status") and "$" not in value:
                    assert set(value.split("|")) <= known[metric][label], (metric, label, value)


def expressions(name: str) -> list[str]:
    text = (DOCS / name).read_text()
    if name == "grafana.json":
        return [target["expr"] for panel in panels(json.loads(text)) for target in panel.get("targets", [])]
    return [rule["expr"] for rule in rules(text)]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def rules(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    found = rules((DOCS / "alerts.yml").read_text())
    names = [rule["alert"] for rule in found]
    assert len(names) == len(set(names)) > 10
    for rule in found:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert re.fullmatch(r"\d+[smh]", rule["for"])


def test_the_dashboard_can_be_imported_into_any_grafana() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    assert dashboard["id"] is None
    (source,) = [variable for variable in dashboard["templating"]["list"] if variable["type"] == "datasource"]
    assert (source["name"], source["query"]) == ("datasource", "prometheus")
    shown = panels(dashboard)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {panel["datasource"]["uid"] for panel in shown} == {"${datasource}"}
    assert all(panel["targets"] and panel["title"] and panel["description"] for panel in shown)


def test_no_two_panels_of_the_dashboard_lie_over_each_other() -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in dashboard["panels"]):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules() -> None:
    run = subprocess.run(
        ["promtool", "check", "rules", str(DOCS / "alerts.yml")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
async def test_promtool_takes_what_a_scrape_shows(api: RunningApi) -> None:
    text = (await api.get("/metrics")).text
    check = ["promtool", "check", "metrics"]
    run = await asyncio.to_thread(subprocess.run, check, input=text, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
