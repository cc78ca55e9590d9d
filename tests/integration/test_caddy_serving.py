"""What the library's web site serves, and what it never does, with both Debians' Caddy."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import socket
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from clr_client.web import config
from support import caddy
from support.server import descendants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.caddy import Web

DISK = bytes(range(256)) * 4096
FILES = {
    "a.ovf": b"<Envelope/>",
    "a.mf": b"SHA256(a.ovf)= 00",
    "disk.vmdk": DISK,
    "boot.iso": b"iso",
    "index.html": b"<html><script>alert(1)</script>",
    "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "noextension": b"<html><script>alert(1)</script>",
    "a b#c%?\"'&é.iso": b"hostile",
}


@pytest.fixture(scope="module")
def short_tmp() -> Iterator[Path]:
    with TemporaryDirectory(prefix="clr") as folder:
        yield Path(folder)


@pytest.fixture(scope="module", params=caddy.PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    return caddy.program(request.param)


@pytest.fixture(scope="module")
def browsed(program: str, short_tmp: Path) -> Iterator[Web]:
    """A published library with listings, below a hidden folder, in a path with a space."""
    with caddy.web(short_tmp / f".b {len(program)}", program, LIBRARY_BROWSE="true") as web:
        web.publish(1, FILES)
        yield web


@pytest.fixture(scope="module")
def closed(program: str, short_tmp: Path) -> Iterator[Web]:
    """A published library without listings."""
    with caddy.web(short_tmp / f"c{len(program)}", program) as web:
        web.publish(1, FILES)
        yield web


@pytest.fixture(params=["browse on", "browse off"])
def either(request: pytest.FixtureRequest, browsed: Web, closed: Web) -> Web:
    return browsed if request.param == "browse on" else closed


def test_manifests_are_served_as_json_that_is_never_cached(either: Web) -> None:
    for path in ("/lib.json", "/items.json"):
        answer = either.ask(path)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-cache"
        json.loads(answer.body)


def test_manifest_is_sent_whole_even_to_a_client_that_claims_to_have_it(either: Web) -> None:
    first = either.ask("/lib.json")
    answer = either.ask(
        "/lib.json", headers={"If-Modified-Since": first.headers["last-modified"], "If-None-Match": "*"}
    )
    assert (answer.status, answer.body) == (200, first.body)


@pytest.mark.parametrize("path", ["/_items/u1/1/disk.vmdk", "/Tmpl%20one/disk.vmdk"])
def test_disk_is_served_with_its_exact_length_under_both_its_urls(either: Web, path: str) -> None:
    answer = either.ask(path, headers={"Accept-Encoding": "gzip, zstd"})
    assert answer.status == 200
    assert answer.headers["content-length"] == str(len(DISK))
    assert "content-encoding" not in answer.headers
    assert answer.body == DISK


def test_large_files_go_from_the_disk_to_the_line_without_passing_through_the_program(
    program: str, short_tmp: Path
) -> None:
    """By sendfile(2), some hundred kilobytes a call; a program that reads and writes does so in pieces of 32 KiB."""
    size = 64_000_000
    with caddy.web(short_tmp / f".s {len(program)}", program, LIBRARY_BROWSE="true") as web:
        with (web.publish(1, {}) / "disk.vmdk").open("wb") as file:
            file.truncate(size)
        process = next(pid for pid in descendants(os.getpid()) if f"{web.library}" == os.readlink(f"/proc/{pid}/cwd"))
        for path in ("/_items/u1/1/disk.vmdk", "/Tmpl%20one/disk.vmdk"):
            before = reads(process)
            assert len(web.ask(path).body) == size
            assert reads(process) - before < size / 4 / 32768, path


def reads(pid: int) -> int:
    """How often a process has called the kernel to read something; sendfile counts as one."""
    return int(Path(f"/proc/{pid}/io").read_text().partition("syscr: ")[2].split()[0])


def test_head_gives_the_length_without_a_body(either: Web) -> None:
    answer = either.ask("/_items/u1/1/disk.vmdk", "HEAD")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(len(DISK)), b"")


def test_range_gives_just_that_part(either: Web) -> None:
    answer = either.ask("/_items/u1/1/disk.vmdk", headers={"Range": "bytes=1000-1099"})
    assert (answer.status, answer.body) == (206, DISK[1000:1100])
    assert answer.headers["content-range"] == f"bytes 1000-1099/{len(DISK)}"
    past = either.ask("/_items/u1/1/disk.vmdk", headers={"Range": f"bytes={len(DISK)}-"})
    assert past.status == 416


def test_interrupted_download_resumes_by_etag_and_starts_over_when_the_file_changed(either: Web) -> None:
    etag = either.ask("/_items/u1/1/disk.vmdk", "HEAD").headers["etag"]
    same = either.ask("/_items/u1/1/disk.vmdk", headers={"Range": "bytes=5-9", "If-Range": etag})
    other = either.ask("/_items/u1/1/disk.vmdk", headers={"Range": "bytes=5-9", "If-Range": '"other"'})
    assert (same.status, other.status) == (206, 200)


def test_hostile_file_name_is_served_at_its_quoted_url(either: Web) -> None:
    answer = either.ask("/_items/u1/1/a%20b%23c%25%3F%22%27%26%C3%A9.iso")
    assert (answer.status, answer.body) == (200, b"hostile")


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("a.ovf", "application/xml"),
        ("a.mf", "text/plain; charset=utf-8"),
        ("item.json", "application/json"),
        ("disk.vmdk", "application/octet-stream"),
        ("boot.iso", "application/octet-stream"),
        ("index.html", "application/octet-stream"),
        ("picture.svg", "application/octet-stream"),
        ("noextension", "application/octet-stream"),
    ],
)
def test_file_of_a_template_never_runs_as_a_script_in_a_browser(either: Web, name: str, type_: str) -> None:
    for folder in ("/_items/u1/1/", "/Tmpl%20one/"):
        answer = either.ask(f"{folder}{name}")
        assert answer.status == 200
        assert answer.headers["content-type"] == type_
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert either.ask(f"{folder}{name}/").status == 404


def test_server_does_not_say_what_it_is(either: Web) -> None:
    for path in ("/lib.json", "/nothing", "/.x", "/"):
        assert "server" not in either.ask(path).headers


@pytest.mark.parametrize(
    "path",
    [
        "/.state.json",
        "/%2estate.json",
        "/%2Estate%2ejson",
        "//.state.json",
        "/./.state.json",
        "/.state.json/",
        "/x/../.state.json",
        "/x/%2e%2e/.state.json",
        "/Tmpl%20one/../.state.json",
        "/_items/../.state.json",
        "/_items/..%2f.state.json",
        "/%2f.state.json",
        "/\\.state.json",
        "/x\\..\\.state.json",
        "/..\\..\\status.json",
        "/.",
        "/..",
        "/../status.json",
        "/../../status.json",
        "/%2e%2e/status.json",
        "/..%2fstatus.json",
        "/..%5cstatus.json",
        "/.%2e/status.json",
        "/_items/../../../status.json",
        "/_items/..%2f..%2f..%2fstatus.json",
        "/_items/%2e%2e/%2e%2e/mirror/x",
        "/_items/u1/1/.hidden",
        "/Tmpl%20one/.hidden",
        "/_items/.new-u2/x",
        "/.htaccess",
        "/progress.json",
        "/status.json",
        "/mirror/x",
        "/known_hosts",
        "/lib.json%00",
        "/%00",
        "/lib.json%0a",
        "/lib.json/",
        "/Tmpl%20one/.clr-partial/disk.vmdk",
    ],
)
def test_hidden_and_foreign_files_are_not_found_in_any_spelling(either: Web, path: str) -> None:
    tree = either.library / "items" / "u1" / "1"
    (tree / ".hidden").write_text("secret")
    for file in ("status.json", "progress.json", "known_hosts"):
        (either.library / file).write_text("secret")
    (either.library / "mirror").mkdir(exist_ok=True)
    (either.library / "mirror" / "x").write_text("secret")
    answer = either.ask(path)
    if path in {"/.", "/.."} and either.settings.library_browse:
        # What a path means is settled before it is matched: this is the top folder.
        assert answer.status == 200 or answer.headers["location"] == "/"
    else:
        assert answer.status in {400, 404}
    assert b"secret" not in answer.body
    assert answer.body != b"state"


SECRET = b"nobody may read this"
ON_THE_VOLUME = [
    ".lock",
    ".reserve",
    ".new-current-x",
    "status.json",
    "progress.json",
    "known_hosts",
    "digests.json",
    "settled.json",
    "pinned",
    "basis/0/disk.vmdk",
    "mirror/Tmpl one/disk.vmdk",
    "mirror/Tmpl one/.clr-partial/disk.vmdk",
    "mirror/.ssh/id_syncer",
    "generations/1/.state.json",
    "generations/1/.published.json",
    "generations/.new-2/lib.json",
    "items/.new-u2/disk.vmdk",
    "items/u1/.new-2/disk.vmdk",
    "items/u1/1/.htaccess",
    "items/u1/1/.rsync-partial/disk.vmdk",
    "items/u1/1/.vSphere-HA/disk.vmdk",
    "items/u1/1/.disk.vmdk.Xa81kZ",
]


@pytest.mark.parametrize("file", ON_THE_VOLUME)
def test_what_the_client_keeps_for_itself_is_on_the_volume_and_not_found(either: Web, file: str) -> None:
    path = either.library / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(SECRET)
    quoted = quote(file)
    beside = quoted.removeprefix("generations/1/").removeprefix("items/")  # as seen from the root that is served
    readable = quoted.replace("items/u1/1/", "Tmpl%20one/")
    for asked in (f"/{quoted}", f"/{beside}", f"/_items/{beside}", f"/_items/../{quoted}", f"/{readable}"):
        for spelling in (asked, asked.replace(".", "%2e"), f"/.{asked}", f"/x/..{asked}", f"/_items/..{asked}"):
            answer = either.ask(spelling)
            assert answer.status in {400, 404}, spelling
            assert SECRET not in answer.body
            assert either.ask(spelling, "HEAD").status in {400, 404}
    hidden = next((part for part in Path(file).parts if part.startswith(".")), Path(file).parts[0])
    for page in ("/", "/Tmpl%20one/"):
        assert f">{hidden}".encode() not in either.ask(page).body
    path.unlink()


RAW = [
    b"GET /lib.json\r\n\r\n",
    b"GET /lib.json HTTP/1.1\r\n\r\n",
    b"GET /lib.json HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /lib.json\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /lib.json HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET lib.json HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET ../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /lib.json HTTP/1.1\r\nHost: ../../etc/passwd\r\n\r\n",
    b"GET /../status.json HTTP/1.1\r\nHost: x\r\nX-Forwarded-Host: evil\r\nX-Original-URL: /.state.json\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2_000_000 + b"\r\n\r\n",
    b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    b"SSH-2.0-OpenSSH_9.2\r\n",
    bytes(range(256)) * 10,
]


@pytest.mark.parametrize("request_", RAW, ids=lambda raw: repr(raw[:40]))
def test_malformed_request_is_refused_and_nothing_outside_is_sent(either: Web, request_: bytes) -> None:
    (either.library / "status.json").write_bytes(SECRET)
    answer = b""
    with contextlib.closing(either.connect()) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request_)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while chunk := connection.recv(65536):
                answer += chunk
    assert SECRET not in answer
    assert b"root:" not in answer
    assert b'"state"' not in answer
    status = answer.split(b" ")[1] if answer.startswith(b"HTTP/1.") else b"400"
    harmless = request_.startswith((b"OPTIONS", b"GET /lib.json HTTP/1.1\r\nHost: ../"))
    assert status.startswith((b"4", b"505")) or (harmless and status == b"200" and b"etc" not in answer), answer[:200]
    assert either.ask("/lib.json").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "BREW"])
def test_other_methods_are_refused_with_those_allowed(either: Web, method: str) -> None:
    answer = either.ask("/lib.json", method, {"Content-Length": "0"})
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_connect_reaches_nothing(either: Web) -> None:
    assert either.ask("127.0.0.1:22", "CONNECT").status in {400, 404, 405}
    assert either.ask("http://127.0.0.1:22/x").status == 404


def test_any_host_name_gives_the_same_library(either: Web) -> None:
    for host in ("vcenter.example.com", "evil.example", "127.0.0.1:1", "[::1]"):
        assert either.ask("/lib.json", headers={"Host": host}).status == 200


def test_overlong_request_is_refused_and_serving_goes_on(either: Web) -> None:
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        assert either.ask("/" + "a" * 200_000).status in {400, 404, 414, 431}
    assert either.ask("/lib.json").status == 200


def test_folders_are_not_found_without_browsing(closed: Web) -> None:
    for path in ("/", "/Tmpl%20one", "/Tmpl%20one/", "/_items", "/_items/", "/_items/u1/", "/_items/u1/1/"):
        assert closed.ask(path).status == 404


def test_listing_shows_the_library_but_neither_item_trees_nor_hidden_files(browsed: Web) -> None:
    page = browsed.ask("/", headers={"Accept": "application/json"})
    assert page.status == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b'href="./Tmpl%20one/"' in page.body
    assert b"lib.json" in page.body
    assert b"_items" not in page.body
    assert b".state" not in page.body
    for path in ("/_items", "/_items/", "/_items/u1/", "/_items/u1/1/"):
        assert browsed.ask(path).status == 404


def test_listing_quotes_hostile_names_and_runs_no_script(browsed: Web) -> None:
    tree = browsed.library / "items" / "u1" / "1"
    (tree / "<script>alert(1)<").write_text("x")
    (tree / ".dot").write_text("x")
    page = browsed.ask("/Tmpl%20one/")
    assert page.status == 200
    assert b"<script>" not in page.body
    assert b"&lt;script&gt;alert(1)&lt;" in page.body
    assert b'href="./a%20b%23c%25%3F%22%27&amp;%C3%A9.iso"' in page.body
    assert b".dot" not in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_folder_without_its_slash_is_redirected_within_this_site(browsed: Web) -> None:
    answer = browsed.ask("/Tmpl%20one")
    assert (answer.status, answer.headers["location"]) == (308, "/Tmpl%20one/")
    for path in ("//Tmpl%20one", "/\\Tmpl%20one", "//evil.example/..", "/%2fTmpl%20one"):
        answer = browsed.ask(path)
        assert not answer.headers.get("location", "/x").startswith(("//", "/\\", "http"))


def test_newly_published_generation_is_served_by_the_very_next_request(program: str, short_tmp: Path) -> None:
    with (
        caddy.web(short_tmp / f"f{len(program)}", program, LIBRARY_BROWSE="true") as web,
        contextlib.closing(web.connect()) as connection,
    ):
        for number in range(1, 30):
            web.publish(number, {"disk.vmdk": b"%d" % number})
            for path, expected in [
                ("/lib.json", b'{"version": "%d"}' % number),
                ("/items.json", b'{"items": [%d]}' % number),
                ("/Tmpl%20one/disk.vmdk", b"%d" % number),
                (f"/_items/u1/{number}/disk.vmdk", b"%d" % number),
                ("/_items/u1/1/disk.vmdk", b"1"),
            ]:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                response = http.client.HTTPResponse(connection)
                response.begin()
                assert response.read() == expected


def test_download_begun_before_a_publication_ends_with_the_old_content(program: str, short_tmp: Path) -> None:
    with caddy.web(short_tmp / f"g{len(program)}", program) as web:
        web.publish(1, {"disk.vmdk": DISK * 16})
        with contextlib.closing(web.connect()) as connection:
            connection.sendall(b"GET /Tmpl%20one/disk.vmdk HTTP/1.1\r\nHost: x\r\n\r\n")
            response = http.client.HTTPResponse(connection)
            response.begin()
            body = response.read(1000)
            web.publish(2, {"disk.vmdk": b"new"})
            body += response.read()
        assert hashlib.sha256(body).digest() == hashlib.sha256(DISK * 16).digest()


@pytest.mark.parametrize("browse", ["true", "false"])
def test_before_anything_was_published_manifests_answer_503_with_the_progress(
    program: str, short_tmp: Path, browse: str
) -> None:
    with caddy.web(short_tmp / f"n{len(program)}{browse}", program, LIBRARY_BROWSE=browse) as web:
        for path in ("/lib.json", "/items.json"):
            answer = web.ask(path)
            assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
            assert json.loads(answer.body) == {"status": "TRANSFERRING", "progress": 0, "message": ""}

        told = {"status": "TRANSFERRING", "progress": 42, "message": ""}
        (web.library / "progress.json").write_text(json.dumps(told))
        conditions = {"If-None-Match": "*", "If-Modified-Since": "Sun, 06 Nov 2044 08:49:37 GMT", "Range": "bytes=0-3"}
        for path in ("/lib.json", "/items.json", "/lib.json?x=1"):
            for headers in ({}, conditions):
                answer = web.ask(path, headers=headers)
                assert answer.status == 503
                assert json.loads(answer.body) == told
                assert answer.headers["content-type"] == "application/json"
                assert answer.headers["cache-control"] == "no-store"
                assert int(answer.headers["retry-after"]) > 0
                assert "etag" not in answer.headers
        assert web.ask("/lib.json", "HEAD").status == 503
        assert web.ask("/anything").status == 404
        assert web.ask("/").status == 404
        assert web.ask("/progress.json").status == 404

        web.publish(1, FILES)
        assert web.ask("/lib.json").status == 200


def test_password_is_asked_for_everything_and_only_of_vcsp(program: str, short_tmp: Path) -> None:
    def login(user: str, password: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}

    password = "pä ss:w0rd {env.HOME} $(id)"
    with caddy.web(short_tmp / f"p{len(program)}", program, LIBRARY_PASSWORD=password, LIBRARY_BROWSE="true") as web:
        web.publish(1, FILES)
        for path in ("/lib.json", "/items.json", "/", "/_items/u1/1/disk.vmdk", "/.state.json", "/nothing"):
            answer = web.ask(path)
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("Basic ")
            assert b"version" not in answer.body
        assert web.ask("/lib.json", headers=login("vcsp", password)).status == 200
        for wrong in (login("vcsp", "wrong"), login("admin", password)):
            assert web.ask("/lib.json", headers=wrong).status == 401


def test_five_hundred_slow_connections_do_not_keep_a_reader_waiting(closed: Web) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(500):
            slow = stack.enter_context(contextlib.closing(closed.connect()))
            request = b"GET /_items/u1/1/disk.vmdk HTTP/1.1\r\nHost: x\r\n"
            slow.sendall(request if number % 2 else request + b"\r\n")  # half never finish asking, half never read
        started = time.monotonic()
        answer = closed.ask("/_items/u1/1/disk.vmdk")
        assert answer.body == DISK
        assert time.monotonic() - started < 5


@pytest.fixture
def impatient(program: str, short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A site that waits two seconds for a request, instead of fifteen."""
    monkeypatch.setattr(config, "HEADER_TIMEOUT", "2s")
    with TemporaryDirectory(dir=short_tmp) as home, caddy.web(Path(home), program) as web:
        web.publish(1, FILES)
        yield web


def test_client_that_never_finishes_its_request_is_hung_up_on(impatient: Web) -> None:
    with contextlib.closing(impatient.connect()) as slow:
        slow.sendall(b"GET /lib.json HTTP/1.1\r\nHost: x\r\n")
        slow.settimeout(15)
        assert b"200 OK" not in slow.recv(1000)


def test_client_that_never_finishes_its_handshake_is_hung_up_on_and_hundreds_of_them_keep_nobody_waiting(
    program: str, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "HEADER_TIMEOUT", "2s")
    name = "library.example.com"
    settings = {"TLS_NAME": name, "TLS_CUSTOM_CERT": "true"}
    with TemporaryDirectory(dir=short_tmp) as home, contextlib.ExitStack() as stack:
        caddy.make_pair(Path(home) / "certs", name)
        web = stack.enter_context(caddy.web(Path(home), program, **settings))
        web.publish(1, FILES)
        slow = []
        for number in range(300):
            connection = socket.create_connection(("127.0.0.1", web.https), timeout=20)
            slow.append(stack.enter_context(contextlib.closing(connection)))
            connection.sendall(b"\x16\x03\x01\x02\x00"[: number % 6])
        started = time.monotonic()
        assert web.ask("/_items/u1/1/disk.vmdk", tls=True, name=name).body == DISK
        assert time.monotonic() - started < 5
        for connection in slow:
            with contextlib.suppress(ConnectionError):
                while connection.recv(1000):
                    pass


def test_slow_download_outlives_the_time_allowed_for_requests(impatient: Web) -> None:
    tree = impatient.library / "items" / "u1" / "1"
    with (tree / "slow.vmdk").open("wb") as file:
        file.truncate(64 << 20)
    with contextlib.closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", impatient.http))
        connection.sendall(b"GET /_items/u1/1/slow.vmdk HTTP/1.1\r\nHost: x\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        count = len(response.read(4096))
        threading.Event().wait(4)
        while chunk := response.read(1 << 20):
            count += len(chunk)
    assert count == 64 << 20
