"""The site's numbers for Prometheus, served at ``/_clr/metrics`` and on METRICS_PORT.

Names, types and labels: docs/reference/metrics.md. Units are the base units, as Prometheus asks for; what is unknown
has no sample, since 0 would say something else; every value of a label is there from the beginning.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

from clr_client.disk import swap_file
from clr_client.reporting.document import STATES
from clr_client.reporting.status import RESULTS
from clr_client.web.config import site_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from clr_client.settings import Settings

TYPES = {"vcsp.ovf": "ovf", "vcsp.iso": "iso", "vcsp.other": "other"}
BYTES = {
    "received": "that came from the server for files, as rsync counts them",
    "sent": "that went to the server for files, as rsync counts them",
    "literal": "of files that crossed the line as they are, before compression",
    "matched": "of files that were taken from what was here already",
    "saved": "of changed files that did not have to cross the line",
}


class Metrics:
    """Writes the file that Caddy serves whenever it is told of something new."""

    def __init__(self, settings: Settings) -> None:
        self.path = site_folder(settings) / "metrics"

    def tell(self, document: Mapping[str, Any]) -> None:
        """Write the numbers. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        swap_file(self.path, exposition(document))


def exposition(document: Mapping[str, Any]) -> bytes:
    """Return a site's document (docs/reference/status.md) in Prometheus's text format 0.0.4."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import generate_latest

    registry = CollectorRegistry()
    registry.register(_Site(document))
    return generate_latest(registry)


class _Site:
    """What a registry asks for the numbers of one document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def collect(self) -> Iterator[Metric]:
        for numbers in (_what_it_is, _runs, _library, _machine):
            yield from numbers(self.document)


def _what_it_is(document: Mapping[str, Any]) -> Iterator[Metric]:
    from prometheus_client.core import InfoMetricFamily

    versions = {name: text or "" for name, text in document["versions"].items()}
    build = {"version": versions.pop("clr", ""), **versions}
    yield InfoMetricFamily("clr_build", "Releases of this program and of those that it runs.", value=build)
    names = {"site": document["site"], "library": document["library"].get("name") or ""}
    yield InfoMetricFamily("clr_site", "Names of the site and of its library.", value=names)
    now = _seconds(document["written"])
    yield _gauge("clr_status_timestamp_seconds", "When these numbers were made: once a minute at least.", now)
    states = {name: int(document["state"] == name) for name in STATES}
    yield _by("clr_site_state", "1 for the state that the site is in, 0 for the others.", "state", states)
    paused = int(document["paused_at"] is not None)
    yield _gauge("clr_paused", "1 while syncs are paused after a rollback.", paused)


def _runs(document: Mapping[str, Any]) -> Iterator[Metric]:
    totals, running = document["totals"], document["running"]
    newest = document["runs"][0] if document["runs"] else {}
    text = "Syncs that ended, by their result."
    runs = {name: totals["runs"][name] for name in RESULTS}
    yield _by("clr_sync_runs", text, "result", runs, counts=True)
    yield _counter("clr_sync_run_seconds", "Time that all syncs took.", totals["seconds"])
    for name, which in BYTES.items():
        yield _counter(f"clr_sync_{name}_bytes", f"Bytes {which}.", totals[f"{name}_bytes"])
    failures = document["failures_in_row"]
    yield _gauge("clr_sync_failures_in_row", "Failed syncs since the last one that did not fail.", failures)
    yield _gauge("clr_sync_running", "1 while a sync runs.", int(running is not None))
    progress = None
    if running and running["total_bytes"] and running["done_bytes"] is not None:
        progress = min(1.0, running["done_bytes"] / running["total_bytes"])
    yield _gauge("clr_sync_progress_ratio", "How much of the changed files is here, while they are fetched.", progress)
    started = running["since"] if running else newest.get("started")
    yield _gauge("clr_sync_last_start_timestamp_seconds", "When the newest sync began.", _seconds(started))
    success = _seconds(document["last_success"])
    text = "End of the last sync that brought everything."
    yield _gauge("clr_sync_last_success_timestamp_seconds", text, success)
    took = newest.get("seconds")
    yield _gauge("clr_sync_last_duration_seconds", "How long the last sync took that ended.", took)
    due = _seconds(document["next_sync"])
    yield _gauge("clr_next_sync_timestamp_seconds", "When the schedule is due next.", due)
    due = _seconds(document["next_verification"])
    yield _gauge("clr_next_verification_timestamp_seconds", "When the next verification is due.", due)
    ended = _seconds(document["verification"].get("ended"))
    yield _gauge("clr_verification_last_end_timestamp_seconds", "When the last verification ended.", ended)


def _library(document: Mapping[str, Any]) -> Iterator[Metric]:
    library = document["library"]
    yield _gauge("clr_library_published", "1 when subscribers find a library.", int(document["published"]))
    found = Counter(TYPES.get(item["type"], "other") for item in document["items"])
    items = {name: found[name] for name in TYPES.values()}
    yield _by("clr_library_items", "Items that are published, by their type.", "type", items)
    yield _gauge("clr_library_bytes", "Size of all files that are published.", library.get("bytes"))
    yield _gauge("clr_library_version", "Version of the library; grows with every change.", library.get("version"))
    generation = library.get("generation")
    yield _gauge("clr_library_generation", "Which generation is served; goes down with a rollback.", generation)
    changed = _seconds(library.get("changed"))
    yield _gauge("clr_library_changed_timestamp_seconds", "When this generation was published.", changed)
    text = "Items that cannot be published as they are at the server."
    yield _gauge("clr_items_held", text, len(document["held"]))
    yield _gauge("clr_files_damaged", "Published files that rotted and are not mended yet.", len(document["damaged"]))


def _machine(document: Mapping[str, Any]) -> Iterator[Metric]:
    certificate = document["certificate"] or {}
    ends = _seconds(certificate.get("not_after"))
    yield _gauge("clr_tls_not_after_timestamp_seconds", "When the site's certificate ends.", ends)
    disk = document["disk"]
    yield _gauge("clr_disk_free_bytes", "Room left on the library volume.", disk["free_bytes"])
    yield _gauge("clr_disk_size_bytes", "Size of the library volume.", disk["total_bytes"])


def _gauge(name: str, text: str, value: float | None) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    gauge = GaugeMetricFamily(name, text)
    if value is not None:
        gauge.add_metric([], value)
    return gauge


def _counter(name: str, text: str, value: float) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, values: Mapping[str, float], *, counts: bool = False) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = (CounterMetricFamily if counts else GaugeMetricFamily)(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _seconds(moment: str | None) -> float | None:
    """A time of the document as seconds since 1970; None where there is none."""
    try:
        return datetime.fromisoformat(moment).timestamp() if moment else None
    except (ValueError, OverflowError):
        return None
