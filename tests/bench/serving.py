"""Caddy as the client runs it against nginx, serving the same published library."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from support.server import Server, descendants, free_port, wait_until
from support.site import Site, running

from bench.rows import Row, UnavailableError, case
from bench.times import noise_library

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.bench import Bench

MB = 1_000_000
_LARGE, _SMALL_ITEMS = 500 * MB, 500
_CONFIGURATION = """
user {user};
worker_processes auto;
pid {work}/nginx.pid;
error_log {work}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {work}/t1; proxy_temp_path {work}/t2; fastcgi_temp_path {work}/t3;
    uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@case
def serving(bench: Bench) -> Iterator[Row]:
    """Throughput of one large file and of many small ones, Caddy and nginx."""
    if not shutil.which("nginx") or not shutil.which("wrk"):
        raise UnavailableError("needs the packages nginx and wrk")
    with bench.scratch() as work:
        library = noise_library(work / "primary", items=_SMALL_ITEMS, disks=2, disk_bytes=4000)
        (noise_library(work / "large", items=1, disks=1, disk_bytes=_LARGE) / "item-0000").rename(library / "large")
        with Server(library, work / "server") as server:
            site = Site(work / "site", server, HTTP_PORT=str(free_port()))
            with running(site):
                wait_until(lambda: (site.library / "current" / "items.json").exists(), 120, "the first library")
                with _nginx(work, site.library / "current") as (port, nginx):
                    caddy_port = int(site.environment["HTTP_PORT"])
                    caddy = next(pid for pid in descendants(os.getpid()) if _name(pid) == "caddy")
                    yield from _compare(bench, site, (caddy_port, caddy), (port, nginx), work)


def _compare(bench: Bench, site: Site, ours: tuple[int, int], theirs: tuple[int, int], work: Path) -> Iterator[Row]:
    files = [file for item in site.document("items.json")["items"] for file in item["files"]]
    large = max(files, key=lambda file: int(file["size"]))
    small = [quote(f"/{file['hrefs'][0]}") for file in files if int(file["size"]) < 10_000]
    runs: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for _ in range(3):
        for who, (port, pid) in (("ours", ours), ("theirs", theirs)):
            cpu, began = _cpu(pid), time.monotonic()
            size = _download(port, quote(f"/{large['hrefs'][0]}"), bench.size.serve_seconds / 4)
            runs[who].append((size / MB / (time.monotonic() - began), (_cpu(pid) - cpu) / size * 1e9))
    best = {who: max(found) for who, found in runs.items()}
    yield Row(
        name="one large file over HTTP",
        ours=best["ours"][0],
        baseline=best["theirs"][0],
        unit="MB/s",
        against="nginx",
        note=f"CPU seconds per GB: {best['ours'][1]:.2f}, nginx {best['theirs'][1]:.2f}",
    )
    script = work / "paths.lua"
    paths = ",".join(json.dumps(path) for path in small)
    script.write_text(
        f"local paths = {{{paths}}}\nlocal n = 0\n"
        "request = function() n = n % #paths + 1 return wrk.format('GET', paths[n]) end\n"
    )
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(2):
        for who, (port, _) in (("ours", ours), ("theirs", theirs)):
            rates[who].append(_requests(port, script, bench.size.serve_seconds))
    yield Row(
        name=f"{len(small):,} small files over HTTP, 8 connections",
        ours=max(rates["ours"]),
        baseline=max(rates["theirs"]),
        unit="files/s",
        against="nginx",
    )


def _download(port: int, path: str, seconds: float) -> int:
    """Fetch a file again and again for some seconds; the bytes that came."""
    deadline, total, buffer = time.monotonic() + seconds, 0, bytearray(1 << 20)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    while time.monotonic() < deadline:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        while count := answer.readinto(buffer):
            total += count
    connection.close()
    return total


def _requests(port: int, script: Path, seconds: float) -> float:
    argv = ["wrk", "-t1", "-c8", f"-d{max(1, round(seconds))}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "Non-2xx" not in done.stdout, done.stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert found, done.stdout
    return float(found[1])


@contextlib.contextmanager
def _nginx(work: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Run nginx on a folder; its port and process."""
    port = free_port()
    file = work / "nginx.conf"
    file.write_text(
        _CONFIGURATION.format(work=work, port=port, root=root, user="root" if os.geteuid() == 0 else "nobody")
    )
    process = subprocess.Popen(
        ["nginx", "-c", str(file), "-e", f"{work}/nginx.log", "-g", "daemon off;"], stdin=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _listens(port), what="nginx")
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _cpu(pid: int) -> float:
    """CPU seconds of a process and its descendants."""
    ticks = 0
    for one in (pid, *descendants(pid)):
        with contextlib.suppress(OSError):
            ticks += sum(int(word) for word in Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")
