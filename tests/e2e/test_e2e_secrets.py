"""The password of the subscribers, and where it must not be seen."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.engine import run
from support.server import wait_until
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.engine import Pair

MIB = 1 << 20
SECRET = "correct-horse-battery-staple"
SERVICES = {
    "variable": {},
    "file": {"volumes": ["./secret:/run/secrets/library:ro"]},
}
SETTINGS = {
    "variable": {"LIBRARY_PASSWORD": SECRET},
    "file": {"LIBRARY_PASSWORD_FILE": "/run/secrets/library"},
}


def get(pair: Pair, path: str, password: str | None) -> int:
    """Status of a GET over HTTP, with a password of the user vcsp or without one."""
    request = urllib.request.Request(f"http://127.0.0.1:{pair.http_port}/{path}")
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"vcsp:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def processes(pair: Pair) -> dict[str, bytes]:
    """Environments of the client's processes by their command lines."""
    found = {}
    for line in run("docker", "top", pair.name("client"), "-eo", "pid,args").stdout.splitlines()[1:]:
        pid, command = line.split(maxsplit=1)
        try:
            found[command] = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the environments of the containers' processes")
@pytest.mark.parametrize("way", SETTINGS)
def test_a_password_is_asked_for_and_seen_nowhere(make_pair: Callable[..., Pair], way: str) -> None:
    pair = make_pair(environment={"SYNC_MAX_BW": "2m", **SETTINGS[way]}, service=SERVICES[way])
    (pair.folder / "secret").write_text(f"{SECRET}\n")
    fake_template(pair.templates / "one", disk_bytes=6 * MIB)
    pair.up()

    def transferring() -> dict[str, bytes]:
        found = processes(pair)
        programs = {command.split()[0].rpartition("/")[2] for command in found}
        return found if {"rsync", "ssh", "caddy"} <= programs else {}

    running = wait_until(transferring, 60, "rsync, ssh and Caddy at work")
    assert any(SECRET.encode() in environment for environment in running.values()) is (way == "variable")
    for command, environment in running.items():
        assert SECRET not in command
        # With the variable, those whose settings it is have it, as Compose gave it to them
        if way == "file" or not any(own in command for own in ("tini", "clr_client")):
            assert SECRET.encode() not in environment, command
    assert pair.wait_runs(1)[0]["result"] == "success"
    assert [get(pair, "lib.json", password) for password in (None, "wrong", SECRET)] == [401, 401, 200]
    pair.wait_healthy("client")
    pair.clr("status")
    pair.clr("check", "http://localhost/lib.json", check=False)

    assert SECRET not in pair.logs("client") + pair.logs("server")
    seen = pair.inspect("client")
    if way == "variable":
        seen["Config"]["Env"] = [value for value in seen["Config"]["Env"] if not value.startswith("LIBRARY_PASSWORD=")]
    assert SECRET not in json.dumps(seen)
    places = ("/syncer", "/data", "/tmp", "/run/clr", "/run/clr.copies")
    assert pair.exec("client", "grep", "-rlsF", SECRET, *places, check=False) == ""
    assert SECRET.encode() not in (pair.library / "status.json").read_bytes()
