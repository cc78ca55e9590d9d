"""Subscribers that read while the library changes under them, with the real store and both Debians' Caddy.

No reader meets half a file, a size that its manifest does not say, content of another version, or an OVF of one
generation with a disk of another.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import moments
from clr_client.errors import ProbeError, SubscriberError
from clr_client.moments import Moment
from clr_client.vcsp.subscriber import Subscriber, check
from clr_client.web import caddy as caddies
from support import caddy
from support.caddy import Answer, make_pair
from support.server import wait_until
from support.templates import envelope
from support.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from clr_client.vcsp.model import PublishedLibrary
    from support.caddy import Web

GRACE = 6.0
PAUSE = 0.03
"""Seconds between two rounds of a reader, so that the one who publishes gets a turn on a machine with two cores."""
MEMORY = "/dev/shm"
Files = dict[str, bytes]


@pytest.fixture
def home() -> Iterator[Path]:
    """In memory where there is some: many readers see many generations, however slow the disk is."""
    with TemporaryDirectory(prefix="clr", dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(params=caddy.PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    return caddy.program(request.param)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def template(name: str, number: int, size: int = 60_000) -> Files:
    """An OVF template whose three files all say of which version they are; every fourth has another size."""
    disk = f"{name} {number:06d}".encode() + random.Random(number).randbytes(size + (number % 4 == 0))
    files = {f"{name}.ovf": envelope(f"{name} {number:06d}", {f"{name}.vmdk": len(disk)}), f"{name}.vmdk": disk}
    lines = "".join(f"SHA256({file})= {sha(data)}\n" for file, data in sorted(files.items()))
    return {**files, f"{name}.mf": lines.encode()}


@dataclass
class Library:
    """A site's volume, and what it published: files by name and digest for each item id and version."""

    volume: Volume
    truth: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    sources: dict[str, Files] = field(default_factory=dict)
    generations: int = 0
    is_complete: bool = False
    """No more generations follow that a reader could wait for."""
    wires: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """Closes what readers keep open."""

    def put(self, folder: str, files: Files) -> None:
        for name, data in files.items():
            self.volume.put(f"{folder}/{name}", data)
        self.sources[folder] = files

    def drop(self, folder: str) -> None:
        for name in self.sources.pop(folder):
            (self.volume.mirror / folder / name).unlink()

    def publish(self, **changes: str) -> PublishedLibrary:
        """Publish what lies in the mirror; a reader may see it before the truth is noted."""
        library = self.volume.sync(**changes)
        assert self.volume.held == ()
        for item in library.items:
            self.truth[item.id, item.version] = {name: sha(data) for name, data in self.sources[item.key].items()}
        self.generations += 1
        return library

    def url(self, item: str, name: str) -> str:
        """The path at which a file is published now."""
        for entry in json.loads((self.volume.store.current / "items.json").read_bytes())["items"]:
            for file in entry["files"]:
                if (entry["name"], file["name"]) == (item, name):
                    return "/" + str(file["hrefs"][0])
        raise AssertionError(f"{item}/{name} is not published")


@contextlib.contextmanager
def serving(home: Path, program: str, **environment: str) -> Iterator[tuple[Web, Library]]:
    """A site with an item that changes, one that never does, and one that comes and goes."""
    with caddy.web(home, program, **environment) as web:
        library = Library(Volume(web.library, **environment))
        library.put("busy", template("busy", 0))
        library.put("steady", template("steady", 0))
        library.publish()
        with library.wires:
            yield web, library


class Wire:
    """One connection that is kept open. A request without any answer goes out again on a new one, which RFC 9112
    9.3.1 has clients do when a kept connection was closed; ``patient`` repeats also the first request of a connection.
    """

    def __init__(self, web: Web, library: Library, *, tls: bool = False, patient: bool = False) -> None:
        self.web, self.tls, self.patient = web, tls, patient
        self.connection = http.client.HTTPConnection("127.0.0.1")
        self.reopened = 0
        library.wires.callback(self.connection.close)

    def ask(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        is_new = self.connection.sock is None
        if is_new:
            self.connection.sock = self.web.connect(tls=self.tls)
        try:
            self.connection.request(method, path, headers=dict(headers or {}))
            response = self.connection.getresponse()
        except (ConnectionError, http.client.BadStatusLine):
            self.connection.close()
            self.reopened += 1
            if is_new and not self.patient:
                raise
            return self.ask(path, method, headers)
        body = response.read()
        return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, body)


@dataclass
class Seen:
    """What one reader got: (item id, version, file name, digest) of every file, and how often it read everything."""

    files: set[tuple[str, int, str, str]] = field(default_factory=set)
    rounds: int = 0
    late: int = 0
    errors: list[str] = field(default_factory=list)


class OvertakenError(Exception):
    """A tree is gone that the reader learned of longer ago than half of the grace."""


def fetch(ask: Callable[..., Answer], path: str, since: float) -> Answer:
    """GET what a manifest promised; it may be gone only for a reader that took too long."""
    answer = ask(path)
    if answer.status == 404 and time.monotonic() - since > GRACE / 2:
        raise OvertakenError
    assert answer.status == 200, f"{path} is answered with {answer.status}"
    assert int(answer.headers["content-length"]) == len(answer.body)
    return answer


def read_everything(ask: Callable[..., Answer], seen: Seen) -> None:
    """Read the library once as a subscriber does, following hrefs, and hold each file against its manifest."""
    since = time.monotonic()
    version = int(json.loads(fetch(ask, "/lib.json", since).body)["version"])
    assert version > 0
    for item in json.loads(fetch(ask, "/items.json", since).body)["items"]:
        files = {file["name"]: file for file in item["files"]}
        own = fetch(ask, f"/{item['selfHref']}", since)
        assert json.loads(own.body) == item
        got = {}
        for name, file in files.items():
            path = f"/{file['hrefs'][0]}"
            head = ask(path, "HEAD")
            answer = fetch(ask, path, since)
            if head.status == 200:
                assert int(head.headers["content-length"]) == file["size"]
            assert len(answer.body) == file["size"]
            got[name] = answer.body
            seen.files.add((item["id"], int(item["version"]), name, sha(answer.body)))
        told = dict(re.findall(r"SHA256\((.+)\)= (\w+)", got[f"{item['name']}.mf"].decode()))
        assert told == {name: sha(data) for name, data in got.items() if not name.endswith(".mf")}
    seen.rounds += 1


def kept_open(web: Web, library: Library, seen: Seen) -> Callable[[], None]:
    """A reader that keeps its connection."""
    wire = Wire(web, library)
    return lambda: read_everything(wire.ask, seen)


def anew(web: Web, seen: Seen) -> Callable[[], None]:
    """A reader that connects for every request."""
    return lambda: read_everything(web.ask, seen)


def strict(web: Web, seen: Seen, folder: Path) -> Callable[[], None]:
    """The subscriber of `clr check`'s rules, which keeps what it has and loads what changed."""
    subscriber = Subscriber(folder)
    loaded: list[tuple[str, str]] = []

    def turn() -> None:
        since = time.monotonic()
        try:
            result = subscriber.sync(f"http://127.0.0.1:{web.http}/lib.json")
        except ProbeError as error:
            if error.probe == "RESOURCE_NOT_FOUND" and time.monotonic() - since > GRACE / 2:
                raise OvertakenError from None
            raise
        loaded.extend(result.files)
        for name, files in subscriber.files().items():
            told = dict(re.findall(r"SHA256\((.+)\)= (\w+)", files[f"{name}.mf"].read_text()))
            assert told == {file: sha(path.read_bytes()) for file, path in files.items() if not file.endswith(".mf")}
        steady = [file for item, file in loaded if item == "steady"]
        assert len(steady) == len(set(steady)), "an unchanged item was loaded again"
        seen.rounds += 1

    return turn


def conditional(web: Web, library: Library, seen: Seen) -> Callable[[], None]:
    """A reader that has everything it once got, and asks whether that is still so."""
    wire = Wire(web, library)
    cache: dict[str, Answer] = {}

    def ask(path: str, method: str = "GET") -> Answer:
        known = cache.get(path)
        headers = {}
        if known is not None and method == "GET":
            headers = {"If-Modified-Since": known.headers.get("last-modified", "Thu, 01 Jan 2099 00:00:00 GMT")}
            headers["If-None-Match"] = known.headers.get("etag", "*")
        answer = wire.ask(path, method, headers)
        if answer.status == 304:
            assert known is not None
            assert path.startswith("/_items/"), f"304 for {path}, which can change"
            return known
        if answer.status == 200 and method == "GET":
            cache[path] = answer
        return answer

    def turn() -> None:
        read_everything(ask, seen)
        now = ask("/busy/busy.vmdk")
        assert now.status == 200
        number = int(now.body[5:11])
        assert now.body == template("busy", number)["busy.vmdk"]

    return turn


def slow(web: Web, library: Library, seen: Seen) -> Callable[[], None]:
    """A reader that needs several generations for one disk: half of it in one go, half of it as a range later."""

    def wait_for(generations: int) -> None:
        while library.generations < generations and not library.is_complete:
            time.sleep(0.005)

    def turn() -> None:
        path = library.url("busy", "busy.vmdk")
        begun, since = library.generations, time.monotonic()
        with contextlib.closing(socket.socket()) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", web.http))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 200
            size, etag = int(response.headers["Content-Length"]), response.headers["Etag"]
            body = response.read(10_000)
            wait_for(begun + 3)
            body += response.read(20_000)  # and away
        wait_for(begun + 12)
        answer = web.ask(path, headers={"Range": f"bytes={len(body)}-", "If-Range": etag})
        if answer.status == 404 and time.monotonic() - since > GRACE / 2:
            raise OvertakenError
        assert answer.status == 206
        assert answer.headers["content-range"] == f"bytes {len(body)}-{size - 1}/{size}"
        whole = body + answer.body
        _, _, uuid, version, name = path.split("/")
        seen.files.add((f"urn:uuid:{uuid}", int(version), name, sha(whole)))
        seen.rounds += 1

    return turn


@contextlib.contextmanager
def reading(readers: Mapping[str, tuple[Seen, Callable[[], None]]]) -> Iterator[None]:
    """Let each reader read again and again for as long as the block runs; its first error ends it."""
    over = threading.Event()
    interval = sys.getswitchinterval()

    def loop(seen: Seen, turn: Callable[[], None]) -> None:
        while not over.is_set() and not seen.errors:
            try:
                turn()
            except OvertakenError:
                seen.late += 1
            except (AssertionError, OSError, ValueError, KeyError, http.client.HTTPException) as error:
                seen.errors.append(repr(error))
            except (ProbeError, SubscriberError) as error:
                seen.errors.append(str(error))
            over.wait(PAUSE)

    threads = [threading.Thread(target=loop, args=pair, daemon=True) for pair in readers.values()]
    for thread in threads:
        thread.start()
    sys.setswitchinterval(interval / 20)  # or whoever publishes hardly gets a turn
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        over.set()
        for thread in threads:
            thread.join(60)
    assert {name: seen.errors for name, (seen, _) in readers.items() if seen.errors} == {}


@pytest.mark.parametrize(("name", "generations"), [("debian-13", 200), ("debian-12", 60)])
def test_two_hundred_publications_disturb_no_reader(home: Path, name: str, generations: int) -> None:
    program = caddy.program(name)
    environment = {"LIBRARY_KEEP": "2", "LIBRARY_GRACE": str(int(GRACE))}
    with serving(home, program, **environment) as (web, library):
        steady = {file: library.url("steady", file) for file in library.sources["steady"]}
        seen = {reader: Seen() for reader in ("kept open", "anew", "strict", "conditional", "slow")}
        readers = {
            "kept open": kept_open(web, library, seen["kept open"]),
            "anew": anew(web, seen["anew"]),
            "strict": strict(web, seen["strict"], home / "subscriber"),
            "conditional": conditional(web, library, seen["conditional"]),
            "slow": slow(web, library, seen["slow"]),
        }
        with reading({reader: (seen[reader], turn) for reader, turn in readers.items()}):
            for number in range(1, generations):
                library.put("busy", template("busy", number))
                if number % 9 == 4:
                    library.put("guest", template("guest", number))
                elif number % 9 == 8:
                    library.drop("guest")
                library.publish()
            library.is_complete = True

        assert library.generations == generations
        for reader, got in seen.items():
            assert got.rounds >= 3, f"{reader} hardly read anything: {got}"
            wrong = {
                (version, file)
                for item, version, file, digest in got.files
                if library.truth[item, version][file] != digest
            }
            assert wrong == set(), f"{reader} met content of another version"
        versions = {version for item, version, file, _ in seen["kept open"].files if file == "busy.vmdk"}
        assert len(versions) > 3, "the readers saw the library change"
        assert {file: library.url("steady", file) for file in steady} == steady
        assert check(f"http://127.0.0.1:{web.http}/lib.json", full=True).problems == ()

        wait_until(lambda: library.publish() and len(library.volume.store.generation_numbers()) == 2, 30, "the grace")
        trees = {path.name for path in library.volume.store.items.glob("*/*")}
        assert len(trees) <= 4, "old trees go after the grace"


def age(library: Library, seconds: float) -> None:
    """Let all generations have been published that much earlier."""
    for file in library.volume.store.generations.glob("*/.published.json"):
        at = moments.load(file.read_bytes())
        assert at is not None
        file.write_bytes(moments.dump(Moment(at.boot, at.uptime - seconds, at.wall - seconds)))


def begin(web: Web, path: str, taken: int = 10_000) -> tuple[socket.socket, http.client.HTTPResponse, bytes]:
    """Begin a download whose reader takes only a little at first."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", web.http))
    connection.settimeout(30)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert response.status == 200
    return connection, response, response.read(taken)


def test_within_the_grace_an_old_generation_is_whole_and_after_it_gone_but_a_download_that_runs_ends_well(
    home: Path, program: str
) -> None:
    size = 24 << 20  # more than the buffers of two sockets
    with serving(home, program, LIBRARY_KEEP="1", LIBRARY_GRACE="1h") as (web, library):
        library.put("busy", template("busy", 1, size))
        library.publish()
        begun = json.loads(web.ask("/items.json").body)["items"]
        busy, steady = ({file["name"]: f"/{file['hrefs'][0]}" for file in item["files"]} for item in begun)
        files = library.sources["busy"]
        connection, response, body = begin(web, busy["busy.vmdk"])
        with contextlib.closing(connection):
            library.put("busy", template("busy", 2))
            library.publish()
            age(library, 3500)
            library.publish()
            assert {name: web.ask(path).body for name, path in busy.items()} == files
            rest = web.ask(busy["busy.vmdk"], headers={"Range": f"bytes={size // 2}-"})
            assert (rest.status, rest.body) == (206, files["busy.vmdk"][size // 2 :])

            age(library, 200)
            library.publish()
            for path in busy.values():
                for headers in ({}, {"Range": "bytes=5-"}, {"If-None-Match": "*"}):
                    answer = web.ask(path, headers=headers)
                    assert answer.status == 404
                    assert answer.body == b"404 Not Found\n"
                assert web.ask(path, "HEAD").status == 404
            body += response.read()
        assert sha(body) == sha(files["busy.vmdk"])
        assert {name: web.ask(path).body for name, path in steady.items()} == library.sources["steady"]


def test_a_subscriber_that_the_grace_overtook_is_told_404_and_gets_everything_with_its_next_look(
    home: Path, program: str
) -> None:
    with serving(home, program, LIBRARY_KEEP="1", LIBRARY_GRACE="1h") as (web, library):
        url = f"http://127.0.0.1:{web.http}/lib.json"
        subscriber = Subscriber(home / "subscriber")
        assert len(subscriber.sync(url).files) == 6
        library.put("busy", template("busy", 1))
        library.publish()

        load, calls = Subscriber._load, []

        def overtaken(self: Subscriber, *arguments: Any) -> None:
            calls.append(arguments)
            load(self, *arguments)
            if len(calls) == 1:
                library.put("busy", template("busy", 2))
                library.publish()
                age(library, 3700)
                library.publish()

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Subscriber, "_load", overtaken)
            with pytest.raises(ProbeError) as told:
                subscriber.sync(url)
        assert told.value.probe == "RESOURCE_NOT_FOUND"
        result = subscriber.sync(url)
        assert {item for item, _ in result.files} == {"busy"}
        held = {name: path.read_bytes() for name, path in subscriber.files()["busy"].items()}
        assert held == template("busy", 2)


def test_without_any_grace_manifests_are_always_there_and_every_file_is_whole_or_gone(home: Path) -> None:
    program = caddy.program("debian-13")
    with serving(home, program, LIBRARY_KEEP="1", LIBRARY_GRACE="0") as (web, library):
        manifests, hasty = Seen(), Seen()
        gone: list[str] = []
        wires = Wire(web, library), Wire(web, library)

        def read_manifests() -> None:
            for path in ("/lib.json", "/items.json"):
                answer = wires[0].ask(path)
                assert answer.status == 200, f"{path}: {answer.status}"
                json.loads(answer.body)
            assert wires[0].ask("/steady/steady.ovf").status == 200
            manifests.rounds += 1

        def read_files() -> None:
            for item in json.loads(wires[1].ask("/items.json").body)["items"]:
                for file in item["files"]:
                    answer = wires[1].ask(f"/{file['hrefs'][0]}")
                    if answer.status == 404:
                        gone.append(file["name"])
                        continue
                    assert (answer.status, len(answer.body)) == (200, file["size"])
                    hasty.files.add((item["id"], int(item["version"]), file["name"], sha(answer.body)))
            hasty.rounds += 1

        with reading({"manifests": (manifests, read_manifests), "hasty": (hasty, read_files)}):
            for number in range(1, 80):
                library.put("busy", template("busy", number))
                library.publish()
        assert min(manifests.rounds, hasty.rounds) > 3
        assert not {name for name in gone if name.startswith("steady")}
        assert all(library.truth[item, version][name] == digest for item, version, name, digest in hasty.files)


def test_conditions_never_hide_a_change(home: Path, program: str) -> None:
    """The next version may be of the same second and size, or an older file: what dates say is not asked."""
    with serving(home, program, LIBRARY_BROWSE="true") as (web, library):
        paths = ("/lib.json", "/items.json", "/busy/busy.vmdk", "/busy/busy.ovf", "/busy/", "/")
        before = {path: web.ask(path) for path in paths}
        mirror = library.volume.mirror / "busy"
        library.put("busy", template("busy", 1))
        for file in mirror.iterdir():
            os.utime(file, (0, 1_000_000_000))
        library.publish()
        for path in paths:
            for headers in (
                {"If-Modified-Since": before[path].headers.get("last-modified", "Thu, 01 Jan 2099 00:00:00 GMT")},
                {"If-None-Match": before[path].headers.get("etag", "*")},
            ):
                answer = web.ask(path, headers=headers)
                assert answer.status == 200
                if path not in {"/", "/busy/"}:
                    assert answer.body != before[path].body

        old = {name: web.ask(f"/busy/{name}") for name in library.sources["busy"]}
        library.put("busy", template("busy", 2))
        for file in mirror.iterdir():
            os.utime(file, ns=(0, 1_000_000_000 * 10**9 + 1))  # the same second, the same sizes
        library.publish()
        for name, known in old.items():
            conditions = {"If-None-Match": known.headers["etag"], "If-Modified-Since": known.headers["last-modified"]}
            answer = web.ask(f"/busy/{name}", headers=conditions)
            assert (answer.status, answer.body) == (200, library.sources["busy"][name])


def test_a_manifest_is_never_continued_with_a_part_of_the_next_one(home: Path, program: str) -> None:
    with serving(home, program) as (web, library):
        for path in ("/lib.json", "/items.json"):
            known = web.ask(path)
            assert "accept-ranges" not in known.headers
            library.put("busy", template("busy", library.generations))
            library.publish()
            for condition in ({}, {"If-Range": known.headers["last-modified"]}, {"If-Match": '"x"'}):
                answer = web.ask(path, headers={"Range": "bytes=10-", **condition})
                assert answer.status == 200
                json.loads(answer.body)


def test_item_trees_answer_conditions_because_they_never_change(home: Path, program: str) -> None:
    with serving(home, program) as (web, library):
        path = library.url("busy", "busy.vmdk")
        known = web.ask(path)
        library.put("busy", template("busy", 1))
        library.publish()
        assert library.url("busy", "busy.vmdk") != path
        for headers in (
            {"If-None-Match": known.headers["etag"]},
            {"If-Modified-Since": known.headers["last-modified"]},
        ):
            assert web.ask(path, headers=headers).status == 304
        assert web.ask(path).body == known.body


def test_under_readable_names_every_file_is_whole_and_none_is_ever_missing(home: Path) -> None:
    """LIBRARY_HREFS=plain promises no more: file by file, not a generation as a whole."""
    program = caddy.program("debian-13")
    with serving(home, program, LIBRARY_HREFS="plain", LIBRARY_KEEP="1", LIBRARY_GRACE="0") as (web, library):
        seen, wire = Seen(), Wire(web, library)
        numbers: list[int] = []

        def read() -> None:
            for item in json.loads(wire.ask("/items.json").body)["items"]:
                assert {file["hrefs"][0] for file in item["files"]} == {
                    f"{item['name']}/{file['name']}" for file in item["files"]
                }
                for file in item["files"]:
                    answer = wire.ask(f"/{file['hrefs'][0]}")
                    assert answer.status == 200
                    assert int(answer.headers["content-length"]) == len(answer.body)
                    if file["name"] == "busy.vmdk":
                        numbers.append(int(answer.body[5:11]))
                        assert answer.body == template("busy", numbers[-1])["busy.vmdk"]
            seen.rounds += 1

        with reading({"plain": (seen, read)}):
            for number in range(1, 60):
                library.put("busy", template("busy", number))
                library.publish()
        assert seen.rounds > 3
        assert numbers == sorted(numbers)
        assert check(f"http://127.0.0.1:{web.http}/lib.json", full=True).problems == ()


def test_a_download_that_a_crash_of_caddy_cut_goes_on_where_it_was(
    home: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caddies, "FIRST_WAIT", 0.1)
    size = 24 << 20
    with serving(home, program) as (web, library):
        library.put("busy", template("busy", 1, size))
        library.publish()
        path, whole = library.url("busy", "busy.vmdk"), library.sources["busy"]["busy.vmdk"]
        connection, response, body = begin(web, path)
        etag = response.headers["Etag"]
        process = web.site.caddy._process
        assert process
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not web.site.caddy.healthy, what="the death to be noticed")
        with contextlib.suppress(OSError, http.client.IncompleteRead), contextlib.closing(connection):
            while chunk := response.read1(1 << 16):
                body += chunk
        assert len(body) < size
        library.put("busy", template("busy", 2))
        library.publish()
        wait_until(lambda: web.site.caddy.healthy, what="Caddy to be back")
        answer = web.ask(path, headers={"Range": f"bytes={len(body)}-", "If-Range": etag})
        assert answer.status == 206
        assert sha(body + answer.body) == sha(whole)


def test_renewed_certificates_disturb_no_reader(home: Path, program: str) -> None:
    """A reload may close connections before an answer begins, as HTTP allows; every answer goes on to its end."""
    name = "library.example.com"
    make_pair(home / "certs", name)
    with serving(home, program, TLS_NAME=name, TLS_CUSTOM_CERT="true") as (web, library):
        seen, wire = Seen(), Wire(web, library, tls=True, patient=True)
        size = 24 << 20
        library.put("busy", template("busy", 1, size))
        library.publish()
        path = library.url("busy", "busy.vmdk")
        large = library.sources["busy"]["busy.vmdk"]
        downloads = []
        for _ in range(3):
            connection = web.connect(tls=True)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            downloads.append((connection, response, response.read(10_000)))
            library.put("busy", template("busy", 2 + len(downloads)))
            library.publish()
        with reading({"kept open": (seen, lambda: read_everything(wire.ask, seen))}):
            for number in range(100):
                if number >= 5 and seen.rounds > 2:
                    break
                make_pair(home / "certs", name)
                web.run(web.site.refresh())
                library.put("busy", template("busy", 10 + number))
                library.publish()
        assert seen.rounds > 2
        assert all(library.truth[item, version][file] == digest for item, version, file, digest in seen.files)
        for connection, response, body in downloads:
            with contextlib.closing(connection):
                assert sha(body + response.read()) == sha(large)


def test_a_reload_with_the_same_configuration_closes_nothing(home: Path, program: str) -> None:
    with serving(home, program) as (web, library):
        wire = Wire(web, library)
        for _ in range(5):
            assert wire.ask("/lib.json").status == 200
            web.run(web.site.refresh(force=True))
        assert wire.reopened == 0
