"""Caddy as a child of the client: started, supervised, reloaded and stopped, with both Debians' Caddy."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import settings as clr_settings
from clr_client.errors import WebServerError
from clr_client.web import caddy as caddies
from clr_client.web.certificate import Pair, load_pair
from clr_client.web.config import admin_socket, configuration
from support import caddy
from support.caddy import make_pair
from support.server import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.caddy import Web


@pytest.fixture(params=caddy.PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    return caddy.program(request.param)


@pytest.fixture
def home() -> Iterator[Path]:
    with TemporaryDirectory(prefix="clr") as folder:
        yield Path(folder)


def pid(web: Web) -> int:
    process = web.site.caddy._process
    assert process
    return process.pid


MODES: dict[str, dict[str, str]] = {
    "http": {},
    "browse": {"LIBRARY_BROWSE": "true", "LOG_LEVEL": "debug"},
    "acme": {"TLS_NAME": "library.example.com"},
    "acme for an address": {"TLS_NAME": "2001:db8::1"},
    "internal": {"TLS_NAME": "library.example.com", "TLS_INTERNAL": "true"},
    "custom": {"TLS_NAME": "library.example.com", "TLS_CUSTOM_CERT": "true"},
    "custom without a pair": {"TLS_NAME": "library.example.com", "TLS_CUSTOM_CERT": "true"},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("password_hash", ["", "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy"])
def test_configuration_is_accepted_by_caddy_as_it_is(home: Path, program: str, mode: str, password_hash: str) -> None:
    folders = {f"CLR_{name}_DIR": str(home / name) for name in ("LIBRARY", "DATA", "RUN")}
    settings, _ = clr_settings.load({**folders, **MODES[mode]})
    pair: Pair | None = None
    if mode == "custom":
        make_pair(home / "certs")
        pair = load_pair(home / "certs", "library.example.com", datetime.now(UTC))
    file = home / "caddy.json"
    file.write_text(json.dumps(configuration(settings, password_hash=password_hash, pair=pair)))
    environment = {**os.environ, "HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    argv = [program, "validate", "--config", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_control_socket_and_data_belong_to_this_account_alone(home: Path, program: str) -> None:
    with caddy.web(home, program) as web:
        mode = stat.S_IMODE(admin_socket(web.settings).stat().st_mode)
        assert mode & 0o077 == 0
        open_to_others = [path for path in (home / "data").rglob("*") if path.stat().st_mode & 0o007]
        assert open_to_others == []


def test_password_and_key_are_in_no_argument_environment_log_or_file(
    home: Path, program: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRARY_PASSWORD", "geheim-geheim")
    make_pair(home / "certs")
    environment = {"TLS_NAME": "library.example.com", "TLS_CUSTOM_CERT": "true", "LIBRARY_PASSWORD": "geheim-geheim"}
    with caplog.at_level(logging.DEBUG), caddy.web(home, program, LOG_LEVEL="debug", **environment) as web:
        for what in ("cmdline", "environ"):
            content = Path(f"/proc/{pid(web)}/{what}").read_bytes()
            assert b"geheim" not in content
            assert b"PRIVATE" not in content
        login = {"Authorization": "Basic dmNzcDpnZWhlaW0tZ2VoZWlt"}
        web.publish(1, {})
        assert web.ask("/lib.json", tls=True, name="library.example.com", headers=login).status == 200
        wait_until(lambda: "GET /lib.json: 200" in caplog.text, what="the line about the request")
    for line in caplog.messages:
        assert "geheim" not in line
        assert "dmNzcDpn" not in line
    for path in home.rglob("*"):
        if path.is_file():
            assert b"geheim" not in path.read_bytes()


def test_caddy_that_dies_is_started_again_and_its_socket_replaced(
    home: Path, program: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caddies, "FIRST_WAIT", 0.1)
    with caddy.web(home, program) as web:
        web.publish(1, {})
        before = pid(web)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: not web.site.caddy.healthy, what="the death to be noticed")
        wait_until(lambda: web.site.caddy.healthy, what="Caddy to be back")
        assert pid(web) != before
        assert web.ask("/lib.json").status == 200
        assert web.site.caddy.restarts == 1
    assert "Caddy ended with signal 9; starting it again in 0 s" in caplog.text


def test_caddy_that_keeps_dying_is_started_less_and_less_often(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caddies, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(caddies, "LONGEST_WAIT", 0.2)
    starts = home / "starts"
    broken = home / "caddy"
    broken.write_text(f"#!/bin/sh\ndate +%s.%N >>{starts}\ncat >/dev/null\necho 'Error: it is broken' >&2\nexit 3\n")
    broken.chmod(0o755)
    with caddy.web(home, str(broken)) as web:
        assert not web.site.caddy.healthy
        assert "Caddy ended with exit code 3: it is broken; starting it again in 0 s" in caplog.text
        wait_until(lambda: web.site.caddy.restarts >= 8, what="many restarts")
        assert not web.site.caddy.healthy
    times = [float(line) for line in starts.read_text().split()]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    for pause, least in zip(pauses, [0.01, 0.02, 0.04, 0.08, 0.16, 0.2, 0.2], strict=False):
        assert pause >= least


def test_busy_port_is_named_and_used_once_it_is_free(
    home: Path, program: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caddies, "FIRST_WAIT", 0.1)
    web = caddy.Web(home, program)
    with contextlib.closing(socket.socket()) as other:
        other.bind(("0.0.0.0", web.http))
        other.listen()
        web.__enter__()
        try:
            assert f"another program uses port {web.http}, so Caddy cannot listen there" in caplog.text
            assert not web.site.caddy.healthy
            other.close()
            wait_until(lambda: web.site.caddy.healthy, what="Caddy to get the port")
            assert web.ask("/lib.json").status == 503
        finally:
            web.__exit__()


def test_missing_caddy_is_said_in_one_line(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caddy.web(home, str(home / "nothing")) as web:
        assert not web.site.caddy.healthy
    assert f"Caddy cannot be started ({home}/nothing is missing)" in caplog.text


def test_configuration_that_caddy_refuses_leaves_the_old_one_in_use(home: Path, program: str) -> None:
    with caddy.web(home, program) as web:
        web.publish(1, {})
        broken: dict[str, Any] = {**configuration(web.settings), "apps": {"nothing": {}}}
        with pytest.raises(WebServerError, match=r"Caddy refuses its new configuration: .*nothing"):
            web.run(web.site.caddy.reload(broken))
        assert web.ask("/lib.json").status == 200
        assert web.site.caddy.healthy


def test_configuration_replaced_while_caddy_is_down_is_what_it_starts_with(
    home: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caddies, "FIRST_WAIT", 0.5)
    with caddy.web(home, program) as web:
        web.publish(1, {})
        os.kill(pid(web), signal.SIGKILL)
        wait_until(lambda: not web.site.caddy.healthy)
        browsing, _ = clr_settings.load({**web.environment, "LIBRARY_BROWSE": "true"})
        web.run(web.site.caddy.reload(configuration(browsing)))
        wait_until(lambda: web.site.caddy.healthy)
        assert web.ask("/").status == 200


def test_stop_lets_a_download_finish_and_takes_no_new_one(home: Path, program: str) -> None:
    web = caddy.Web(home, program)
    web.__enter__()
    tree = web.publish(1, {})
    with (tree / "big.vmdk").open("wb") as file:
        file.truncate(64 << 20)
    with contextlib.closing(web.connect()) as connection:
        connection.sendall(b"GET /Tmpl%20one/big.vmdk HTTP/1.1\r\nHost: x\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        count = len(response.read(1 << 20))
        stopping = asyncio.run_coroutine_threadsafe(web.site.stop(), web._loop)
        wait_until(lambda: not _listens(web.http), what="the port to close")
        while chunk := response.read(1 << 20):
            count += len(chunk)
    stopping.result(10)
    assert count == 64 << 20
    web.__exit__()


def test_stop_does_not_wait_for_a_reader_that_never_ends(
    home: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caddies, "DRAIN", 1.0)
    web = caddy.Web(home, program)
    web.__enter__()
    tree = web.publish(1, {})
    with (tree / "big.vmdk").open("wb") as file:
        file.truncate(64 << 20)
    process = pid(web)
    with contextlib.closing(web.connect()) as connection:
        connection.sendall(b"GET /Tmpl%20one/big.vmdk HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1000)
        started = time.monotonic()
        web.__exit__()
        assert time.monotonic() - started < 4
    assert not Path(f"/proc/{process}").exists()


def test_an_ordinary_start_warns_of_nothing(home: Path, program: str, caplog: pytest.LogCaptureFixture) -> None:
    with caddy.web(home, program) as web:
        assert web.ask("/lib.json").status == 503
        # Not after the end: a Caddy that is stopped while it tidies its storage says that it could not
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_what_caddy_says_is_logged_once_at_its_level(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        {"level": "error", "ts": 1, "logger": "http", "msg": "an error", "cause": "why"},
        {"level": "warn", "ts": 1, "msg": "a warning"},
        {
            "level": "info",
            "ts": 1,
            "logger": "tls.obtain",
            "msg": "certificate obtained successfully",
            "identifier": "x",
        },
        {"level": "info", "ts": 1, "logger": "admin", "msg": "admin endpoint started"},
        {"level": "warn", "ts": 1, "logger": "http", "msg": "automatic HTTPS is completely disabled for server"},
        {"level": "odd", "msg": "x" * 300_000},
    ]
    said = home / "said"
    said.write_text("".join(json.dumps(line) + "\n" for line in lines) + "[1]\nno JSON at all")
    fake = home / "caddy"
    fake.write_text(f"#!/bin/sh\ncat >/dev/null\ncat {said} >&2\nexit 3\n")
    fake.chmod(0o755)
    with caplog.at_level(logging.DEBUG), caddy.web(home, str(fake)):
        pass
    logged = {record.getMessage()[:60]: record.levelno for record in caplog.records if record.name == "clr.caddy"}
    messages = [message[:60] for message in caplog.messages]
    assert logged["http: an error cause=why"] == logging.ERROR
    assert logged["caddy: a warning"] == logging.WARNING
    assert logged["tls.obtain: certificate obtained successfully identifier=x"] == logging.INFO
    assert logged["admin: admin endpoint started"] == logging.DEBUG
    assert logged["http: automatic HTTPS is completely disabled for server"] == logging.DEBUG
    assert any("no JSON at all" in message for message in caplog.messages)
    assert messages.count("http: an error cause=why") == 1


def test_version_is_told_without_decoration(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(program).parent}:{os.environ['PATH']}")
    assert caddies.versions()["caddy"][0].isdigit()
    assert " " not in caddies.versions()["caddy"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert caddies.versions() == {"caddy": "missing"}


def test_password_is_hashed_with_bcrypt_and_a_longer_one_than_it_takes_is_refused(program: str) -> None:
    hashed = asyncio.run(caddies.hash_password(" pä$$ word ", program))
    assert hashed.startswith("$2")
    assert "\n" not in hashed
    with pytest.raises(WebServerError, match="longer than 72 bytes"):
        asyncio.run(caddies.hash_password("ä" * 37, program))


def _listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
