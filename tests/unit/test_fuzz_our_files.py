"""Our own files come back damaged: a typed error or a usable answer, never another exception."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from clr_client import lock
from clr_client import settings as clr_settings
from clr_client.catalogue import STATE
from clr_client.content.digests import DigestCache
from clr_client.directory import publish_directory
from clr_client.errors import ClrError, ManifestError, TransportError
from clr_client.reporting import overview
from clr_client.reporting import status as statuses
from clr_client.reporting.document import Known, describe, dump
from clr_client.store import Store
from clr_client.text import UNSAFE
from clr_client.transport import remembered_fingerprints
from clr_client.transport.ssh import _remember
from clr_client.values import Peer
from clr_client.vcsp import record, rules
from clr_client.vcsp.manifests import manifests
from clr_client.vcsp.reader import Answer, not_ready
from hypothesis import given
from hypothesis import strategies as st
from support.documents import document
from support.fuzz import damaged, odd_json
from support.libraries import content, library

if TYPE_CHECKING:
    from clr_client.vcsp.model import PublishedLibrary

FILES = {"vm.ovf": b"<Envelope/>", "disk one.vmdk": b"disk"}
LIBRARY = library(content("a/vm", FILES, kind="vcsp.ovf"), content("tools.iso", {"tools.iso": b"iso"}, kind="vcsp.iso"))
TEXTS = manifests(LIBRARY)
RECORD = record.dump(LIBRARY)
STATUS = statuses.dump(
    statuses.Status().after(
        statuses.Report("hand", "2026-11-21T19:54:00+00:00", held=(statuses.Held("a", "why", 3),), version=2),
        {"name": "Test", "version": 2, "generation": 7, "items": 1, "bytes": 5},
    )
)
KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIKzX0SdZ2TtzVQ9CqVJkzrH6Y1lJ2M0dO0wT3qvq3m5t"
KNOWN = f"# mine\n[127.0.0.1]:2222 ssh-ed25519 {KEY}\n@revoked * ssh-rsa {KEY}\n".encode()


def either(text: bytes) -> st.SearchStrategy[bytes]:
    return odd_json(json.loads(text)) | damaged([text])


def is_sound(published: PublishedLibrary) -> None:
    """What was read can be published again, and is read back as it is."""
    manifests(published)
    if published.href_style != "adopted":
        assert record.load(record.dump(published)) == published


@given(either(RECORD))
def test_a_damaged_record_is_refused_or_sound(data: bytes) -> None:
    with contextlib.suppress(ManifestError):
        is_sound(record.load(data))


@given(
    either(TEXTS.lib), either(TEXTS.items) | st.none(), st.lists(either(next(iter(TEXTS.item.values()))), max_size=2)
)
def test_damaged_manifests_are_refused_or_adopted_soundly(lib: bytes, items: bytes | None, single: list[bytes]) -> None:
    with contextlib.suppress(ManifestError):
        is_sound(record.adopt(lib, items, single))


@given(either(TEXTS.lib), either(TEXTS.items))
def test_a_strict_subscriber_reports_damaged_manifests_in_printable_words(lib: bytes, items: bytes) -> None:
    findings = rules.Findings()
    read = rules.read_library(lib, findings)
    known = read or rules.RemoteLibrary(LIBRARY.id, "x", 1, "items.json")
    rules.read_items(items, known, findings)
    for problem in findings.problems:
        assert not UNSAFE.search(str(problem))
        assert len(str(problem)) < 2000


@given(either(b'{"status": "TRANSFERRING", "progress": 40, "message": ""}'))
def test_any_503_is_understood_or_not(body: bytes) -> None:
    error = not_ready(Answer("http://x/lib.json", 503, {"content-length": "9" * 5000}), body)
    assert error is None or not UNSAFE.search(str(error))


KNOWN_PROGRAMS = Known()
KNOWN_PROGRAMS.get("versions", (), dict)


@given(either(STATUS))
def test_a_damaged_status_is_shown_in_printable_words_and_goes_on(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "status.json")
        path.write_bytes(data)
        settings = clr_settings.load({"SYNC_PEER": "x", "LIBRARY_NAME": "x", "CLR_LIBRARY_DIR": folder})[0]
        told = describe(settings, KNOWN_PROGRAMS)
        assert not UNSAFE.search(overview.as_text(told, settings.tz).replace("\n", ""))
        assert not UNSAFE.search(dump(told).decode().replace("\n", ""))
        assert told.keys() == document().keys()
        assert all(run.keys() == document()["runs"][0].keys() for run in told["runs"])
        after = statuses.load(path).after(statuses.Report("hand", "2026-11-21T19:54:00+00:00"), {})
        path.write_bytes(statuses.dump(after))
        assert statuses.load(path).runs[0]["trigger"] == "hand"


def known_digests() -> bytes:
    with TemporaryDirectory() as folder:
        cache = DigestCache()
        for name in INFOS:
            cache.put(name, INFOS[name], FACTS)
        place = Path(folder, "digests.json")
        cache.save(place)
        return place.read_bytes()


INFOS = {name: os.stat_result((0o100644, number, 1, 1, 0, 0, 5, 7, 7, 7)) for number, name in enumerate("abc")}
FACTS = {"sha256": "ab" * 32, "envelope": json.dumps([False, [["disk.vmdk", 5, False, None]]])}


@given(damaged([known_digests()]))
def test_damage_to_known_digests_is_noticed(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        place = Path(folder, "digests.json")
        place.write_bytes(data)
        cache = DigestCache.load(place)
        for name, info in INFOS.items():
            assert cache.get(name, info) in ({}, FACTS)
        cache.save(place)


@given(damaged([b"3 5\n"]) | st.binary(max_size=40), either(b'{"since": "2026", "trigger": "hand"}'))
def test_a_damaged_pin_and_a_damaged_lock_are_read(pin: bytes, holder: bytes) -> None:
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.pin.write_bytes(pin)
        target = store.rolled_back_to()
        assert target is None or isinstance(target, int)
        (store.root / ".lock").write_bytes(holder)
        with store.locked("one"):
            (store.root / ".lock").write_bytes(holder)
            assert lock.running_since(store.root)


@given(st.sampled_from((STATE, "lib.json", "items.json", "vm/item.json", "vm/clr-item.toml", "vm/vm.mf")), st.data())
def test_a_folder_with_any_damaged_file_is_published_or_refused(name: str, data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        item = Path(folder, "vm")
        item.mkdir()
        (item / "disk.vmdk").write_bytes(b"disk")
        publish_directory(Path(folder), "Test")
        place = Path(folder, name)
        original = place.read_bytes() if place.exists() else b'name = "x"\n'
        is_json = original.startswith(b"{")
        place.write_bytes(data.draw(either(original) if is_json else damaged([original])))
        with contextlib.suppress(ClrError):
            for _ in range(2):
                publish_directory(Path(folder), "Test")
                is_sound(record.load(Path(folder, STATE).read_bytes()))


@given(damaged([KNOWN], [KEY.encode(), b"\x0c", "\u2028".encode(), b"[127.0.0.1]:2222"]) | st.binary(max_size=100))
def test_a_damaged_known_hosts_is_read_and_the_lines_of_others_are_kept(data: bytes) -> None:
    peer = Peer("127.0.0.1", 2222)
    with TemporaryDirectory() as folder:
        place = Path(folder, "known_hosts")
        place.write_bytes(data)
        with contextlib.suppress(TransportError):
            remembered_fingerprints(place, peer)
            _remember(place, peer, [("ssh-ed25519", KEY)])
            own = f"[127.0.0.1]:2222 ssh-ed25519 {KEY}"
            lines = place.read_bytes().split(b"\n")
            assert os.fsencode(own) in lines
            assert all(line.split()[:1] == [b"[127.0.0.1]:2222"] or line in data for line in lines)
