"""The strict subscriber against a real Caddy."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.vcsp.manifests import file_path
from clr_client.vcsp.subscriber import Subscriber, check
from support.libraries import content, library, write_site
from support.templates import envelope, manifest
from support.webservers import caddy, certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clr_client.vcsp.model import ItemContent, PublishedLibrary

Files = dict[str, dict[str, bytes]]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "caddy").mkdir()
    return tmp_path / "caddy"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


@pytest.fixture
def url(root: Path, work: Path) -> Iterator[str]:
    with caddy(root, work) as top:
        yield f"{top}/lib.json"


def template(tmp_path: Path, disk: bytes = b"disk" * 1000) -> dict[str, bytes]:
    folder = tmp_path / "template"
    folder.mkdir(exist_ok=True)
    files = {"debian.ovf": envelope("debian", {"disk 1.vmdk": len(disk)}), "disk 1.vmdk": disk}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {**files, "debian.mf": manifest(folder, files)}


def sample(tmp_path: Path) -> Files:
    return {
        "linux/debian 12": template(tmp_path),
        "net inst.iso": {"net inst.iso": b"iso" * 50},
        "tools": {"empty.txt": b"", "readme.txt": b"read"},
    }


KINDS = {"linux/debian 12": "vcsp.ovf", "net inst.iso": "vcsp.iso"}


def contents(files: Files) -> list[ItemContent]:
    return [content(key, data, kind=KINDS.get(key, "vcsp.other")) for key, data in files.items()]


@pytest.mark.parametrize("style", ["tree", "plain"])
@pytest.mark.parametrize("full", [False, True])
def test_what_we_publish_has_no_problems(tmp_path: Path, root: Path, url: str, style: str, full: bool) -> None:
    files = sample(tmp_path)
    published = library(*contents(files), href_style=style, name="Golden images")
    write_site(root, published, files)
    seen: list[tuple[int, int, str]] = []
    report = check(url, full=full, on_progress=lambda *step: seen.append(step))
    assert [str(problem) for problem in report.problems] == []
    assert (report.ok, report.probe, report.library, report.id) == (True, "SUCCESS", "Golden images", published.id)
    size = sum(len(data) for item in files.values() for data in item.values())
    assert (report.version, report.items, report.files, report.bytes) == (1, 3, 6, size)
    assert report.thumbprints is None
    assert report.govc == f"govc library.create -sub {url} 'Golden images'"
    assert seen[-1][:2] == ((size, size) if full else (6, 6))


NAMES = [
    "with space",
    "hash#tag",
    "100%",
    "%41",
    "what?",
    'quo"te',
    "apo'strophe",
    "am&per",
    "plus+plus",
    "semi;colon",
    "co:lon",
    "-leading",
    "~tilde",
    "sta*r",
    "[brackets]",
    "{braces}",
    "M\u00fcnchen",
    "Wu\u0308rzburg",
    "\u65e5\u672c",
    "\U0001f4e6",
    "n" * 200,
    "dot.",
    "a..b",
    "equals=,$!@()|^<>`",
    "back\\slash",
]


@pytest.mark.parametrize("style", ["tree", "plain"])
def test_names_with_every_character_are_reached(tmp_path: Path, root: Path, url: str, style: str) -> None:
    files = {name: {f"{each}.bin": each.encode() for each in NAMES} for name in NAMES}
    published = library(
        *(content(key, data, name=f"item {number}") for number, (key, data) in enumerate(files.items())),
        href_style=style,
    )
    write_site(root, published, files)
    subscriber = Subscriber(tmp_path / "subscriber")
    result = subscriber.sync(url)
    assert len(result.files) == len(NAMES) ** 2
    assert {problem.text for problem in result.warnings} <= {"has a backslash or control character in its name"}
    for item in published.items:
        for name, path in subscriber.files()[item.name].items():
            assert path.read_bytes() == files[item.key][name]
    report = check(url)
    assert [str(problem) for problem in report.problems if problem.severity == "error"] == []


def held(subscriber: Subscriber) -> Files:
    return {
        name: {each: path.read_bytes() for each, path in files.items()} for name, files in subscriber.files().items()
    }


def change(rng: random.Random, files: Files, turn: int) -> None:
    """One random change at the source."""
    kind = rng.choice(["add", "add", "write", "write", "write", "new file", "delete file", "remove", "nothing"])
    data = rng.randbytes(rng.randrange(2000))
    if kind == "add" or len(files) < 2:
        files[f"item {turn}"] = {"a": data, "b": rng.randbytes(100), "c": b""}
        return
    key = rng.choice(sorted(files))
    if kind == "write":
        files[key][rng.choice(sorted(files[key]))] = data
    elif kind == "new file":
        files[key][f"new {turn}"] = data
    elif kind == "delete file" and len(files[key]) > 1:
        del files[key][rng.choice(sorted(files[key]))]
    elif kind == "remove":
        del files[key]


def test_a_subscriber_converges_over_fifty_changes_loading_only_what_changed(
    tmp_path: Path, root: Path, url: str
) -> None:
    rng = random.Random(20261121)
    files: Files = {}
    published: PublishedLibrary | None = None
    for turn in range(50):
        before = {key: dict(item) for key, item in files.items()}
        change(rng, files, turn)
        published = library(*contents(files), previous=published, href_style="tree" if turn < 40 else "plain")
        if turn >= 40:
            shutil.rmtree(root)
            root.mkdir()
        write_site(root, published, files)
        subscriber = Subscriber(tmp_path / "subscriber")  # a new one: what it knows is on disk
        result = subscriber.sync(url)
        assert held(subscriber) == files
        there = sorted(path for path in (tmp_path / "subscriber" / "items").rglob("*") if path.is_file())
        assert there == sorted(path for item in subscriber.files().values() for path in item.values())
        changed = {
            (key, name)
            for key, item in files.items()
            for name, data in item.items()
            if before.get(key, {}).get(name) != data
        }
        assert set(result.files) == changed
        assert result.bytes == sum(len(files[key][name]) for key, name in changed)
        assert set(result.removed) == before.keys() - files.keys()
        assert result.version == published.version
        assert result.warnings == ()
        again = subscriber.sync(url)
        assert (again.files, again.added, again.updated, again.removed) == ((), (), (), ())


def test_a_missing_file_or_manifest_is_named(tmp_path: Path, root: Path, url: str) -> None:
    files = sample(tmp_path)
    published = library(*contents(files))
    write_site(root, published, files)
    item = next(item for item in published.items if item.key == "tools")
    (root / file_path(published, item, item.files[1])).unlink()
    (root / file_path(published, item, item.files[1])).with_name("item.json").unlink()
    report = check(url)
    assert not report.ok
    assert [problem.where for problem in report.problems] == [
        "item 'tools', item.json",
        "item 'tools', file 'readme.txt'",
    ]
    assert all("404" in problem.text for problem in report.problems)


def test_a_url_without_a_library_is_what_vsphere_says(root: Path, url: str) -> None:
    report = check(url)
    assert (report.ok, report.probe, report.problems[0].where) == (False, "RESOURCE_NOT_FOUND", url)
    top = check(url.removesuffix("/lib.json"))
    assert top.probe == "RESOURCE_NOT_FOUND"
    assert "ends in /lib.json" in top.problems[0].text


def test_compression_is_found(tmp_path: Path, root: Path, work: Path) -> None:
    files = {"a": {"readme.txt": b"text " * 1000}}
    write_site(root, library(*contents(files)), files)
    with caddy(root, work, {"handler": "encode", "encodings": {"gzip": {}}}) as top:
        report = check(f"{top}/lib.json")
    found = [str(problem) for problem in report.problems]
    assert "error: item 'a', file 'readme.txt': is sent compressed ('gzip'): vSphere sees another size" in found


# TLS


def openssl_thumbprint(chain: Path, algorithm: str) -> str:
    done = subprocess.run(
        ["openssl", "x509", "-in", str(chain), "-noout", "-fingerprint", f"-{algorithm}"],
        check=True,
        capture_output=True,
    )
    return done.stdout.decode().strip().partition("=")[2]


@pytest.fixture
def tls(tmp_path: Path, root: Path, work: Path) -> Iterator[tuple[str, Path]]:
    files = sample(tmp_path)
    write_site(root, library(*contents(files), name="-x"), files)
    chain = certificate(tmp_path / "tls")
    with caddy(root, work, certificate=chain) as top:
        yield f"{top}/lib.json", chain[0]


def test_a_certificate_of_a_named_ca_is_no_problem(tls: tuple[str, Path], tmp_path: Path) -> None:
    url, chain = tls
    report = check(url, ca_file=chain)
    assert [str(problem) for problem in report.problems] == []
    assert report.thumbprints is not None
    assert report.thumbprints.sha256 == openssl_thumbprint(chain, "sha256")
    assert report.thumbprints.sha1 == openssl_thumbprint(chain, "sha1")
    assert report.govc == f"govc library.create -sub {url} -thumbprint {report.thumbprints.sha1} -- -x"
    assert Subscriber(tmp_path / "subscriber", ca_file=chain).sync(url).version == 1


def test_a_certificate_of_no_known_ca_is_a_warning(tls: tuple[str, Path]) -> None:
    url, chain = tls
    report = check(url)
    assert report.ok
    assert [problem.severity for problem in report.problems] == ["warning"]
    assert "trust its thumbprint" in report.problems[0].text
    assert report.thumbprints is not None
    assert report.thumbprints.sha256 == openssl_thumbprint(chain, "sha256")


def test_a_certificate_of_another_ca_is_an_error_that_shows_the_thumbprints(
    tls: tuple[str, Path], tmp_path: Path
) -> None:
    url, chain = tls
    report = check(url, ca_file=certificate(tmp_path / "other")[0])
    assert (report.ok, report.probe) == (False, "CERTIFICATE_ERROR")
    assert report.thumbprints is not None
    assert report.thumbprints.sha256 == openssl_thumbprint(chain, "sha256")


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
@pytest.mark.parametrize("spell", [str.upper, str.lower, lambda text: text.replace(":", "")])
def test_a_pinned_thumbprint_is_enough(tls: tuple[str, Path], algorithm: str, spell: Any) -> None:
    url, chain = tls
    assert check(url, thumbprint=spell(openssl_thumbprint(chain, algorithm)), password="p").problems == ()


def test_another_thumbprint_than_the_pinned_is_an_error(tls: tuple[str, Path]) -> None:
    url, chain = tls
    wrong = hashlib.sha256(b"another").hexdigest()
    assert check(url, thumbprint=wrong).probe == "CERTIFICATE_ERROR"
    assert check(url, thumbprint=wrong, ca_file=chain).probe == "CERTIFICATE_ERROR"


def test_plain_http_on_a_tls_port_is_no_success(tls: tuple[str, Path]) -> None:
    url, _ = tls
    assert check(url.replace("https:", "http:")).probe != "SUCCESS"
