"""The strict subscriber against a server that breaks the rules, one at a time."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.errors import ProbeError, SubscriberError
from clr_client.vcsp import reader
from clr_client.vcsp.manifests import file_path, manifests, self_path
from clr_client.vcsp.subscriber import Subscriber, check
from support.libraries import by_key, content, library, parsed, write_site
from support.webservers import Handler, Misbehaving, certificate, misbehaving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from clr_client.vcsp.model import PublishedLibrary

FILES = {"a": {"x.bin": b"x" * 5000, "y.bin": b"y"}}


@pytest.fixture
def published() -> PublishedLibrary:
    return library(content("a", FILES["a"]))


@pytest.fixture
def site(tmp_path: Path, published: PublishedLibrary) -> Iterator[Misbehaving]:
    write_site(tmp_path / "site", published, FILES)
    with misbehaving(tmp_path / "site") as server:
        yield server


@pytest.fixture
def x_path(published: PublishedLibrary) -> str:
    """Where x.bin is requested."""
    item = by_key(published, "a")
    return "/" + file_path(published, item, item.files[0])


def problems(site: Misbehaving, **options: Any) -> list[str]:
    return [str(problem) for problem in check(f"{site.url}/lib.json", **options).problems]


def sync(site: Misbehaving, tmp_path: Path, **options: Any) -> Any:
    return Subscriber(tmp_path / "subscriber", **options).sync(f"{site.url}/lib.json")


def edit(site: Misbehaving, document: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = site.root / document
    value = parsed(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("full", [False, True])
def test_the_server_is_no_problem_as_long_as_it_behaves(site: Misbehaving, tmp_path: Path, full: bool) -> None:
    assert problems(site, full=full) == []
    assert site.connections == 1
    assert sync(site, tmp_path).bytes == 5001
    assert site.connections == 2


@pytest.mark.parametrize("full", [False, True])
def test_a_content_length_that_differs_is_an_error(site: Misbehaving, tmp_path: Path, x_path: str, full: bool) -> None:
    site.behaviours[x_path] = lambda handler: handler.answer(200, b"x" * 4999)
    assert "error: item 'a', file 'x.bin': has 4999 bytes where the manifest says 5000: vSphere fails the item" in (
        problems(site, full=full)
    )
    with pytest.raises(SubscriberError, match="4999 bytes where the manifest says 5000"):
        sync(site, tmp_path)


def test_a_file_that_ends_early_is_an_error(site: Misbehaving, tmp_path: Path, x_path: str) -> None:
    site.behaviours[f"GET {x_path}"] = lambda handler: (
        handler.serve() if handler.headers.get("Range") else handler.answer(200, b"x" * 3000, length=5000)
    )
    assert problems(site) == []  # headers do not tell
    assert problems(site, full=True) == ["error: item 'a', file 'x.bin': ended after 3000 of 5000 bytes"]
    with pytest.raises(SubscriberError, match="ended after 3000 of 5000"):
        sync(site, tmp_path)


@pytest.mark.parametrize("full", [False, True])
def test_a_file_without_content_length_is_an_error(site: Misbehaving, tmp_path: Path, x_path: str, full: bool) -> None:
    site.behaviours[x_path] = lambda handler: handler.answer(200, FILES["a"]["x.bin"], length=None)
    assert [each for each in problems(site, full=full) if "without Content-Length" in each]
    with pytest.raises(SubscriberError, match="None bytes"):
        sync(site, tmp_path)


@pytest.mark.parametrize("full", [False, True])
def test_a_compressed_file_is_an_error(site: Misbehaving, tmp_path: Path, x_path: str, full: bool) -> None:
    packed = gzip.compress(FILES["a"]["x.bin"])
    site.behaviours[x_path] = lambda handler: handler.answer(200, packed, {"Content-Encoding": "gzip"})
    assert [each for each in problems(site, full=full) if each.startswith("error") and "compressed ('gzip')" in each]
    with pytest.raises(SubscriberError, match="compressed"):
        sync(site, tmp_path)


def test_content_that_is_called_identical_is_not_compressed(site: Misbehaving, x_path: str) -> None:
    site.behaviours[f"HEAD {x_path}"] = lambda handler: handler.answer(
        200, FILES["a"]["x.bin"], {"Content-Encoding": "identity"}
    )
    assert problems(site) == []


@pytest.mark.parametrize("document", ["lib.json", "items.json"])
def test_a_compressed_manifest_is_a_warning(site: Misbehaving, document: str) -> None:
    def compress(handler: Handler) -> None:
        data = (site.root / document).read_bytes()
        if "gzip" in handler.headers.get("Accept-Encoding", ""):
            handler.answer(200, gzip.compress(data), {"Content-Encoding": "gzip"})
        else:
            handler.answer(200, data)

    site.behaviours[f"/{document}"] = compress
    assert problems(site) == [f"warning: {document}: is sent compressed ('gzip') to readers that allow it"]


def test_a_manifest_that_is_always_compressed_is_an_error(site: Misbehaving) -> None:
    data = gzip.compress((site.root / "lib.json").read_bytes())
    site.behaviours["/lib.json"] = lambda handler: handler.answer(200, data, {"Content-Encoding": "gzip"})
    assert [each for each in problems(site) if each.startswith("error: lib.json: is sent compressed also")]


def test_a_server_without_head_is_a_warning_and_checked_by_get(site: Misbehaving, x_path: str) -> None:
    site.behaviours[f"HEAD {x_path}"] = lambda handler: handler.answer(405)
    told = problems(site)
    assert told == ["warning: item 'a', file 'x.bin': cannot be asked for its headers (HEAD)"]
    site.behaviours[f"GET {x_path}"] = lambda handler: handler.answer(200, b"short")
    assert [each for each in problems(site) if "has 5 bytes" in each]


def test_a_server_without_ranges_is_a_warning(site: Misbehaving, x_path: str) -> None:
    site.behaviours[x_path] = lambda handler: handler.answer(200, FILES["a"]["x.bin"])
    told = problems(site)
    assert told == ["warning: item 'a', file 'x.bin': cannot be read in parts: a broken download starts over"]


@pytest.mark.parametrize(
    ("part", "told"), [(b"x", "0-0/1"), (b"x", "0-4999/5000"), (b"xx", "4999-4999/5000"), (b"", "4999-4999/5000")]
)
def test_a_wrong_part_is_an_error(site: Misbehaving, x_path: str, part: bytes, told: str) -> None:
    headers = {"Content-Range": f"bytes {told}"}
    site.behaviours[f"GET {x_path}"] = lambda handler: handler.answer(206, part, headers)
    assert problems(site) == ["error: item 'a', file 'x.bin': is not whole: its last byte cannot be read"]


def test_hexadecimal_etags_are_an_error_and_end_the_first_update(
    site: Misbehaving, tmp_path: Path, published: PublishedLibrary
) -> None:  # original-defects row 2
    def hash_etags(value: dict[str, Any]) -> None:
        for item in value.get("items", [value]):
            for file in item["files"]:
                file["etag"] = "9e107d9d372bb6826bd81d3542a419d6"
                del file["generationNum"]

    edit(site, "items.json", hash_etags)
    edit(site, self_path(published, published.items[0]), hash_etags)
    told = problems(site)
    assert len(told) == 2
    assert all("every later update" in each for each in told)
    with pytest.raises(SubscriberError, match="every later update"):
        sync(site, tmp_path)


def test_a_missing_self_href_is_an_error(site: Misbehaving, tmp_path: Path) -> None:
    edit(site, "items.json", lambda value: value["items"][0].pop("selfHref"))
    assert problems(site) == ["error: item 'a': has no selfHref: vSphere does not sync it (KB 397243)"]
    with pytest.raises(SubscriberError, match="KB 397243"):
        sync(site, tmp_path)


def test_an_item_json_that_differs_is_a_warning(site: Misbehaving, published: PublishedLibrary) -> None:
    edit(site, self_path(published, published.items[0]), lambda value: value.update(version="2"))
    assert problems(site) == ["warning: item 'a', item.json: differs from the item's entry in items.json"]


def test_an_item_json_that_is_garbage_is_an_error(site: Misbehaving, published: PublishedLibrary) -> None:
    (site.root / self_path(published, published.items[0])).write_bytes(b"{")
    assert problems(site)[0].startswith("error: item 'a', item.json: is not JSON")


def test_maintenance_is_an_error(site: Misbehaving, tmp_path: Path) -> None:
    edit(site, "lib.json", lambda value: value.update(maintenanceMessage="Back at noon"))
    assert problems(site) == ["error: lib.json: says maintenance, so every sync fails with this text: 'Back at noon'"]
    with pytest.raises(SubscriberError, match="Back at noon"):
        sync(site, tmp_path)


def test_a_missing_items_json_is_what_vsphere_says(site: Misbehaving) -> None:
    (site.root / "items.json").unlink()
    report = check(f"{site.url}/lib.json")
    assert (report.ok, report.probe, report.library) == (False, "RESOURCE_NOT_FOUND", "Templates")


# Digests and envelopes


def test_a_full_check_compares_the_manifest_of_a_template(tmp_path: Path) -> None:
    files = {"a": {"a.ovf": b"<Envelope/>", "disk.vmdk": b"12345"}}
    digest = "0" * 64
    files["a"]["a.mf"] = f"SHA256(disk.vmdk)= {digest}\nSHA256(gone.vmdk)= {digest}\n".encode()
    write_site(tmp_path / "site", library(content("a", files["a"], kind="vcsp.ovf")), files)
    with misbehaving(tmp_path / "site") as site:
        assert problems(site) == []
        assert problems(site, full=True) == [
            "error: item 'a', file 'disk.vmdk': does not have the SHA256 that the item's .mf lists",
            "error: item 'a': lacks 'gone.vmdk', which its .mf lists",
        ]


@pytest.mark.parametrize("full", [False, True])
def test_an_envelope_is_held_against_the_files(tmp_path: Path, full: bool) -> None:
    namespace = 'xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"'
    text = f'<Envelope {namespace}><References><File ovf:href="disk.vmdk"/></References></Envelope>'
    files = {"a": {"a.OVF": text.encode()}}
    write_site(tmp_path / "site", library(content("a", files["a"], kind="vcsp.ovf")), files)
    with misbehaving(tmp_path / "site") as site:
        assert problems(site, full=full) == [
            "error: item 'a': lacks 'disk.vmdk', which its .ovf references: it cannot be deployed"
        ]


# Passwords


def guard(site: Misbehaving, password: str) -> None:
    right = "Basic " + base64.b64encode(f"vcsp:{password}".encode()).decode()

    def ask(handler: Handler) -> None:
        if handler.headers.get("Authorization") == right:
            handler.serve()
        else:
            handler.answer(401, headers={"WWW-Authenticate": 'Basic realm="library"'})

    for path in [*(f"/{each.relative_to(site.root)}" for each in site.root.rglob("*"))]:
        site.behaviours[path] = ask


def test_the_right_password_is_sent_as_user_vcsp(site: Misbehaving, tmp_path: Path) -> None:
    guard(site, "pass:wörd")
    assert problems(site, password="pass:wörd", full=True) == []
    assert sync(site, tmp_path, password="pass:wörd").version == 1


@pytest.mark.parametrize("password", [None, "wrong", ""])
def test_a_wrong_or_missing_password_is_invalid_credentials(
    site: Misbehaving, tmp_path: Path, password: str | None
) -> None:
    guard(site, "right")
    report = check(f"{site.url}/lib.json", password=password)
    assert (report.ok, report.probe) == (False, "INVALID_CREDENTIALS")
    with pytest.raises(ProbeError, match="401"):
        sync(site, tmp_path, password=password)


def test_a_password_is_never_printed(site: Misbehaving) -> None:
    guard(site, "right")
    for password in ("right", "s3cret"):
        report = check(f"{site.url}/lib.json", password=password)
        assert password not in repr(report).replace("vcsp", "")
        assert '-sub-username vcsp -sub-password "$LIBRARY_PASSWORD"' in report.govc


def test_a_password_goes_to_no_one_who_cannot_prove_who_he_is(tmp_path: Path, published: PublishedLibrary) -> None:
    write_site(tmp_path / "site", published, FILES)
    with misbehaving(tmp_path / "site", certificate(tmp_path / "tls")) as site:
        report = check(f"{site.url}/lib.json", password="s3cret")
        assert (report.ok, report.probe) == (False, "CERTIFICATE_ERROR")
        assert site.requests == []
        assert report.thumbprints is not None
        again = check(f"{site.url}/lib.json", password="s3cret", thumbprint=report.thumbprints.sha256)
        assert again.problems == ()
        assert all("authorization" in headers for _, _, headers in site.requests)


def test_a_password_does_not_follow_a_redirect_to_another_host(site: Misbehaving, tmp_path: Path) -> None:
    with misbehaving(site.root) as other:
        target = other.url.replace("127.0.0.1", "localhost")
        site.behaviours["/lib.json"] = lambda handler: handler.answer(302, headers={"Location": f"{target}/lib.json"})
        check(f"{site.url}/lib.json", password="s3cret")
        assert other.requests
        assert not [headers for _, _, headers in other.requests if "authorization" in headers]


def test_a_password_does_not_follow_a_redirect_from_https_to_http(site: Misbehaving, tmp_path: Path) -> None:
    with misbehaving(site.root, certificate(tmp_path / "tls")) as secure:
        secure.behaviours["/lib.json"] = lambda handler: handler.answer(
            302, headers={"Location": f"{site.url}/lib.json"}
        )
        thumbprints = check(f"{secure.url}/lib.json").thumbprints
        assert thumbprints is not None
        check(f"{secure.url}/lib.json", password="s3cret", thumbprint=thumbprints.sha1)
        assert "authorization" in secure.requests[-1][2]
    assert site.requests
    assert not [headers for _, _, headers in site.requests if "authorization" in headers]


@pytest.mark.parametrize("pinned", [False, True])
def test_a_certificate_that_changes_under_way_is_an_error(tmp_path: Path, site: Misbehaving, pinned: bool) -> None:
    first, second = certificate(tmp_path / "first"), certificate(tmp_path / "second")
    with misbehaving(site.root, first) as secure:
        context = secure.context
        assert context is not None
        thumbprints = check(f"{secure.url}/lib.json").thumbprints
        assert thumbprints is not None

        def swap(handler: Handler) -> None:
            context.load_cert_chain(*second)
            handler.answer(200, (site.root / "lib.json").read_bytes(), {"Connection": "close"})
            handler.close_connection = True

        secure.behaviours["/lib.json"] = swap
        report = check(f"{secure.url}/lib.json", thumbprint=thumbprints.sha256 if pinned else None)
    assert (report.ok, report.probe) == (False, "CERTIFICATE_ERROR")


def test_a_ca_file_that_cannot_be_used_is_told(site: Misbehaving, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_text("no certificate")
    for path in (tmp_path / "missing", tmp_path / "garbage"):
        report = check(f"{site.url}/lib.json", ca_file=path)
        assert (report.ok, report.probe) == (False, "CERTIFICATE_ERROR")
        assert str(path) in report.problems[0].text


# Redirects


def test_a_redirect_is_reported_and_followed(site: Misbehaving) -> None:
    site.behaviours["/old/lib.json"] = lambda handler: handler.answer(301, headers={"Location": "../lib.json"})
    report = check(f"{site.url}/old/lib.json")
    assert report.ok
    assert report.url == f"{site.url}/lib.json"
    assert report.govc == f"govc library.create -sub {site.url}/lib.json Templates"
    assert [str(problem) for problem in report.problems] == [
        f"warning: {site.url}/old/lib.json: redirects; subscribe to '{site.url}/lib.json'"
    ]


def test_a_redirect_of_a_file_is_a_warning(site: Misbehaving, x_path: str) -> None:
    site.behaviours["/elsewhere"] = lambda handler: handler.answer(200, FILES["a"]["x.bin"])
    site.behaviours[x_path] = lambda handler: handler.answer(307, headers={"Location": "/elsewhere"})
    assert f"warning: item 'a', file 'x.bin': redirects to '{site.url}/elsewhere'" in problems(site)


@pytest.mark.parametrize(
    "target", ["/lib.json", "file:///etc/passwd", "ftp://host/", "http://", "http://[", "http://a b/"]
)
def test_a_redirect_that_leads_nowhere_ends_the_check(site: Misbehaving, target: str) -> None:
    site.behaviours["/lib.json"] = lambda handler: handler.answer(302, headers={"Location": target})
    report = check(f"{site.url}/lib.json")
    assert report.probe in ("UNKNOWN_ERROR", "INVALID_URL")
    assert not report.ok


def test_a_url_that_does_not_end_in_lib_json_is_an_error(site: Misbehaving) -> None:
    site.behaviours["/"] = lambda handler: handler.answer(200, (site.root / "lib.json").read_bytes())
    report = check(f"{site.url}/")
    assert [str(problem) for problem in report.problems] == [
        f"error: {site.url}/: does not end in /lib.json: vSphere is unable to access such a URL (KB 376563)"
    ]


# A server that is not ready


def preparing(progress: object, message: str = "") -> Callable[[Handler], None]:
    body = json.dumps({"status": "syncing", "progress": progress, "message": message}).encode()
    return lambda handler: handler.answer(503, body)


def test_a_server_that_prepares_is_told_with_its_progress(site: Misbehaving, tmp_path: Path) -> None:
    site.behaviours["/lib.json"] = preparing(42)
    report = check(f"{site.url}/lib.json")
    assert not report.ok
    assert "'syncing', 42 %" in report.problems[0].text
    with pytest.raises(ProbeError) as caught:
        sync(site, tmp_path)
    assert caught.value.progress == 42


def test_a_server_that_prepares_is_waited_for(site: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clr_client.vcsp.fetching._POLL_SECONDS", 0.01)

    def become_ready(handler: Handler) -> None:
        if len(site.paths()) >= 4:
            del site.behaviours["/lib.json"]
        preparing(len(site.paths()))(handler)

    site.behaviours["/lib.json"] = become_ready
    assert check(f"{site.url}/lib.json", wait=30).ok
    assert site.paths()[:5] == ["/lib.json"] * 5


def test_waiting_ends(site: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clr_client.vcsp.fetching._POLL_SECONDS", 0.01)
    site.behaviours["/lib.json"] = preparing(1)
    assert not check(f"{site.url}/lib.json", wait=0.1).ok
    assert len(site.paths()) > 1


def test_a_server_that_says_it_failed_is_not_waited_for(site: Misbehaving) -> None:
    site.behaviours["/lib.json"] = preparing(10, "disk full\x1b[31m")
    report = check(f"{site.url}/lib.json", wait=60)
    assert "disk full\\x1b[31m" in report.problems[0].text
    assert len(site.paths()) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b"[" * 50_000])
def test_any_other_503_is_an_error(site: Misbehaving, body: bytes) -> None:
    site.behaviours["/lib.json"] = lambda handler: handler.answer(503, body)
    report = check(f"{site.url}/lib.json", wait=60)
    assert (report.probe, len(site.paths())) == ("UNKNOWN_ERROR", 1)
    assert "503" in report.problems[0].text


# Servers that attack or do not answer


def test_a_manifest_without_end_is_given_up(site: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_CHUNK", 1000)

    def flood(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.close_connection = True
        try:
            while True:
                handler.wfile.write(b" " * 1000)
        except ConnectionError:
            pass

    site.behaviours["/lib.json"] = flood
    with reader.Reader(site.url) as reading, pytest.raises(ProbeError, match="more than 100000 bytes"):
        reading.fetch(f"{site.url}/lib.json", limit=100_000)


def test_a_manifest_that_trickles_is_given_up(site: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_SMALL_BODY_SECONDS", 0.3)
    over = threading.Event()

    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        try:
            while not over.wait(0.02):
                handler.wfile.write(b" ")
        except ConnectionError:
            pass
        handler.close_connection = True

    site.behaviours["/lib.json"] = trickle
    started = time.monotonic()
    report = check(f"{site.url}/lib.json", timeout=20)
    over.set()
    assert report.probe == "TIMED_OUT"
    assert time.monotonic() - started < 10


def test_a_server_that_never_answers_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        report = check(f"http://127.0.0.1:{silent.getsockname()[1]}/lib.json", timeout=0.2)
    assert (report.ok, report.probe) == (False, "TIMED_OUT")


def test_a_server_that_speaks_something_else_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        report = check(f"http://127.0.0.1:{server.getsockname()[1]}/lib.json", timeout=5)
        thread.join()
    assert (report.ok, report.probe) == (False, "UNKNOWN_ERROR")


def test_nobody_listening_is_an_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        report = check(f"http://127.0.0.1:{closed.getsockname()[1]}/lib.json")
    assert (report.ok, report.probe) == (False, "UNKNOWN_ERROR")
    assert "refused" in report.problems[0].text


def test_an_unknown_host_is_what_vsphere_says() -> None:
    assert check("http://library.invalid/lib.json").probe == "HOST_NOT_FOUND"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "lib.json",
        "ftp://host/lib.json",
        "http:///lib.json",
        "http://host:99999/lib.json",
        "http://host:0/lib.json",
        "http://user:secret@host/lib.json",
        "http://host/a b",
        "http://host/ü",
        "http://host/\n",
        "http://[::1/lib.json",
    ],
)
def test_what_is_no_url_is_told(url: str) -> None:
    report = check(url)
    assert (report.ok, report.probe) == (False, "INVALID_URL")
    assert "secret" not in repr(report)


def test_a_connection_that_the_server_closes_between_answers_is_opened_again(site: Misbehaving) -> None:
    def serve_and_close(handler: Handler) -> None:
        handler.serve()
        handler.close_connection = True  # without telling, as a server does whose keep-alive ran out

    for path in ["/lib.json", "/items.json"]:
        site.behaviours[path] = serve_and_close
    assert problems(site) == []


def test_hostile_text_reaches_no_message_raw(site: Misbehaving) -> None:
    edit(site, "lib.json", lambda value: value.update(name="x\x1b[31m\n", maintenanceMessage="y\x1b\u202e\r"))
    edit(site, "items.json", lambda value: value["items"][0].update(name="\x07a", type="\x1b", created="\x00"))
    report = check(f"{site.url}/lib.json")
    assert len(report.problems) > 3
    for text in [report.govc, *(str(problem) for problem in report.problems)]:
        assert text.isprintable()


@pytest.mark.parametrize("field", ["version", "metadata", "extra"])
def test_nesting_never_breaks_the_check(site: Misbehaving, field: str) -> None:
    for depth in (100, 100_000, *range(850, 1000)):  # near Python's limit it may be read, but not handled
        deep = "[" * depth + "]" * depth
        text = (
            (site.root / "items.json").read_text().replace('"properties": {}', f'"properties": {{}}, "{field}": {deep}')
        )
        site.behaviours["/items.json"] = lambda handler, text=text: handler.answer(200, text.encode())
        assert check(f"{site.url}/lib.json").problems


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "x", "\u00b2"])
def test_an_absurd_content_length_never_breaks_the_check(site: Misbehaving, x_path: str, length: str) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.close_connection = True

    site.behaviours[x_path] = answer
    for full in (False, True):
        assert any(each.startswith("error: item 'a', file 'x.bin'") for each in problems(site, full=full))


# Following


def test_a_version_that_goes_back_is_an_error(site: Misbehaving, tmp_path: Path, published: PublishedLibrary) -> None:
    newer = library(content("a", FILES["a"], description="d"), previous=published)
    write_site(site.root, newer, FILES)
    sync(site, tmp_path)
    write_site(site.root, published, FILES)
    with pytest.raises(SubscriberError, match="went back from 2 to 1"):
        sync(site, tmp_path)


def test_items_that_change_without_the_librarys_version_are_an_error(
    site: Misbehaving, tmp_path: Path, published: PublishedLibrary
) -> None:
    sync(site, tmp_path)
    newer = library(content("a", FILES["a"], description="d"), previous=published)
    (site.root / "items.json").write_bytes(manifests(newer).items)
    with pytest.raises(SubscriberError, match="version is still 1"):
        sync(site, tmp_path)


def test_a_publication_between_two_requests_is_followed(
    site: Misbehaving, tmp_path: Path, published: PublishedLibrary
) -> None:
    sync(site, tmp_path)
    newer = library(content("a", {"x.bin": b"new"}), previous=published)

    def publish(handler: Handler) -> None:
        del site.behaviours["/items.json"]
        write_site(site.root, newer, {"a": {"x.bin": b"new"}})
        handler.serve()

    site.behaviours["/items.json"] = publish
    result = sync(site, tmp_path)
    assert (result.version, result.files, result.updated) == (2, (("a", "x.bin"),), ("a",))


def test_what_was_loaded_before_an_error_is_not_loaded_again(site: Misbehaving, tmp_path: Path) -> None:
    files = {**FILES, "b": {"z.bin": b"z"}}
    published = library(*(content(key, data) for key, data in files.items()))
    write_site(site.root, published, files)
    item = by_key(published, "b")
    bad = "/" + file_path(published, item, item.files[0])
    site.behaviours[bad] = lambda handler: handler.answer(404)
    with pytest.raises(ProbeError, match="404"):
        sync(site, tmp_path)
    site.behaviours.clear()
    assert sync(site, tmp_path).files == (("b", "z.bin"),)
