"""Digests: each file is read at most once, and not at all while it is unchanged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import tracemalloc

import pytest
from clr_client.content.digests import DigestCache, hash_file, hash_range, read_small
from clr_client.errors import HeldError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Bytes that hashing read, one entry per read."""
    seen: list[int] = []
    preadv = os.preadv

    def count(*arguments):
        seen.append(preadv(*arguments))
        return seen[-1]

    monkeypatch.setattr(os, "preadv", count)
    return seen


def test_all_algorithms_come_from_one_read(tmp_path, reads):
    content = os.urandom(3 * (1 << 20) + 17)
    (tmp_path / "f").write_bytes(content)
    found = hash_file(tmp_path / "f", {"sha256", "sha1", "sha512"}, DigestCache())
    assert found == {name: hashlib.new(name, content).hexdigest() for name in ("sha256", "sha1", "sha512")}
    assert sum(reads) == len(content)
    assert 256 << 10 <= max(reads) <= 1 << 20


def test_an_unchanged_file_is_never_opened_again_also_not_by_the_next_run(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"content")
    cache = DigestCache()
    first = hash_file(tmp_path / "f", {"sha256"}, cache)
    cache.save(tmp_path / "cache")
    cache = DigestCache.load(tmp_path / "cache")
    monkeypatch.setattr(os, "open", None)
    assert hash_file(tmp_path / "f", {"sha256"}, cache) == first


def test_a_range_of_a_file_is_hashed_to_its_last_byte_and_no_further(tmp_path):
    content = os.urandom(3 << 20)
    (tmp_path / "f").write_bytes(content)
    written = bytearray()
    with (tmp_path / "f").open("rb") as stream:
        found = hash_range(stream.fileno(), 512, (1 << 20) + 5, {"sha256"}, sink=written.extend)
    part = content[512 : 512 + (1 << 20) + 5]
    assert found == {"sha256": hashlib.sha256(part).hexdigest()}
    assert bytes(written) == part


def test_a_large_file_is_hashed_in_little_memory(tmp_path):
    (tmp_path / "f").touch()
    os.truncate(tmp_path / "f", 128 << 20)
    tracemalloc.start()
    try:
        hash_file(tmp_path / "f", {"sha256"}, DigestCache())
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_further_algorithm_is_added_to_what_is_known(tmp_path, reads):
    (tmp_path / "f").write_bytes(b"content")
    cache = DigestCache()
    hash_file(tmp_path / "f", {"sha256"}, cache)
    hash_file(tmp_path / "f", {"sha256", "sha1"}, cache)
    assert len(reads) == 2
    hash_file(tmp_path / "f", {"sha1", "sha256"}, cache)
    assert len(reads) == 2


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_file_of_another_size_time_or_inode_is_read_again(tmp_path, reads, change: str):
    path = tmp_path / "f"
    path.write_bytes(b"content")
    before = path.stat()
    cache = DigestCache()
    hash_file(path, {"sha256"}, cache)
    if change == "size":
        path.write_bytes(b"content!")
    elif change == "inode":
        (tmp_path / "g").write_bytes(b"CONTENT")
        (tmp_path / "g").rename(path)
    nanoseconds = before.st_mtime_ns + (1 if change == "time" else 0)
    os.utime(path, ns=(before.st_atime_ns, nanoseconds))
    found = hash_file(path, {"sha256"}, cache)
    assert len(reads) == 2
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_empty_file_has_a_digest(tmp_path):
    (tmp_path / "f").touch()
    assert hash_file(tmp_path / "f", {"sha256"}, DigestCache())["sha256"] == hashlib.sha256().hexdigest()


@pytest.mark.parametrize("kind", ["missing", "folder", "link", "pipe"])
def test_what_is_no_regular_file_is_held_and_never_waited_for(tmp_path, kind: str):
    path = tmp_path / "f"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(HeldError, match=r"f (cannot be read|is not a regular file)"):
        hash_file(path, {"sha256"}, DigestCache())


@pytest.mark.parametrize("how", ["appended", "rewritten", "shortened", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_hashed_is_held_and_not_remembered(tmp_path, monkeypatch, how: str):
    path = tmp_path / "f"
    path.write_bytes(b"x" * (2 << 20))
    os.utime(path, (1, 1))
    preadv = os.preadv
    calls = []

    def meddle(*arguments):
        count = preadv(*arguments)
        calls.append(count)
        if len(calls) == 1:
            if how == "appended":
                with path.open("ab") as stream:
                    stream.write(b"more")
            elif how == "rewritten":
                with path.open("r+b") as stream:
                    stream.write(b"other")
            elif how == "shortened":
                os.truncate(path, 10)
            elif how == "replaced":
                (tmp_path / "new").write_bytes(b"x" * (2 << 20))
                (tmp_path / "new").rename(path)
            else:
                path.unlink()
        return count

    monkeypatch.setattr(os, "preadv", meddle)
    cache = DigestCache()
    with pytest.raises(HeldError, match=r"changed|shorter|vanished"):
        hash_file(path, {"sha256"}, cache)
    assert cache.get(path) == {}


def test_a_read_error_of_the_disk_holds_the_item(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"x")

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(HeldError, match="f cannot be read: Input/output error"):
        hash_file(tmp_path / "f", {"sha256"}, DigestCache())


def test_hashing_can_be_stopped(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    stop = threading.Event()
    assert hash_file(tmp_path / "f", {"sha256"}, DigestCache(), stop=stop)
    stop.set()
    with pytest.raises(HeldError, match="stopped"):
        hash_file(tmp_path / "f", {"sha256"}, DigestCache(), stop=stop)


def test_a_small_file_over_its_limit_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"x" * 1025)
    monkeypatch.setattr(os, "read", None)
    with pytest.raises(HeldError, match="f is larger than 1 KiB"):
        read_small(tmp_path / "f", 1024)


HEADER = b'"content-library-rsync digests 2"\n'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"content-library-rsync digests 2"\n["/f", "1 2 3"]\n',
        HEADER + b"{}\n",
        HEADER + b"[]\n",
        HEADER + b"5\n",
        HEADER + b'["/f"]\n',
        HEADER + b'[1, "2"]\n',
        HEADER + b'["/f", 5]\n["/g", null]\n["/h", ""]\n',
        HEADER + b"[" * 100_000,
        HEADER + b"\xff\xfe",
        b"\xff\xfe",
    ],
)
def test_a_damaged_cache_is_an_empty_one(tmp_path, content: bytes):
    (tmp_path / "cache").write_bytes(content)
    cache = DigestCache.load(tmp_path / "cache")
    (tmp_path / "f").write_bytes(b"x")
    assert hash_file(tmp_path / "f", {"sha256"}, cache)["sha256"] == hashlib.sha256(b"x").hexdigest()
    cache.save(tmp_path / "cache")
    assert DigestCache.load(tmp_path / "cache").get(tmp_path / "f")


def test_a_cache_that_cannot_be_read_is_an_empty_one(tmp_path):
    assert DigestCache.load(tmp_path).get(tmp_path / "f") == {}
    assert DigestCache.load(tmp_path / "none").get(tmp_path / "f") == {}


def test_saving_replaces_the_old_cache_at_once_and_forgets_files_that_are_gone(tmp_path):
    cache = DigestCache()
    for name in ("kept", "gone", "changed"):
        (tmp_path / name).write_bytes(b"x")
        hash_file(tmp_path / name, {"sha256"}, cache)
    cache.save(tmp_path / "cache")
    (tmp_path / "gone").unlink()
    (tmp_path / "changed").write_bytes(b"xx")
    cache = DigestCache.load(tmp_path / "cache")
    cache.save(tmp_path / "cache")
    _, *lines = (tmp_path / "cache").read_text().splitlines()
    assert [json.loads(line)[0] for line in lines] == [str(tmp_path / "kept")]
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_cache_that_cannot_be_written_is_a_warning_and_leaves_nothing_behind(tmp_path, monkeypatch, caplog):
    (tmp_path / "f").write_bytes(b"x")
    cache = DigestCache()
    hash_file(tmp_path / "f", {"sha256"}, cache)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        cache.save(tmp_path / "cache")
    assert "No space left on device" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


def test_a_damaged_line_of_the_cache_costs_only_itself(tmp_path):
    cache = DigestCache()
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"x")
        hash_file(tmp_path / name, {"sha256"}, cache)
    cache.save(tmp_path / "cache")
    lines = (tmp_path / "cache").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:20] + b"\n"
    (tmp_path / "cache").write_bytes(b"".join(lines))
    cache = DigestCache.load(tmp_path / "cache")
    assert [bool(cache.get(tmp_path / name)) for name in ("a", "b", "c")] == [True, False, True]


def test_an_unchanged_cache_is_not_written_again(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    cache = DigestCache()
    hash_file(tmp_path / "f", {"sha256"}, cache)
    cache.save(tmp_path / "cache")
    before = (tmp_path / "cache").stat()
    cache = DigestCache.load(tmp_path / "cache")
    hash_file(tmp_path / "f", {"sha256"}, cache)
    cache.save(tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_ino == before.st_ino


def test_facts_are_lost_with_the_content_they_were_about(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x")
    cache = DigestCache()
    cache.put(path, path.stat(), {"sha256": "1"})
    path.write_bytes(b"yy")
    cache.put(path, path.stat(), {"sha1": "2"})
    assert cache.get(path) == {"sha1": "2"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x) | st.dictionaries(st.text(max_size=3), x)
    )
)
def test_any_json_loads_as_a_cache(tmp_path, value: object):
    (tmp_path / "f").touch()
    for document in (value, [str(tmp_path / "f"), value]):
        (tmp_path / "cache").write_bytes(HEADER + json.dumps(document).encode() + b"\n")
        assert DigestCache.load(tmp_path / "cache").get(tmp_path / "f") == {}
