"""A real Prometheus scrapes a running client, and the alerts that the documentation has are loaded by it."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.monitoring import program
from support.server import Server, free_port, wait_until
from support.site import CLR, Site, cli_environment, running
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Iterator

ALERTS = Path(__file__).parents[2] / "docs/monitoring/alerts.yaml"


class Prometheus:
    """A Prometheus on loopback that scrapes every second what ``targets`` are, as `scrape_configs` has it."""

    def __init__(self, home: Path, jobs: list[dict[str, Any]]) -> None:
        self.home, self.port = home, free_port()
        home.mkdir()
        intervals = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        made = {"global": intervals, "rule_files": [str(ALERTS)], "scrape_configs": jobs}
        (home / "prometheus.yml").write_text(json.dumps(made))  # which is YAML too

    @contextmanager
    def run(self) -> Iterator[None]:
        """Run it for as long as the block does."""
        argv = [
            program("prometheus"),
            f"--config.file={self.home}/prometheus.yml",
            f"--storage.tsdb.path={self.home}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with (self.home / "log").open("wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()

    def get(self, path: str, **query: str) -> Any:
        """What its API says; None while it does not answer."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.loads(answer.read())["data"]
        except OSError:
            return None

    def value(self, expression: str) -> float | None:
        """The one value of an expression; None where there is none."""
        found = (self.get("query", query=expression) or {"result": []})["result"]
        return float(found[0]["value"][1]) if found else None


def test_prometheus_sees_the_syncs_of_a_running_client_with_a_password_and_without(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    fake_template(tmp_path / "library/alpha")
    http, metrics = free_port(), free_port()
    client = {"HTTP_PORT": str(http), "METRICS_PORT": str(metrics), "LIBRARY_PASSWORD": "s3cret", "SITE_NAME": "oslo"}
    with Server(tmp_path / "library", tmp_path / "server") as server:
        site = Site(tmp_path / "site", server, **client)
        jobs = [
            {"job_name": "clr", "static_configs": [{"targets": [f"127.0.0.1:{metrics}"]}]},
            {
                "job_name": "clr-behind-the-password",
                "metrics_path": "/_clr/metrics",
                "basic_auth": {"username": "vcsp", "password": "s3cret"},
                "static_configs": [{"targets": [f"127.0.0.1:{http}"]}],
            },
            {
                "job_name": "without-the-password",
                "metrics_path": "/_clr/metrics",
                "static_configs": [{"targets": [f"127.0.0.1:{http}"]}],
            },
        ]
        prometheus = Prometheus(tmp_path / "prometheus", jobs)
        with running(site), prometheus.run():
            for job in ("clr", "clr-behind-the-password"):
                wait_until(lambda job=job: prometheus.value(f'up{{job="{job}"}}') == 1, 60, f"{job} to be up")
                count = f'clr_sync_runs_total{{result="success", job="{job}"}}'
                wait_until(lambda count=count: (prometheus.value(count) or 0) >= 1, 60, "the first sync")
            assert prometheus.value('up{job="without-the-password"}') == 0
            before = prometheus.value('clr_sync_runs_total{result="success", job="clr"}')
            assert before
            fake_template(tmp_path / "library/beta")
            subprocess.run([CLR, "sync"], env=cli_environment(site), check=True, capture_output=True, timeout=60)
            grown = f'clr_sync_runs_total{{result="success", job="clr"}} > {before}'
            wait_until(lambda: prometheus.value(grown) is not None, 60, "one more sync")
            assert wait_until(lambda: prometheus.value('clr_library_items{type="ovf", job="clr"} == 2'), 60) == 2
            assert prometheus.value('clr_site_info{site="oslo", library="Test", job="clr"}') == 1
            groups = prometheus.get("rules")["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            assert len(rules) >= 9
            wait_until(lambda: all(rule["health"] == "ok" for rule in _rules(prometheus)), 60, "every rule evaluated")
            metadata = prometheus.get("targets/metadata", match_target='{job="clr"}')
            assert {entry["metric"]: entry["type"] for entry in metadata}["clr_sync_runs_total"] == "counter"


def _rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
