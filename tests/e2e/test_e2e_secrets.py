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
from support.engine import docker, run
from support.server import wait_until
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.engine import Pair

MIB = 1 << 20
SECRET = "correct-horse-battery-staple"


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
    except OSError:  # nothing answers
        return 0


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
def test_a_password_is_asked_for_and_seen_by_nothing_but_its_program(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(environment={"SYNC_MAX_BW": "2m", "LIBRARY_PASSWORD": SECRET})
    fake_template(pair.templates / "one", disk_bytes=6 * MIB)
    pair.up()

    def transferring() -> dict[str, bytes]:
        found = processes(pair)
        programs = {command.split()[0].rpartition("/")[2] for command in found}
        return found if {"rsync", "ssh", "caddy"} <= programs else {}

    running = wait_until(transferring, 60, "rsync, ssh and Caddy at work")
    told = {command for command, environment in running.items() if SECRET.encode() in environment}
    assert {command for command in running if "tini" in command or "clr_client" in command} == told
    assert not [command for command in running if SECRET in command]
    assert pair.wait_runs(1)[0]["result"] == "success"
    assert [get(pair, "lib.json", password) for password in (None, "wrong", SECRET)] == [401, 401, 200]
    pair.wait_healthy("client")
    assert SECRET not in pair.clr("status")
    assert_unseen(pair)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read the environments of the containers' processes")
def test_a_password_in_a_file_is_seen_nowhere_and_changed_by_a_restart(make_pair: Callable[..., Pair]) -> None:
    settings = {"LIBRARY_PASSWORD_FILE": "/run/secrets/library"}
    pair = make_pair(environment=settings, service={"volumes": ["./secrets:/run/secrets:ro"]})
    (pair.folder / "secrets").mkdir()
    (pair.folder / "secrets/library").write_text(f"{SECRET}\n")
    fake_template(pair.templates / "one")
    pair.up()
    assert pair.wait_runs(1)[0]["result"] == "success"
    assert [get(pair, "lib.json", password) for password in (None, SECRET)] == [401, 200]
    pair.wait_healthy("client")
    for command, environment in processes(pair).items():
        assert SECRET.encode() not in environment, command
        assert SECRET not in command
    assert_unseen(pair)

    (pair.folder / "secrets/library").write_text("another")
    docker("restart", pair.name("client"))
    wait_until(lambda: get(pair, "lib.json", "another") == 200, 60, "the new password")
    assert get(pair, "lib.json", SECRET) == 401


def assert_unseen(pair: Pair) -> None:
    """AssertionError when the password is in what the engine tells, beyond the setting, or in what was written."""
    assert SECRET not in pair.logs("client") + pair.logs("server")
    seen = pair.inspect("client")
    seen["Config"]["Env"] = [value for value in seen["Config"]["Env"] if value != f"LIBRARY_PASSWORD={SECRET}"]
    assert SECRET not in json.dumps(seen)
    places = ("/syncer", "/data", "/tmp", "/run/clr", "/run/clr.copies")
    assert pair.exec("client", "grep", "-rlsF", SECRET, *places, check=False) == ""
    assert SECRET.encode() not in (pair.library / "status.json").read_bytes()
