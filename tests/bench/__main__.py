"""Runs the benchmark: ``BENCH=small BENCH_ONLY=patched,renamed python -m bench``.

Results of cases that were not run again are kept from earlier runs of the same size on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bench import deltas, fanout, line, serving, table, times  # noqa: F401 - they register their cases
from bench.bench import CACHE, SIZES, Bench
from bench.rows import CASES, Row, RunError, UnavailableError, chosen

if TYPE_CHECKING:
    from pathlib import Path

MEMORY_TARGET_MB = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="name the cases")
    if parser.parse_args().list:
        print("\n".join(f"{name:16} {(function.__doc__ or '').splitlines()[0]}" for name, function in CASES.items()))
        return
    size = os.environ.get("BENCH") or "full"
    if size not in SIZES:
        sys.exit(f"BENCH={size}: allowed are {', '.join(SIZES)}")
    try:
        names = chosen(os.environ.get("BENCH_ONLY", ""))
    except ValueError as error:
        sys.exit(f"BENCH_ONLY: {error}")
    CACHE.mkdir(parents=True, exist_ok=True)
    results = Results(CACHE / f"results-{size}.json")
    trouble = [trouble for name in names if (trouble := run(name, Bench(SIZES[size]), results))]
    write(results, Bench(SIZES[size]))
    if trouble:
        sys.exit(f"not measured: {'; '.join(trouble)}")


class Results:
    """The rows of each case, with the day; kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.machine = table.facts()
        self.kept = self._load()

    def _load(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        return found if found.pop("machine", "") == self.machine else {}

    def put(self, name: str, rows: list[Row]) -> None:
        self.kept = self._load()  # another run may have put its own
        self.kept[name] = {"date": datetime.now(UTC).date().isoformat(), "rows": [table.dump(row) for row in rows]}
        self.path.write_text(json.dumps({"machine": self.machine, **self.kept}, indent=1))

    def rows(self) -> list[Row]:
        return [table.load(row) for name in CASES if name in self.kept for row in self.kept[name]["rows"]]

    def dates(self) -> list[str]:
        return [kept["date"] for kept in self.kept.values()]


def run(name: str, bench: Bench, results: Results) -> str:
    """Run one case and print its rows; what was wrong, if anything was."""
    began = time.monotonic()
    rows: list[Row] = []
    trouble = ""
    print(f"## {name}: {CASES[name].__doc__}", flush=True)
    try:
        for row in CASES[name](bench):
            rows.append(row)
            print(table.table([row]).splitlines()[-1], flush=True)
    except UnavailableError as reason:
        trouble = f"{name} ({reason})"
    except RunError as error:
        trouble = f"{name} ({error})"
    except Exception as error:  # noqa: BLE001 - the other cases go on
        traceback.print_exc()
        trouble = f"{name} ({error!r})"
    if rows:
        results.put(name, rows)
    print(f"{trouble or 'done'} after {time.monotonic() - began:.0f} s\n", flush=True)
    return trouble


def write(results: Results, bench: Bench) -> None:
    """Print the whole table and put it into the page."""
    rows = results.rows()
    if not rows:
        return
    peak = max(rows, key=lambda row: row.clr_memory)
    if peak.clr_memory:
        rows.append(
            Row(
                name="client's peak memory, the largest of all cases",
                ours=peak.clr_memory / 1e6,
                unit="MB",
                target=MEMORY_TARGET_MB,
                note=peak.name,
            )
        )
    command = "make bench" if bench.size.name == "full" else f"BENCH={bench.size.name} make bench"
    text = table.block(rows, results.dates(), bench.images.origin, command)
    print(text)
    table.PAGE.write_text(table.into_page(table.PAGE.read_text(), bench.size.name, text))
    print(f"written into {table.PAGE}")


if __name__ == "__main__":
    main()
