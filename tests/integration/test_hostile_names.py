"""Any name that a file system allows travels from the real server to a reader of the real Caddy, or is held with a
reason; wherever it is shown, it is harmless.
"""

from __future__ import annotations

import html
import http.client
import json
import os
import re
import socket
import stat
import subprocess
import unicodedata
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

import pytest
from clr_client.text import UNSAFE
from support.server import Server, free_port, wait_until
from support.site import CLR, Site, cli_environment, get, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BYTES = [bytes([byte]) for byte in range(1, 256) if byte != 0x2F]
WHOLE = [
    *(
        b"-rf",
        b"--delete",
        b" lead",
        b"tail ",
        b"~",
        b"#",
        b"%",
        b"%41",
        b"%zz",
        b"?",
        b"&",
        b"a;b",
        b"'",
        b'"',
        b"`id`",
    ),
    *(
        b"$(id)",
        b"{{.Env}}",
        b"{env.HOME}",
        b"{http.request.uri}",
        b"<script>alert(1)</script>",
        b"javascript:alert(1)",
    ),
    *(
        b"a&amp;b",
        b"C:",
        b"http:x",
        b"back\\slash",
        b"\\..\\..\\x",
        b"...",
        b"a" * 255,
        "ü".encode(),
        "u\u0308".encode(),
    ),
    *("\u202egnp.exe".encode(), "\u2028".encode(), "\u200f".encode(), "\U0001f4be".encode() * 60, b"\xed\xa0\x80"),
    *(b"\xc3\x28", b"[x]*", b"index.html", b"favicon.ico", b"robots.txt", b"a+b", b"a=b", b"@", b":", b",", b"^|<>"),
]
NAMES = [*(b"x" + byte + b"y" for byte in BYTES), *WHOLE]
OUTSIDE = b"from outside the library"


class Seen(NamedTuple):
    """A site that followed the library, and what its programs said. ``contents`` of the library are by path."""

    site: Site
    contents: dict[bytes, bytes]
    outside: Path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Names of items, of files in an item, and of single files; and what no library may hold."""
    root = tmp_path_factory.mktemp("names")
    library, outside = root / "primary", root / "outside"
    contents: dict[bytes, bytes] = {}
    for number, name in enumerate(NAMES):
        contents[name + b"/disk.bin"] = b"item %d" % number
        contents[b"files/folder %d/" % number + name] = b"file %d" % number
    for number, name in enumerate(WHOLE):
        contents[b"single/" + name[:251] + b".iso"] = b"iso %d" % number
    for path, content in contents.items():
        place = library / os.fsdecode(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    outside.mkdir()
    (outside / "secret").write_bytes(OUTSIDE)
    plant(library / "planted", outside)
    with Server(library, root / "server") as server:
        site = Site(
            root / "site",
            server,
            HTTP_PORT=str(free_port()),
            HTTPS_PORT=str(free_port()),
            LIBRARY_BROWSE="true",
            SYNC_MAX_DELETE="100%",
        )
        with running(site):
            wait_until(lambda: get(site, "lib.json")[0] == 200, 120, "the library")
            wait_until(site.store.status.exists, 60, "the end of the run")
            yield Seen(site, contents, outside)


def plant(folder: Path, outside: Path) -> None:
    """A template with everything in it that is no regular file."""
    folder.mkdir()
    (folder / "real.bin").write_bytes(b"real")
    (folder / "key").symlink_to("/syncer/.ssh/id_syncer")
    (folder / "passwd").symlink_to("/etc/passwd")
    (folder / "up").symlink_to("..")
    (folder / "secret.vmdk").symlink_to(outside / "secret")
    (folder.parent / "linked folder").symlink_to(outside)
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # such a path may not be long
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    if os.geteuid() == 0:
        os.mknod(folder / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))


def fetch(site: Site, paths: list[str]) -> Iterator[tuple[int, bytes]]:
    """GET paths, percent-encoded as they are, over one connection: status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", int(site.environment["HTTP_PORT"]), timeout=30)
    try:
        for path in paths:
            connection.request("GET", f"/{path}")
            answer = connection.getresponse()
            yield answer.status, answer.read()
    finally:
        connection.close()


def published(site: Site) -> dict[str, bytes]:
    """Address by library path of every file that items.json lists, from the server itself."""
    entries = json.loads(get(site, "items.json")[1])["items"]
    return {file["hrefs"][0]: os.fsencode(file["name"]) for entry in entries for file in entry["files"]}


def test_every_name_is_published_at_an_address_that_means_exactly_that_file_or_is_held(seen: Seen) -> None:
    addresses = published(seen.site)
    bodies = dict(zip(addresses, fetch(seen.site, list(addresses)), strict=True))
    by_content = {content: path for path, content in seen.contents.items()}
    arrived = set()
    for address, (status, body) in bodies.items():
        assert status == 200
        name = unquote_to_bytes(address).rpartition(b"/")[2]
        assert name == addresses[address]
        if body != b"real":
            path = by_content[body]
            assert path.rpartition(b"/")[2] == name
            arrived.add(path)
    held = {os.fsencode(entry["key"]): entry["reason"] for entry in status_of(seen.site)["held"]}
    missing = {path for path in seen.contents.keys() - arrived if not is_hidden(path)}
    assert missing, "some of the names cannot be published"
    for path in missing:
        folder = path.rpartition(b"/")[0]
        assert held.get(path) or held.get(folder), path
    assert all(reason and not UNSAFE.search(reason) for reason in held.values())
    # What is held has a reason to be: it cannot be shown, is another item's name, or is not text.
    for path in missing:
        text = path.decode("utf-8", "surrogateescape")
        assert UNSAFE.search(text) or "already" in (held.get(path) or held.get(path.rpartition(b"/")[0]) or ""), path


def is_hidden(path: bytes) -> bool:
    return any(segment.startswith(b".") for segment in path.split(b"/"))


def status_of(site: Site) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = json.loads(site.store.status.read_bytes())
    return found


def test_names_that_differ_only_by_case_or_composition_are_published_once(seen: Seen) -> None:
    names = [entry["name"] for entry in json.loads(get(seen.site, "items.json")[1])["items"]]
    folded = [unicodedata.normalize("NFC", name).casefold() for name in names]
    assert len(set(folded)) == len(folded)
    assert all(0 < len(name.encode("utf-16-le")) <= 160 for name in names)
    clashes = [entry for entry in status_of(seen.site)["held"] if "is already that of" in entry["reason"]]
    # xAy and xay are the same name to vSphere, and so are ü in one character and in two.
    assert len(clashes) >= 26
    assert any("ü" in entry["reason"] or "u\u0308" in entry["reason"] for entry in clashes)


def test_a_strict_subscriber_takes_the_whole_library(seen: Seen) -> None:
    url = f"http://127.0.0.1:{seen.site.environment['HTTP_PORT']}/lib.json"
    done = subprocess.run(
        [CLR, "check", url, "--full"], env=cli_environment(seen.site), capture_output=True, check=False
    )
    assert b"vSphere can subscribe to it" in done.stdout, done.stdout[-2000:]
    assert is_harmless(done.stdout)


@pytest.mark.parametrize("command", ["status", "plan", "verify"])
def test_what_commands_print_holds_no_control_character(seen: Seen, command: str) -> None:
    done = subprocess.run([CLR, command], env=cli_environment(seen.site), capture_output=True, check=False)
    assert done.stdout
    assert b"Traceback" not in done.stderr
    assert is_harmless(done.stdout)
    assert is_harmless(done.stderr)


def test_logs_and_the_status_file_hold_no_control_character(seen: Seen) -> None:
    log = (seen.site.home / "run.log").read_bytes()
    assert b"is held" in log
    assert is_harmless(log)
    assert is_harmless(seen.site.store.status.read_bytes())
    assert all(line[:2] == b"20" or line.startswith(b"{") for line in log.splitlines())


def is_harmless(output: bytes) -> bool:
    return not UNSAFE.search(output.decode("utf-8", "surrogateescape").replace("\n", ""))


def test_the_pages_for_people_are_harmless_and_every_link_on_them_leads_somewhere(seen: Seen) -> None:
    pages, visited = [""], 0
    while pages:
        here = pages.pop()
        ((status, body),) = fetch(seen.site, [here])
        visited += 1
        assert status == 200, here
        assert is_harmless(body)
        page = body.decode()
        assert "<script" not in page
        links = [html.unescape(link) for link in re.findall(r'<a href="([^"]*)"', page)]
        assert links.count("/_clr/") == 1
        links.remove("/_clr/")
        assert all(re.match(r"\.\.?(/|$)", link) for link in links), links
        below = [here + link.removeprefix("./") for link in links if link != ".."]
        # Caddy takes [ \ ? * in a path for a pattern when it looks for a folder, so such a folder may have no page.
        pages += [link for link in below if link.endswith("/") and not re.search(r"%5[BC]|%3F|%2A|\*", link)]
        files = [link for link in below if not link.endswith("/")]
        assert {answer[0] for answer in fetch(seen.site, files)} <= {200}
    assert visited > 100


def test_links_pipes_sockets_and_devices_are_not_there(seen: Seen) -> None:
    assert seen.site.content("planted", "real.bin") == b"real"
    addresses = published(seen.site)
    item = next(address.rpartition("/")[0] for address, name in addresses.items() if name == b"real.bin")
    planted = ["key", "passwd", "up", "secret.vmdk", "fifo", "socket", "device", "up/planted/real.bin"]
    wanted = [f"{place}/{name}" for place in (item, "planted") for name in planted]
    wanted += ["linked%20folder", "linked%20folder/secret", "linked%20folder/"]
    assert {status for status, _ in fetch(seen.site, wanted)} == {404}
    for path in (*seen.site.store.mirror.rglob("*"), *seen.site.store.items.rglob("*")):
        assert path.is_dir() or (path.is_file() and not path.is_symlink())
    assert not any(OUTSIDE in path.read_bytes() for path in seen.site.store.mirror.rglob("*") if path.is_file())
