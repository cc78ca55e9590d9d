"""What rsync and ssh are asked to do, and what they must never be asked."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from clr_client import blocks
from clr_client.errors import TransportError
from clr_client.transport import Link
from clr_client.transport.rsync import fetch_argv, list_argv
from clr_client.transport.ssh import remote_shell, source, ssh_argv
from clr_client.values import Peer

LINK = Link(
    peer=Peer("clr.example.com", 2222),
    user="syncer",
    identity=Path("/keys/id_syncer"),
    known_hosts=Path("/library/known_hosts"),
    trust_first=False,
    connect_timeout=timedelta(seconds=30),
    idle_timeout=timedelta(minutes=5),
)


def change(**values: object) -> Link:
    fields = {name: getattr(LINK, name) for name in Link.__slots__}
    return Link(**(fields | values))


def split_as_rsync(command: str) -> list[str]:
    """rsync's own rule for -e, written from its manual: spaces part words, quotes hold, a doubled quote is one."""
    words, at = [], 0
    while at < len(command):
        if command[at] == " ":
            at += 1
            continue
        word, quote = "", ""
        while at < len(command) and (command[at] != " " or quote):
            letter = command[at]
            if letter in "'\"" and not quote:
                quote = letter
            elif letter == quote and command[at + 1 : at + 2] == quote:
                word += quote
                at += 1
            elif letter == quote:
                quote = ""
            else:
                word += letter
            at += 1
        words.append(word)
    return words


def test_rsync_is_never_asked_to_delete_to_write_in_place_or_to_take_owners_and_modes() -> None:
    for argv in (list_argv(LINK), fetch_argv(LINK, Path("/m"), Path("/b"), 4096)):
        words = " ".join(argv)
        for forbidden in ("--inplace", "--append", "--delete", "--remove", "--perms ", "--links ", "--copy-links"):
            assert forbidden not in f"{words} "
        assert not {"-a", "-l", "-L", "-p", "-K", "--archive", "--keep-dirlinks", "--trust-sender"} & set(argv)


def test_a_seeded_file_of_the_same_size_and_time_is_never_taken_for_the_new_one() -> None:
    assert "--ignore-times" in fetch_argv(LINK, Path("/m"), None, 4096)


def test_the_source_is_the_bare_host_as_every_rrsync_takes_it() -> None:
    assert source(Peer("clr.example.com", 2222)) == "clr.example.com:"
    assert source(Peer("2001:db8::1", 22)) == "[2001:db8::1]:"


def test_block_size_rate_basis_and_timeout_reach_rsync() -> None:
    argv = fetch_argv(LINK, Path("/m"), Path("/b b"), 8192, 1_500_000)
    assert {"--block-size=8192", "--bwlimit=1500000b", "--link-dest=/b b", "--timeout=300"} <= set(argv)
    assert "--whole-file" in fetch_argv(LINK, Path("/m"), None, blocks.WHOLE)
    assert not any(word.startswith("--link-dest") for word in fetch_argv(LINK, Path("/m"), None, 4096))
    endless = change(idle_timeout=timedelta(0), connect_timeout=timedelta(0))
    assert not any(word.startswith(("--timeout", "--contimeout")) for word in list_argv(endless))
    assert "ConnectTimeout" not in " ".join(ssh_argv(endless))


def test_an_idle_timeout_below_a_second_does_not_become_no_timeout() -> None:
    assert "--timeout=1" in list_argv(change(idle_timeout=timedelta(milliseconds=200)))


@pytest.mark.parametrize(("first", "word"), [(True, "accept-new"), (False, "yes")])
def test_an_unknown_host_key_is_taken_only_when_that_is_asked_for(*, first: bool, word: str) -> None:
    assert f"StrictHostKeyChecking={word}" in ssh_argv(change(trust_first=first))


def test_ssh_reads_no_configuration_asks_nothing_and_forwards_nothing() -> None:
    argv = ssh_argv(LINK)
    assert argv[:3] == ["ssh", "-F", "none"]
    for option in (
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "GlobalKnownHostsFile=/dev/null",
        "ForwardAgent=no",
        "ClearAllForwardings=yes",
        "UpdateHostKeys=no",
        "ServerAliveInterval=10",
        "ServerAliveCountMax=3",
        "ConnectTimeout=30",
    ):
        assert option in argv


@pytest.mark.parametrize("folder", ["/a b", "/it's", '/"q"', "/a  ''b", "/100%h", "/back\\slash"])
def test_rsync_splits_the_remote_shell_into_the_words_that_were_meant(folder: str) -> None:
    link = change(identity=Path(folder, "id"), known_hosts=Path(folder, "known hosts"))
    assert split_as_rsync(remote_shell(link)) == ssh_argv(link)


def test_a_path_that_ssh_would_expand_is_refused() -> None:
    with pytest.raises(TransportError) as caught:
        ssh_argv(change(identity=Path("/keys/${HOME}/id")))
    assert not caught.value.retryable
