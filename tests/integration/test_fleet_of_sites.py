"""`clr fleet` against a hundred servers of all kinds, and against real sites with a password and a certificate."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.fleet.reading import UNREACHABLE, UNREADABLE, Fleet
from clr_client.fleet.sites import Site
from support import caddy
from support.documents import document, held
from support.server import free_port, wait_until
from support.site import CLR, get, running
from support.site import Site as RealSite
from support.templates import fake_template
from support.webservers import Handler, certificate, misbehaving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path

    from support.server import Server
    from support.webservers import Misbehaving

STATUS = "/_clr/status.json"


def clr_fleet(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    argv = [CLR, "fleet", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, **options)


def current(now: datetime | None = None, **changes: Any) -> bytes:
    """A status as a site writes it now."""
    from datetime import UTC, datetime, timedelta

    now = now or datetime.now(UTC)
    times = {"written": now, "last_success": now - timedelta(minutes=30), "next_sync": now + timedelta(minutes=30)}
    return json.dumps(document(**{name: time.isoformat() for name, time in times.items()}, **changes)).encode()


@contextlib.contextmanager
def raw(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does to each connection what ``answer`` does; yields its port, on all addresses of loopback."""
    listener = socket.create_server(("", 0), backlog=256)
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            answer(connection)
            over.wait(60)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def well(connection: socket.socket) -> None:
    body = current()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)


def drip(head: bytes) -> Callable[[socket.socket], None]:
    """Send a head, and then a byte every now and then, without end."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(3000):
            connection.sendall(b"x")
            time.sleep(0.1)

    return answer


def test_a_hundred_sites_many_of_them_dead_are_read_at_once_and_the_dead_ones_shown_as_such(tmp_path: Path) -> None:
    kinds: dict[str, tuple[int, Callable[[socket.socket], None] | None, str]] = {
        "well": (50, well, "success"),
        "silent": (15, lambda _: None, "unreachable"),
        "refusing": (15, None, "unreachable"),
        "slow-head": (5, drip(b"HTTP/1.1 200 OK\r\nX: "), "unreachable"),
        "slow-body": (5, drip(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n"), "unreachable"),
        "junk": (10, lambda connection: connection.sendall(b"\x00\x1b[2J junk\r\n" * 3), "unreadable"),
    }
    lines, expected = [], {}
    with contextlib.ExitStack() as servers:
        for kind, (count, answer, state) in kinds.items():
            port = servers.enter_context(raw(answer)) if answer else free_port()
            for number in range(count):
                lines.append(f"{kind}-{number} http://127.0.{len(lines)}.1:{port}/lib.json")
                expected[f"{kind}-{number}"] = state
        assert len(lines) == 100
        began = time.monotonic()
        done = clr_fleet("-", "--json", input="\n".join(lines))
        took = time.monotonic() - began
    assert done.returncode == 4, done.stderr
    assert {entry["name"]: entry["state"] for entry in json.loads(done.stdout)["sites"]} == expected
    assert done.stderr == ""
    assert took < 20, "one after the other they take more than a minute"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Misbehaving]:
    (tmp_path / "root" / "_clr").mkdir(parents=True)
    (tmp_path / "root" / "_clr" / "status.json").write_bytes(current())
    with misbehaving(tmp_path / "root") as running:
        yield running


def read(server: Misbehaving, timeout: float = 5.0, **fields: Any) -> Any:
    return Fleet([Site("berlin", f"{server.url}/", **fields)], timeout).read()[0]


ANSWERS: dict[str, tuple[Callable[[Handler], None], str]] = {
    "no such page": (lambda handler: handler.answer(404), "has no status"),
    "an error": (lambda handler: handler.answer(500), "answers 500 Internal Server Error"),
    "a password is wanted": (lambda handler: handler.answer(401), "asks for a password"),
    "no JSON": (lambda handler: handler.answer(200, b"<html>"), "is not JSON"),
    "bytes": (lambda handler: handler.answer(200, bytes(range(256))), "is not JSON in UTF-8"),
    "a list": (lambda handler: handler.answer(200, b"[]"), "is not a JSON object"),
    "no number": (lambda handler: handler.answer(200, b'{"schema": NaN}'), "NaN is not JSON"),
    "a huge number": (lambda handler: handler.answer(200, b'{"a": ' + b"9" * 5000 + b"}"), "is not JSON"),
    "nested": (lambda handler: handler.answer(200, b'{"a":' + b"[" * 200_000), "is not JSON"),
    "compressed": (
        lambda handler: handler.answer(200, b"x", {"Content-Encoding": "br"}),
        "sends its status compressed",
    ),
    "cut": (lambda handler: handler.answer(200, b"{", length=99), "broke off in the middle"),
    "without end": (
        lambda handler: handler.answer(200, b" " * (17 << 20), length=None),
        "has more than 16777216 bytes",
    ),
    "in a circle": (lambda handler: handler.answer(302, headers={"Location": STATUS}), "redirects too often"),
    "bad location": (lambda handler: handler.answer(302, headers={"Location": "http://[x"}), "redirects to"),
    "to a file": (lambda handler: handler.answer(302, headers={"Location": "file:///etc/passwd"}), "is not a URL"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_none_is_data(case: str, server: Misbehaving) -> None:
    behaviour, why = ANSWERS[case]
    server.behaviours[STATUS] = behaviour
    found = read(server)
    assert (found.failure, found.document) == (UNREADABLE, None)
    assert why in found.reason


def test_a_redirect_is_followed_on_the_same_host_only_and_no_password_leaves_it(
    server: Misbehaving, tmp_path: Path
) -> None:
    with misbehaving(tmp_path / "root") as other:
        elsewhere = other.url.replace("127.0.0.1", "127.0.0.2")
        for target in (f"{elsewhere}{STATUS}", f"//127.0.0.2:{other.url.rpartition(':')[2]}{STATUS}"):
            headers = {"Location": target}
            server.behaviours[STATUS] = lambda handler, headers=headers: handler.answer(307, headers=headers)  # type: ignore[misc]
            found = read(server, password="secret")
            assert found.failure == UNREADABLE
            assert "redirects elsewhere" in found.reason
            assert other.requests == []
    server.behaviours[STATUS] = lambda handler: handler.answer(307, headers={"Location": "/elsewhere.json"})
    server.behaviours["/elsewhere.json"] = lambda handler: handler.answer(200, current())
    assert read(server).document["state"] == "success"


def test_a_site_with_tls_does_not_send_its_readers_away_from_it(server: Misbehaving, tmp_path: Path) -> None:
    with misbehaving(tmp_path / "root", certificate(tmp_path / "tls")) as tls:
        headers = {"Location": f"{server.url}{STATUS}"}
        tls.behaviours[STATUS] = lambda handler: handler.answer(307, headers=headers)
        assert "redirects elsewhere" in read(tls).reason
    assert server.requests == []


def test_a_site_that_never_ends_its_answer_is_asked_again_only_after_it_did() -> None:
    asked: list[None] = []

    def answer(connection: socket.socket) -> None:
        asked.append(None)
        drip(b"HTTP/1.1 200 OK\r\nX: ")(connection)

    with raw(answer) as port:
        fleet = Fleet([Site("berlin", f"http://127.0.0.1:{port}/")], 0.3)
        for _ in range(3):
            (found,) = fleet.read()
            assert (found.failure, found.reason) == (UNREACHABLE, "did not end its answer within 0 s")
    assert len(asked) == 1


def test_a_clock_that_goes_wrong_there_is_told_by_the_date_of_the_answer(server: Misbehaving) -> None:
    dated = {"Date": "Sat, 01 Jan 2000 00:00:00 GMT"}

    def behaviour(handler: Handler) -> None:
        handler.send_response_only(200)
        handler.send_header("Date", dated["Date"])
        handler.send_header("Content-Length", "2")
        handler.end_headers()
        handler.wfile.write(b"{}")

    server.behaviours[STATUS] = behaviour
    assert read(server).ahead < -20 * 365 * 86400 / 3
    for strange in ("", "yesterday", "Sat, 99 Foo 99999 99:99:99 GMT", "0"):
        dated["Date"] = strange
        assert read(server).ahead == 0.0
    dated["Date"] = "Fri, 31 Dec 9999 23:59:59 GMT"
    assert read(server).ahead <= 10 * 365 * 86400.0


# ---------------------------------------------------------------- real sites


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    fake_template(folder / "alpha", disk_bytes=100_000)
    return folder


@pytest.fixture
def primary(library: Path, tmp_path: Path) -> Iterator[Server]:
    from support.server import Server

    with Server(library, tmp_path / "server") as up:
        yield up


def test_real_sites_with_and_without_password_and_with_a_pinned_certificate(
    library: Path, primary: Server, tmp_path: Path
) -> None:
    def site(name: str, **environment: str) -> RealSite:
        ports = {"HTTP_PORT": str(free_port()), "HTTPS_PORT": str(free_port())}
        return RealSite(tmp_path / name, primary, **ports, **environment)

    fake_template(library / "broken", disk_bytes=1000)
    (library / "broken" / "broken-disk1.vmdk").unlink()
    plain = site("plain", SYNC_EXCLUDE="broken")
    locked = site("locked", LIBRARY_PASSWORD="secret", SYNC_EXCLUDE="broken")
    tls = site("tls", TLS_NAME="127.0.0.1", TLS_CUSTOM_CERT="true", LIBRARY_PASSWORD="secret", SYNC_EXCLUDE="broken")
    holding = site("holding")
    caddy.make_pair(tls.home / "certs", "127.0.0.1")
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "wrong").write_text("geheim\n")
    with contextlib.ExitStack() as up:
        for each in (plain, locked, tls, holding):
            up.enter_context(running(each))
        http = {each: f"http://127.0.0.1:{each.environment['HTTP_PORT']}" for each in (plain, locked, holding)}
        https = f"https://127.0.0.1:{tls.environment['HTTPS_PORT']}"

        def has_synced(each: RealSite) -> bool:
            path = each.library / "status.json"
            return path.is_file() and bool(json.loads(path.read_bytes())["runs"])

        for each in (plain, locked, tls, holding):
            wait_until(lambda each=each: has_synced(each), 60, "a sync")  # type: ignore[misc]
        printed = subprocess.run([CLR, "check", f"{https}/lib.json", "--thumbprint"], capture_output=True, text=True)
        pin = re.search(r"SHA-256 thumbprint: ([0-9A-F:]+)", printed.stdout)
        assert pin is not None, printed
        file = tmp_path / "sites.txt"
        file.write_text(
            f"plain {http[plain]}/lib.json\n"
            f"locked {http[locked]} password-file=password\n"
            f"locked-out {http[locked]} password-file=wrong\n"
            f"no-password {http[locked]}\n"
            f"tls {https} password-file=password pin={pin[1]}\n"
            f"trusted {https} password-file=password ca-file=tls/certs/cert.pem\n"
            f"stranger {https} password-file=password\n"
            f"other-pin {https} password-file=password pin={'0' * 64}\n"
            f"holding {http[holding]}\n"
        )

        def told() -> dict[str, dict[str, Any]]:
            done = clr_fleet(file, "--json")
            assert done.returncode == 4, done.stderr
            return {entry["name"]: entry for entry in json.loads(done.stdout)["sites"]}

        def settled() -> dict[str, dict[str, Any]] | None:
            found = told()
            states = {found[name]["state"] for name in ("plain", "locked", "tls", "trusted")}
            return found if states == {"success"} and found["holding"]["state"] == "partial" else None

        found = wait_until(settled, 60, "what all sites say after their first sync")
        for name in ("plain", "locked", "tls", "trusted"):
            assert found[name]["level"] == "good", found[name]
            assert (found[name]["items"], found[name]["held"], found[name]["library"]) == (1, 0, "Test")
            assert found[name]["crossed_bytes"] > 50_000
            assert found[name]["next_sync"] is not None
        assert found["tls"]["certificate_until"] is not None
        assert found["locked-out"]["problems"] == ["refuses the password"]
        assert found["no-password"]["problems"] == ["asks for a password: name a password-file"]
        assert "not trusted" in found["stranger"]["problems"][0]
        assert "not the one that was given" in found["other-pin"]["problems"][0]
        assert found["holding"]["held"] == 1
        assert "held: broken: " in found["holding"]["problems"][0]
        good = tmp_path / "good.txt"
        good.write_text(f"plain {http[plain]}\nlocked {http[locked]} password-file=password\n")
        page = tmp_path / "fleet.html"
        done = clr_fleet(good, "--html", page)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split()[:2] for line in done.stdout.splitlines()[1:3]] == [
            ["locked", "success"],
            ["plain", "success"],
        ]
        assert "\x1b" not in done.stdout
        assert f'href="{http[plain]}/_clr/"' in page.read_text()
        assert "secret" not in done.stdout + page.read_text()
        assert get(plain, "_clr/status.json")[0] == 200
    gone = clr_fleet(good)
    assert gone.returncode == 4
    assert gone.stdout.count("unreachable") == 2


# ---------------------------------------------------------------- watching


def test_watching_draws_again_and_again_and_ends_well_with_ctrl_c(server: Misbehaving, tmp_path: Path) -> None:
    file = tmp_path / "sites"
    file.write_text(f"berlin {server.url}\n")
    page = tmp_path / "fleet.html"
    controller, terminal = pty.openpty()
    words = [CLR, "fleet", str(file), "--watch", "--every", "1", "--html", str(page)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    seen = b""
    try:

        def shows(text: bytes) -> bool:
            nonlocal seen
            while select.select([controller], [], [], 0)[0]:
                seen += os.read(controller, 65536)
            return text in seen

        wait_until(lambda: shows(b"1 site: 1 well "), 30, "the first table")
        assert b"\x1b[32m" in seen
        (tmp_path / "root" / "_clr" / "status.json").write_bytes(current(state="partial", held=[held("web")]))
        wait_until(lambda: shows(b"1 site: 1 not well "), 30, "what changed")
        assert b"\x1b[31m" in seen
        assert b"held: web: disk.vmdk is missing" in seen
        assert 'http-equiv="refresh" content="1"' in page.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
        os.close(controller)
    assert b"Traceback" not in seen


def test_without_colour_nothing_steers_the_terminal(server: Misbehaving, tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "100"}
    words = [CLR, "fleet", "-"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    process.communicate(f"berlin {server.url}\n".encode(), timeout=60)
    shown = b""
    with contextlib.suppress(OSError):
        while piece := os.read(controller, 65536):
            shown += piece
    os.close(controller)
    assert process.returncode == 0
    assert b"success" in shown
    assert b"\x1b" not in shown
