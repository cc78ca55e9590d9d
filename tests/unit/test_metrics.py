"""The numbers for Prometheus, and the alerts and the dashboard that are made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.reporting.document import STATES
from clr_client.reporting.metrics import TYPES, exposition
from clr_client.reporting.status import RESULTS
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from support.documents import HEALTHY, damage, document, held, run
from support.monitoring import promtool

if TYPE_CHECKING:
    from prometheus_client.core import Metric

MONITORING = Path(__file__).parents[2] / "docs/monitoring"
REFERENCE = Path(__file__).parents[2] / "docs/reference/metrics.md"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
FULL = document(
    state="syncing",
    running={
        "run": "1122-0500-00000a",
        "trigger": "schedule",
        "since": "2026-11-22T04:29:00+00:00",
        "stage": "fetching",
        "done_bytes": 250,
        "total_bytes": 1000,
        "rate": 10,
        "file": "disk.vmdk",
        "left_seconds": 75,
    },
    next_verification="2026-11-29T03:00:00+00:00",
    verification={"ended": "2026-11-22T03:00:00+00:00", "summary": "all is as published"},
    certificate={"kind": "own", "not_after": "2027-01-01T00:00:00+00:00", "sha256": "AA", "sha1": "BB"},
    held=[held("a"), held("b")],
    damaged=[damage("items/x")],
)
NEVER = document(
    state="never",
    published=False,
    library={},
    last_success="",
    items=[],
    runs=[],
    totals={**HEALTHY["totals"], "since": None, "runs": dict.fromkeys(RESULTS, 0)},
    disk={"free_bytes": None, "total_bytes": None},
)


def families(of: dict[str, Any]) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(exposition(of).decode())}


def samples(of: dict[str, Any]) -> dict[str, float]:
    """Every sample as Prometheus would show it, with its value."""
    return {
        sample.name + "".join(f'{{{name}="{value}"}}' for name, value in sorted(sample.labels.items())): sample.value
        for family in families(of).values()
        for sample in family.samples
    }


def test_the_numbers_are_those_of_the_document() -> None:
    found = samples(FULL)
    for name, value in {
        'clr_sync_runs_total{result="success"}': 3,
        'clr_sync_runs_total{result="failed"}': 0,
        "clr_sync_running": 1,
        "clr_sync_progress_ratio": 0.25,
        "clr_sync_last_start_timestamp_seconds": 1795321740,
        "clr_sync_last_success_timestamp_seconds": 1795320012,
        "clr_sync_last_duration_seconds": 12,
        "clr_sync_failures_in_row": 0,
        "clr_sync_received_bytes_total": 3_630_000,
        "clr_sync_sent_bytes_total": 270_000,
        "clr_sync_literal_bytes_total": 3_600_000,
        "clr_sync_matched_bytes_total": 56_400_000,
        "clr_sync_saved_bytes_total": 56_400_000,
        "clr_next_sync_timestamp_seconds": 1795323600,
        'clr_library_items{type="ovf"}': 2,
        'clr_library_items{type="iso"}': 1,
        'clr_library_items{type="other"}': 0,
        "clr_library_bytes": 20_200_000,
        "clr_library_version": 41,
        "clr_library_generation": 41,
        "clr_items_held": 2,
        "clr_files_damaged": 1,
        "clr_tls_not_after_timestamp_seconds": 1798761600,
        "clr_disk_free_bytes": 800_000_000_000,
        "clr_disk_size_bytes": 1_000_000_000_000,
        "clr_paused": 0,
        'clr_site_state{state="syncing"}': 1,
        'clr_site_state{state="success"}': 0,
        'clr_build_info{caddy="2.11.4"}{rsync="3.5.0"}{ssh="OpenSSH_9.2p1"}{version="1.0.0"}': 1,
        'clr_site_info{library="Library"}{site="berlin"}': 1,
    }.items():
        assert found[name] == value, name


def test_every_value_of_a_label_is_there_before_anything_happened() -> None:
    found = samples(NEVER)
    for name in (
        *(f'clr_sync_runs_total{{result="{result}"}}' for result in RESULTS),
        *(f'clr_site_state{{state="{state}"}}' for state in STATES),
        *(f'clr_library_items{{type="{kind}"}}' for kind in TYPES.values()),
    ):
        assert name in found
    assert found["clr_items_held"] == found["clr_sync_running"] == found["clr_sync_failures_in_row"] == 0


def test_what_is_unknown_has_no_sample() -> None:
    absent = {
        *("clr_sync_progress_ratio", "clr_sync_last_start_timestamp_seconds", "clr_sync_last_duration_seconds"),
        *("clr_sync_last_success_timestamp_seconds", "clr_library_version", "clr_library_generation"),
        *("clr_tls_not_after_timestamp_seconds", "clr_disk_free_bytes", "clr_disk_size_bytes", "clr_library_bytes"),
        *("clr_verification_last_end_timestamp_seconds", "clr_next_verification_timestamp_seconds"),
    }
    assert not absent & samples(NEVER).keys()
    assert absent <= samples(FULL).keys()


def test_counters_go_on_where_a_restart_left_them() -> None:
    """They are those of the volume, not of the process."""
    later = document(totals={**HEALTHY["totals"], "runs": {**HEALTHY["totals"]["runs"], "failed": 7}}, runs=[run(1)])
    assert samples(later)['clr_sync_runs_total{result="failed"}'] == 7


def test_nothing_of_the_process_and_no_name_of_an_item_is_told() -> None:
    names = families(FULL).keys()
    assert all(name.startswith("clr_") for name in names)
    labels = {label for family in families(FULL).values() for sample in family.samples for label in sample.labels}
    assert labels == {"result", "state", "type", "site", "library", "version", "rsync", "ssh", "caddy"}


def test_names_end_in_base_units_and_only_counters_in_total() -> None:
    for family in families(FULL).values():
        name = family.samples[0].name
        assert name.endswith("_total") == (family.type == "counter"), name
        assert not re.search(r"_(ms|millis\w*|minutes|hours|days|kb|mb|gb|percent)(_|$)", name), name
        if family.type != "counter":
            assert "timestamp" not in name or name.endswith("_timestamp_seconds"), name
        assert family.documentation.endswith("."), name


@pytest.mark.parametrize("of", [FULL, NEVER], ids=["full", "never"])
def test_promtool_has_nothing_to_complain_about(of: dict[str, Any]) -> None:
    assert promtool("check", "metrics", given=exposition(of)) == ""


TEXT = st.text(max_size=30)
MOMENT = st.one_of(st.none(), st.just(""), st.datetimes().map(lambda moment: f"{moment.isoformat()}+00:00"), TEXT)
COUNT = st.integers(0, 2**63)
ROOM = st.one_of(st.none(), COUNT)
DOCUMENTS = st.builds(
    document,
    written=MOMENT.filter(bool),
    site=TEXT,
    state=st.sampled_from(STATES),
    library=st.one_of(
        st.just({}),
        st.fixed_dictionaries(
            {"name": st.one_of(st.none(), TEXT), "version": ROOM, "generation": ROOM, "bytes": ROOM, "changed": MOMENT}
        ),
    ),
    items=st.lists(st.fixed_dictionaries({"type": st.one_of(st.sampled_from([*TYPES]), TEXT), "name": TEXT})),
    running=st.one_of(
        st.none(), st.fixed_dictionaries({"since": MOMENT, "done_bytes": ROOM, "total_bytes": ROOM, "stage": TEXT})
    ),
    last_success=MOMENT,
    next_sync=MOMENT,
    next_verification=MOMENT,
    paused_at=ROOM,
    failures_in_row=COUNT,
    verification=st.one_of(st.just({}), st.fixed_dictionaries({"ended": MOMENT})),
    certificate=st.one_of(st.none(), st.fixed_dictionaries({"not_after": MOMENT})),
    disk=st.fixed_dictionaries({"free_bytes": ROOM, "total_bytes": ROOM}),
    versions=st.fixed_dictionaries({name: st.one_of(st.none(), TEXT) for name in ("clr", "rsync", "ssh", "caddy")}),
)


@given(DOCUMENTS)
def test_whatever_the_site_is_like_the_numbers_can_be_read(of: dict[str, Any]) -> None:
    found = families(of)
    assert found.keys() >= families(NEVER).keys() - {"clr_status_timestamp_seconds"}
    values = {sample.name: sample.value for family in found.values() for sample in family.samples}
    assert 0 <= values.get("clr_sync_progress_ratio", 0) <= 1
    (site,) = found["clr_site_info"].samples
    assert site.labels["site"] == of["site"]


# Alerts, dashboard, reference


def known() -> set[str]:
    """The names of all samples that a site may have."""
    return {sample.name for family in families(FULL).values() for sample in family.samples}


def expressions() -> list[str]:
    """What the dashboard asks Prometheus, with its variables filled in."""
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    for variable, value in {"$instance": ".*", "$__rate_interval": "5m", "$__range": "7d"}.items():
        found = [text.replace(variable, value) for text in found]
    return found


def test_the_dashboard_and_the_alerts_ask_for_numbers_that_exist() -> None:
    alerts = (MONITORING / "alerts.yaml").read_text()
    asked = set(re.findall(r"\bclr_\w+", " ".join([*expressions(), alerts])))
    assert len(asked) > 15
    assert asked <= known()


def test_prometheus_understands_every_question_of_the_dashboard(tmp_path: Path) -> None:
    questions = expressions()
    assert not [text for text in questions if "$" in text]
    rules = [{"record": f"dashboard:question:{number}", "expr": text} for number, text in enumerate(questions)]
    file = tmp_path / "rules.json"  # which is YAML too
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(questions)} rules found" in promtool("check", "rules", file)


def test_the_panels_of_the_dashboard_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]


def test_every_alert_fires_when_it_should_and_not_before() -> None:
    assert "SUCCESS" in promtool("check", "rules", MONITORING / "alerts.yaml")
    assert "SUCCESS" in promtool("test", "rules", MONITORING / "alerts-test.yaml")
    alerts = set(re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yaml").read_text()))
    tried = re.findall(r"alertname: (\w+)\n +exp_alerts:( \[\])?", (MONITORING / "alerts-test.yaml").read_text())
    assert {name for name, quiet in tried if quiet} == alerts
    assert {name for name, quiet in tried if not quiet} == alerts


def test_the_reference_has_every_metric_with_its_type_and_nothing_else() -> None:
    listed = dict(re.findall(r"^\| `(clr_\w+)(?:\{[a-z, ]+\})?` \| (\w+) \|", REFERENCE.read_text(), re.MULTILINE))
    kinds = {family.samples[0].name: family.type for family in families(FULL).values()}
    assert listed == kinds
