"""What is served of a site's page, status and metrics, and that nothing beside them is, with both Debians' Caddy."""

from __future__ import annotations

import base64
import json
import socket
from email.utils import formatdate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from clr_client.settings import load
from clr_client.web.config import PAGE_POLICY, configuration, site_folder
from clr_client.web.page import Page
from support import caddy
from support.documents import document
from support.server import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.caddy import Answer, Web

SECRET = b"nobody may read this"
METRICS = b"# HELP clr_up Whether\nclr_up 1\n"


@pytest.fixture(scope="module")
def short_tmp() -> Iterator[Path]:
    with TemporaryDirectory(prefix="clr") as folder:
        yield Path(folder)


@pytest.fixture(scope="module", params=caddy.PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    return caddy.program(request.param)


def furnish(web: Web, **changes: object) -> None:
    """Publish, write what the watcher would, and leave secrets wherever something of the site lies."""
    web.publish(1, {"disk.vmdk": b"disk"})
    Page(web.settings).tell(document(**changes))
    folder = site_folder(web.settings)
    (folder / "metrics").write_bytes(METRICS)
    generation = web.library / "generations" / "1" / "_clr"
    generation.mkdir()
    secrets = ("alive", "secret.json", "id_syncer", "site/.new-status.json", "site/.hidden.json", "site/note.txt")
    for name in secrets:
        (web.run_dir / name).write_bytes(SECRET)
    for name in ("status.json", "planted.json", "evil.js"):
        (generation / name).write_bytes(SECRET)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "x.json").write_bytes(SECRET)
    (web.library / "status.json").write_bytes(SECRET)


@pytest.fixture(scope="module")
def browsed(program: str, short_tmp: Path) -> Iterator[Web]:
    with caddy.web(short_tmp / f".b {len(program)}", program, LIBRARY_BROWSE="true") as web:
        furnish(web)
        yield web


@pytest.fixture(scope="module")
def closed(program: str, short_tmp: Path) -> Iterator[Web]:
    with caddy.web(short_tmp / f"c{len(program)}", program) as web:
        furnish(web)
        yield web


@pytest.fixture(params=["browse on", "browse off"])
def either(request: pytest.FixtureRequest, browsed: Web, closed: Web) -> Web:
    return browsed if request.param == "browse on" else closed


FILES = {
    "/_clr/": "text/html; charset=utf-8",
    "/_clr/status.json": "application/json",
    "/_clr/progress.json": "application/json",
    "/_clr/metrics": "text/plain; version=0.0.4; charset=utf-8",
    "/_clr/style.css": "text/css; charset=utf-8",
    "/_clr/page.js": "text/javascript; charset=utf-8",
    "/_clr/icon.svg": "image/svg+xml",
}


@pytest.mark.parametrize("path", FILES)
def test_each_file_has_its_type_is_never_cached_and_may_load_nothing_foreign(either: Web, path: str) -> None:
    answer = either.ask(path)
    assert (answer.status, answer.headers["content-type"]) == (200, FILES[path])
    assert answer.headers["content-security-policy"] == PAGE_POLICY
    assert "default-src 'none'" in PAGE_POLICY
    assert "unsafe" not in PAGE_POLICY
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not answer.headers.keys() & {"etag", "last-modified", "server", "accept-ranges"}
    head = either.ask(path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) == len(answer.body) > 0


def test_what_is_served_is_what_was_written_by_the_very_next_request(either: Web) -> None:
    page, conditions = Page(either.settings), {"If-Modified-Since": formatdate(usegmt=True), "If-None-Match": "*"}
    for number in range(10, 20):
        page.tell(document(failures_in_row=number))
        for headers in ({}, conditions, {"Range": "bytes=0-1"}):
            answer = either.ask("/_clr/status.json", headers=headers)
            assert answer.status == 200
            assert json.loads(answer.body) == document(failures_in_row=number)
    live = json.loads(either.ask("/_clr/progress.json").body)
    assert {"schema", "written", "state", "running"} <= live.keys()


def test_the_page_is_at_the_top_unless_folders_are_listed_there(browsed: Web, closed: Web) -> None:
    page = closed.ask("/_clr/")
    top = closed.ask("/")
    assert (top.body, top.headers["content-security-policy"]) == (page.body, PAGE_POLICY)
    assert b"Tmpl one" in browsed.ask("/").body
    assert browsed.ask("/_clr/").body == browsed.ask("/_clr/?x=1").body


def test_the_page_without_its_slash_is_redirected_within_this_site(either: Web) -> None:
    answer = either.ask("/_clr")
    assert (answer.status, answer.headers["location"]) == (308, "/_clr/")


SPELLINGS = [
    *("index.html", ".new-status.json", ".hidden.json", "note.txt", "planted.json", "evil.js", "deeper/x.json", "x"),
    *("metrics/", "status.json/", "status.json%00", "status%2ejson%2f", "STATUS.JSON", "Metrics", "-/..//x"),
    *("../alive", "..%2falive", "%2e%2e/alive", "..\\alive", "..%5calive", "x/../../alive", "./../alive"),
    *("../secret.json", "..%2fsecret.json", "%2e%2e%2fsecret.json", "..\\secret.json", "x/..%2f..%2fsecret.json"),
    *("../caddy.sock", "..%2fcaddy.sock", "../id_syncer", "..%2f..%2flibrary%2fstatus.json", "../../status.json"),
    *("../site/.new-status.json", "//../secret.json", "/..;/secret.json", "....//secret.json"),
    *("%252e%252e/secret.json", "%c0%ae%c0%ae/secret.json", "~", "*"),
    *("{env.PATH}", "{file./etc/passwd}", "{http.vars.root}", "status.json{file./etc/passwd}"),
]


def test_nothing_else_is_served_there_in_any_spelling(either: Web) -> None:
    for spelling in SPELLINGS:
        for prefix in ("/_clr/", "/_CLR/", "//_clr/", "/x/../_clr/", "/%5fclr/"):
            for method in ("GET", "HEAD"):
                answer = either.ask(f"{prefix}{spelling}", method)
                assert answer.status in {400, 404}, f"{prefix}{spelling}"
                assert SECRET not in answer.body
                assert b"root:" not in answer.body
                assert "/bin" not in json.dumps(answer.headers)


@pytest.mark.parametrize("path", ["/_CLR/", "/_CLR/status.json", "/_Clr/metrics", "/_clr/_clr/", "/_clr//_clr/metrics"])
def test_no_other_case_or_depth_of_the_name_means_the_same_or_an_item(either: Web, path: str) -> None:
    assert either.ask(path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
def test_files_can_only_be_read(either: Web, method: str) -> None:
    for path in FILES:
        assert either.ask(path, method, {"Content-Length": "0"}).status == 405


def test_before_anything_was_written_there_is_nothing_and_the_library_is_served(program: str, short_tmp: Path) -> None:
    with caddy.web(short_tmp / f"n{len(program)}", program) as web:
        web.publish(1, {})
        assert {web.ask(path).status for path in (*FILES, "/")} == {404}
        assert web.ask("/lib.json").status == 200


def ask(port: int, path: str, method: str = "GET") -> tuple[int, bytes, bytes]:
    """Ask a port: status, head and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.lower(), body


def login(web: Web, path: str, password: str) -> Answer:
    word = base64.b64encode(f"vcsp:{password}".encode()).decode()
    return web.ask(path, headers={"Authorization": f"Basic {word}"})


def test_with_a_password_all_of_it_asks_and_the_port_for_metrics_tells_those_alone(
    program: str, short_tmp: Path
) -> None:
    port = free_port()
    settings = {"LIBRARY_PASSWORD": "word", "METRICS_PORT": str(port)}
    with caddy.web(short_tmp / f"p{len(program)}", program, **settings) as web:
        furnish(web)
        for path in (*FILES, "/", "/_clr", "/_clr/nothing"):
            answer = web.ask(path)
            assert (answer.status, answer.headers["www-authenticate"][:6]) == (401, "Basic ")
            assert b"clr_up" not in answer.body
            assert login(web, path, "wrong").status == 401
            assert login(web, path, "word").status in {200, 308, 404}
        assert login(web, "/_clr/status.json", "word").status == 200

        status, head, body = ask(port, "/metrics")
        assert (status, body) == (200, METRICS)
        assert b"content-type: text/plain; version=0.0.4" in head
        assert ask(port, "/healthz") == (200, ask(port, "/healthz")[1], b"ok\n")
        refused = ["/", "/lib.json", "/_clr/", "/_clr/metrics", "/status.json", "/metrics/", "/Metrics", "/alive"]
        refused += ["/_items/u1/1/disk.vmdk", "/current/lib.json", "/%2e%2e/alive", "/..%2falive", "/healthz/x"]
        refused += [f"/{spelling}" for spelling in SPELLINGS if spelling != "metrics/"]
        for path in refused:
            status, _, body = ask(port, path)
            assert status in {400, 404}, path
            assert SECRET not in body
            assert b"disk" not in body
        for method in ("POST", "PUT", "DELETE"):
            assert ask(port, "/metrics", method)[0] == 405
        assert ask(web.http, "/healthz")[0] == 401


def test_without_a_port_for_metrics_none_is_opened() -> None:
    settings = {"SYNC_PEER": "x", "HTTP_PORT": "8080", "TLS_NAME": "x.example.com"}
    servers = configuration(load(settings)[0])["apps"]["http"]["servers"]
    assert sorted(address for server in servers.values() for address in server["listen"]) == [":443", ":8080"]


def test_over_https_the_page_is_nowhere_else(program: str, short_tmp: Path) -> None:
    home = short_tmp / f"s{len(program)}"
    caddy.make_pair(home / "certs")
    with caddy.web(home, program, TLS_NAME="library.example.com", TLS_CUSTOM_CERT="true") as web:
        furnish(web)
        assert web.ask("/_clr/status.json").status == 308
        assert web.ask("/_clr/status.json", tls=True, name="library.example.com").status == 200
