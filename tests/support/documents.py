"""The document that everything a person or a monitor sees comes from, made by hand: a healthy site with three items."""

from __future__ import annotations

import copy
from typing import Any

NOW = "2026-11-22T04:30:00+00:00"


def document(**changes: Any) -> dict[str, Any]:
    """Return a full, valid document; keyword arguments replace its fields."""
    return copy.deepcopy({**HEALTHY, **changes})


def run(number: int = 1, result: str = "success", **changes: Any) -> dict[str, Any]:
    """Return a run as the document has it, the ``number``-th of a site that syncs each hour; changes replace fields."""
    hour = f"2026-11-{1 + number // 24:02}T{number % 24:02}"
    made = {
        "run": f"{hour[5:7]}{hour[8:10]}-{hour[11:]}00-{number:06x}",
        "trigger": "schedule",
        "started": f"{hour}:00:00+00:00",
        "ended": f"{hour}:00:12+00:00",
        "seconds": 12.0,
        "result": result,
        "error": "no connection to 192.0.2.7:2222. Is the line up?" if result == "failed" else "",
        "peer": "192.0.2.7:2222",
        "added": [],
        "updated": [],
        "removed": [],
        "went_back": [],
        "line": "",
        "held": [],
        "mended": [],
        "damaged": [],
        "planned_bytes": 20_000_000,
        "literal_bytes": 1_200_000,
        "matched_bytes": 18_800_000,
        "saved_bytes": 18_800_000,
        "sent_bytes": 90_000,
        "received_bytes": 1_210_000,
        "generation": 41,
        "version": 41,
        "summary": f"{result}: 0 added, 1 updated, 0 removed, 0 held; library version 41; 12 s",
    }
    return {**made, **changes}


def held(key: str, reason: str = "disk.vmdk is missing", serves: int | None = None) -> dict[str, Any]:
    """Return an item that is held, as the document has it."""
    return {"key": key, "reason": reason, "serves": serves}


def damage(path: str, item: str = "Ubuntu 24.04", hindrance: str = "") -> dict[str, Any]:
    """Return a damaged file, as the document has it."""
    return {"path": path, "reason": "is not what was published", "item": item, "hindrance": hindrance}


HEALTHY: dict[str, Any] = {
    "schema": 1,
    "written": NOW,
    "site": "berlin",
    "name": "Branch templates",
    "state": "success",
    "published": True,
    "library": {
        "name": "Library",
        "id": "0f8c9c2e-54a5-4f6c-9d0e-3c8f4f1f7c11",
        "version": 41,
        "generation": 41,
        "items": 3,
        "bytes": 20_200_000,
        "url": "http://berlin.example.com/lib.json",
        "changed": "2026-11-21T22:00:12+00:00",
    },
    "failures_in_row": 0,
    "last_success": "2026-11-22T04:00:12+00:00",
    "running": None,
    "next_sync": "2026-11-22T05:00:00+00:00",
    "next_verification": None,
    "paused_at": None,
    "held": [],
    "damaged": [],
    "verification": {},
    "items": [
        {
            "name": name,
            "type": kind,
            "version": 3,
            "files": files,
            "bytes": size,
            "changed": "2026-11-21T22:00:12+00:00",
            "url": url,
        }
        for name, kind, files, size, url in (
            ("Appliance", "vcsp.ovf", 3, 9_700_000, "Appliance/"),
            ("Debian 12", "vcsp.ovf", 3, 9_500_000, "Debian%2012/"),
            ("tools", "vcsp.iso", 1, 1_000_000, "tools/"),
        )
    ],
    "runs": [run(508), run(507), run(506, added=["tools"])],
    "totals": {
        "since": "2026-11-01T00:00:00+00:00",
        "runs": {"success": 3, "partial": 0, "failed": 0, "paused": 0},
        "literal_bytes": 3_600_000,
        "matched_bytes": 56_400_000,
        "saved_bytes": 56_400_000,
        "sent_bytes": 270_000,
        "received_bytes": 3_630_000,
        "seconds": 36.0,
    },
    "certificate": None,
    "disk": {"free_bytes": 800_000_000_000, "total_bytes": 1_000_000_000_000},
    "versions": {"clr": "1.0.0", "rsync": "3.5.0", "ssh": "OpenSSH_9.2p1", "caddy": "2.11.4"},
}
