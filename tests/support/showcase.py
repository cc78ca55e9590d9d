"""Sites in each state, with the templates and numbers of a company's branch offices: for pictures and for tests."""

from __future__ import annotations

import copy
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from support import documents

NOW = datetime(2026, 11, 22, 4, 30, tzinfo=UTC)
GB, MB, KB = 10**9, 10**6, 10**3
TEMPLATES = [
    ("AlmaLinux 9.6", 2.1), ("AlmaLinux 10.0", 2.2), ("Branch backup proxy", 6.4), ("Branch DNS and DHCP", 1.9),
    ("Branch file server 2022", 14.8), ("Branch file server 2025", 15.6), ("Branch monitoring probe", 3.1),
    ("Branch print server", 12.2), ("Debian 12", 1.4), ("Debian 13", 1.5), ("Debian 13 with Docker", 2.3),
    ("Jump host", 1.7), ("Kubernetes control plane 1.34", 4.9), ("Kubernetes worker 1.34", 5.2), ("Photon OS 5", 0.9),
    ("Point of sale 8.2", 18.3), ("Point of sale 8.3", 18.9), ("PostgreSQL 17", 3.8), ("RHEL 9.6", 2.4),
    ("RHEL 10.0", 2.6), ("SD-WAN edge", 2.8), ("Ubuntu 22.04 LTS", 2.0), ("Ubuntu 24.04 LTS", 2.2),
    ("Windows 11 Enterprise 24H2", 17.4), ("Windows Server 2022 Core", 9.7), ("Windows Server 2022 Desktop", 13.9),
    ("Windows Server 2025 Core", 10.3), ("Windows Server 2025 Desktop", 14.6),
]  # fmt: skip
DISCS = [("virtio-win-0.1.271.iso", 0.7), ("VMware-tools-13.0.5.iso", 0.1)]
SHA1 = "5F:2C:91:0A:7E:33:D4:18:BB:60:9D:F1:42:8C:E7:05:A6:1B:93:4D"
SHA256 = f"{SHA1}:11:C8:7F:52:E0:3A:96:B4:0D:68:F3:29"
CERTIFICATE = {"kind": "own", "not_after": "2027-08-31T12:00:00+00:00", "sha256": SHA256, "sha1": SHA1}


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _items() -> list[dict[str, Any]]:
    chance = random.Random(5)
    items = []
    for name, size in [*TEMPLATES, *DISCS]:
        is_disc = name.endswith(".iso")
        changed = NOW - timedelta(days=chance.choice([1, 1, 2, 5, 9, 16, 23, 44, 80]), hours=chance.randrange(6))
        items.append(
            {
                "name": name,
                "type": "vcsp.iso" if is_disc else "vcsp.ovf",
                "version": 1 if is_disc else chance.randrange(2, 19),
                "files": 1 if is_disc else chance.choice([3, 3, 4]),
                "bytes": int(size * GB) + chance.randrange(50 * MB),
                "changed": _text(changed),
                "url": quote(name) + ("" if is_disc else "/"),
            }
        )
    return sorted(items, key=lambda item: str(item["name"]).casefold())


ITEMS = _items()
BYTES = sum(item["bytes"] for item in ITEMS)


def _runs(count: int = 24) -> list[dict[str, Any]]:
    """Nightly runs, the newest first: most of what changed was here already."""
    chance = random.Random(8)
    runs = []
    for number in range(count):
        started = NOW.replace(hour=1, minute=0) - timedelta(days=number)
        planned = chance.choice([0, 2.2, 9.7, 14.6, 14.9, 21.0, 33.5, 38.0, 47.2]) * GB
        crossed = planned * chance.uniform(0.04, 0.16)
        seconds = 14 + crossed / (3.1 * MB)
        updated = [item["name"] for item in chance.sample(ITEMS, max(1, int(planned / (12 * GB))))] if planned else []
        changed: dict[str, Any] = {
            "started": _text(started),
            "ended": _text(started + timedelta(seconds=seconds)),
            "seconds": seconds,
            "updated": updated,
            "planned_bytes": int(planned),
            "literal_bytes": int(crossed * 1.7),
            "matched_bytes": int(planned - crossed * 1.7),
            "saved_bytes": int(planned - crossed * 1.7),
            "sent_bytes": int(crossed / 60),
            "received_bytes": int(crossed),
            "summary": _summary(len(updated), planned, crossed),
        }
        runs.append(documents.run(900 - number, **changed))
    return runs


def _summary(updated: int, planned: float, crossed: float) -> str:
    line = f"{crossed / GB:.1f} GB crossed the line for {planned / GB:.1f} GB of changed files"
    return f"success: 0 added, {updated} updated, 0 removed, 0 held; {line if planned else 'no file had to be fetched'}"


RUNS = _runs()
HEALTHY: dict[str, Any] = documents.document(
    site="berlin",
    written=_text(NOW),
    library={
        "name": "Branch templates",
        "id": "0f8c9c2e-54a5-4f6c-9d0e-3c8f4f1f7c11",
        "version": 128,
        "generation": 131,
        "items": len(ITEMS),
        "bytes": BYTES,
        "url": "https://library.berlin.example.com/lib.json",
        "changed": RUNS[0]["ended"],
    },
    last_success=RUNS[0]["ended"],
    next_sync=_text(NOW.replace(hour=1, minute=0) + timedelta(days=1)),
    next_verification=_text(NOW.replace(hour=3, minute=0) + timedelta(days=6)),
    verification={
        "run": "1115-0300-3f9ac1",
        "trigger": "schedule",
        "started": "2026-11-15T03:00:00+00:00",
        "ended": "2026-11-15T03:21:40+00:00",
        "seconds": 1300.0,
        "bytes": BYTES,
        "found": [],
        "mended": [],
        "damaged": [],
        "error": "",
        "summary": f"{BYTES / GB:.1f} GB read in 21 min 40 s; all is as published",
    },
    items=ITEMS,
    runs=RUNS,
    totals={
        "since": "2026-03-01T21:00:00+00:00",
        "runs": {"success": 262, "partial": 3, "failed": 4, "paused": 0},
        "literal_bytes": 1930 * GB,
        "matched_bytes": 5140 * GB,
        "saved_bytes": 5140 * GB,
        "sent_bytes": 18 * GB,
        "received_bytes": 1120 * GB,
        "seconds": 402_000.0,
    },
    certificate=CERTIFICATE,
    disk={"free_bytes": 412 * GB, "total_bytes": 960 * GB},
    versions={"clr": "1.0.0", "rsync": "3.5.0", "ssh": "OpenSSH_10.0p2", "caddy": "2.11.4"},
)
NOTHING: dict[str, Any] = {
    "published": False,
    "library": {},
    "last_success": "",
    "items": [],
    "runs": [],
    "verification": {},
    "totals": {**HEALTHY["totals"], "since": None},
    "certificate": None,
}
RUNNING: dict[str, Any] = {
    "run": "1122-0425-a3f19c",
    "trigger": "start",
    "since": "2026-11-22T02:25:00+00:00",
    "stage": "transferring 92 files",
    "done_bytes": 78_400_000_000,
    "total_bytes": BYTES,
    "rate": 11_200_000,
    "file": "Point of sale 8.3/point-of-sale-8.3-disk1.vmdk",
    "left_seconds": 10_260,
}
HELD = [
    documents.held(
        "Point of sale 8.4",
        "point-of-sale-8.4-disk1.vmdk is named in the OVF and is not there; copy it to the folder and wait for a sync",
    ),
    documents.held("Ubuntu 24.04 LTS", "ubuntu-24.04-disk1.vmdk is not what ubuntu-24.04.mf says (SHA-256)", 7),
]
FAILURE = (
    "no connection to sync.example.com:2222: connection timed out. Check that the server runs and that a firewall"
    " lets this site reach it"
)


def _newest(result: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**RUNS[0], "result": result, **changes}, *RUNS[1:]]


_NO_BYTES = dict.fromkeys(
    ("planned_bytes", "literal_bytes", "matched_bytes", "saved_bytes", "sent_bytes", "received_bytes"), 0
)
SITES: dict[str, dict[str, Any]] = {
    "never": {**HEALTHY, **NOTHING, "state": "never"},
    "first-sync": {**HEALTHY, **NOTHING, "state": "syncing", "running": RUNNING},
    "healthy": HEALTHY,
    "syncing": {**HEALTHY, "state": "syncing", "running": {**RUNNING, "trigger": "schedule"}},
    "held": {
        **HEALTHY,
        "state": "partial",
        "held": HELD,
        "runs": _newest(
            "partial", held=HELD, summary=RUNS[0]["summary"].replace("success", "partial").replace("0 held", "2 held")
        ),
    },
    "damaged": {
        **HEALTHY,
        "state": "partial",
        "damaged": [
            documents.damage("items/6d1f/12/windows-11-disk1.vmdk", "Windows 11 Enterprise 24H2", FAILURE.split(".")[0])
        ],
        "runs": _newest("partial"),
    },
    "failed": {
        **HEALTHY,
        "state": "failed",
        "failures_in_row": 3,
        "last_success": RUNS[3]["ended"],
        "runs": [
            *({**run, "result": "failed", "error": FAILURE, "seconds": 31.0, **_NO_BYTES} for run in RUNS[:3]),
            *RUNS[3:],
        ],
    },
    "paused": {**HEALTHY, "state": "paused", "paused_at": 130},
    "empty": {
        **HEALTHY,
        "items": [],
        "library": {**HEALTHY["library"], "version": 1, "generation": 1, "items": 0, "bytes": 0},
        "runs": [
            {**RUNS[0], **_NO_BYTES, "seconds": 0.6, "updated": [], "summary": _summary(0, 0, 0)},
        ],
        "verification": {},
        "totals": {**HEALTHY["totals"], "since": RUNS[0]["started"], **_NO_BYTES},
    },
}


def showcase(name: str) -> dict[str, Any]:
    """Return the document of one of these sites."""
    return copy.deepcopy(SITES[name])
