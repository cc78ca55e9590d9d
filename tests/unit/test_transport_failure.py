"""What a person reads when rsync or ssh failed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clr_client.errors import HostKeyError, TransportError
from clr_client.transport import rsync_warning
from clr_client.transport.failure import disk_failure, failure
from clr_client.transport.runner import Ended, printable
from test_transport_argv import LINK

OLD, NEW, OWN = (f"SHA256:{letter * 43}" for letter in "onk")


def explain(code: int, *lines: str) -> TransportError:
    return failure(Ended(code, lines), LINK, [f"{OLD} (ssh-ed25519)"], OWN)


@pytest.mark.parametrize("code", [10, 12, 30, 35, 255, -9, 20, 5, 11])
def test_what_a_minute_may_mend_is_retryable(code: int) -> None:
    assert explain(code).retryable


@pytest.mark.parametrize("code", [1, 2, 3, 4, 22, 127])
def test_what_no_wait_mends_is_final(code: int) -> None:
    assert not explain(code).retryable


def test_the_message_names_code_meaning_and_the_last_words() -> None:
    error = explain(12, "first", "the reason", "rsync error: error in rsync protocol data stream (code 12) at io.c")
    assert "code 12" in error.message
    assert error.message.endswith("first | the reason")


def test_a_connection_that_broke_after_it_was_made_is_not_said_to_have_failed() -> None:
    error = explain(255, "rsync: connection unexpectedly closed (9 bytes received so far) [receiver]", "rsync error: x")
    assert error.retryable
    assert "broke" in error.message
    assert "no connection" not in error.message


@pytest.mark.parametrize("code", [255, 12])
@pytest.mark.parametrize(
    "line",
    [
        "ssh: connect to host h port 2222: Connection refused",
        "ssh: Could not resolve hostname h: Name or service not known",
        "connect to host h port 2222: Connection refused",
    ],
)
def test_a_connection_that_was_not_made_is_said_to_have_failed_also_when_rsync_saw_the_closed_pipe_first(
    code: int, line: str
) -> None:
    error = explain(code, line, "rsync: connection unexpectedly closed (0 bytes received so far) [Receiver]")
    assert error.retryable
    assert "no connection" in error.message
    assert line in error.message


def test_a_changed_host_key_names_both_fingerprints_and_what_to_do() -> None:
    error = explain(
        255,
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
        "The fingerprint for the ED25519 key sent by the remote host is",
        f"{NEW}.",
        "Host key verification failed.",
    )
    assert isinstance(error, HostKeyError)
    assert not error.retryable
    assert OLD in error.message
    assert NEW in error.message
    assert str(Path("/library/known_hosts")) in error.remedy


def test_an_unknown_host_key_is_final_and_says_to_pin() -> None:
    error = explain(255, "No ED25519 host key is known for [h]:2222 and you have requested strict checking.")
    assert isinstance(error, HostKeyError)
    assert "pin" in error.remedy.lower()


@pytest.mark.parametrize("code", [255, 12])
def test_a_key_that_is_not_accepted_is_named_with_its_fingerprint(code: int) -> None:
    error = explain(code, "syncer@h: Permission denied (publickey).")
    assert not error.retryable
    assert OWN in error.message
    assert "id_syncer" in error.message
    assert ".pub" in error.remedy


@pytest.mark.parametrize(
    "line",
    [
        "ssh: connect to host h port 2222: Connection refused",
        "ssh: connect to host h port 2222: Connection timed out",
        "ssh: Could not resolve hostname h: Name or service not known",
        "kex_exchange_identification: Connection closed by remote host",
        "Timeout, server h not responding.",
    ],
)
def test_no_connection_is_retryable_and_says_why(line: str) -> None:
    error = explain(255, line, "rsync: connection unexpectedly closed (0 bytes received so far) [Receiver]")
    assert error.retryable
    assert error.message.endswith(line)


def test_a_command_that_rrsync_refuses_is_final() -> None:
    error = explain(12, "/usr/bin/rrsync error: option -L has been disabled on this server.")
    assert not error.retryable
    assert "option -L" in error.message


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ('rsync: [receiver] write failed on "/m/a": No space left on device (28)', "Make room"),
        ('rsync: [generator] recv_generator: mkdir "/m/a" failed: No space left on device (28)', "Make room"),
        ('rsync: [receiver] mkstemp "/m/.a.Ab3dE9" failed: Disk quota exceeded (122)', "quota"),
        ('rsync: [receiver] mkstemp "/m/.a.Ab3dE9" failed: Read-only file system (30)', "writable"),
        ('rsync: [receiver] read errors mapping "/m/a": Input/output error (5)', "failing"),
    ],
)
def test_trouble_with_the_volume_here_is_told_from_trouble_at_the_server(line: str, remedy: str) -> None:
    error = explain(11, line)
    assert not error.retryable
    assert line.removeprefix("rsync: ") in error.message
    assert remedy in error.remedy
    assert disk_failure(["some other line", line]) is not None
    theirs = re.sub(r"receiver|generator", "sender", line)
    assert disk_failure([theirs]) is None
    assert disk_failure(['rsync: [generator] stat "/m/a (5)" failed: Permission denied (13)']) is None


def test_control_characters_of_the_server_never_reach_a_terminal() -> None:
    shown = printable(b"\x1b]0;title\x07 \xff caf\xc3\xa9 \xe2\x80\xae" + b"x" * 5000)
    assert shown.isprintable()
    assert "café" in shown
    assert len(shown) < 2000


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.10.2", "4.0.0"])
def test_an_rsync_with_the_fixes_is_not_warned_about(version: str) -> None:
    assert rsync_warning(version) is None


@pytest.mark.parametrize("version", ["3.2.7", "3.4.1", "3.4.3"])
def test_an_rsync_without_the_fixes_is_warned_about_with_the_reason(version: str) -> None:
    assert "CVE-2026-70458" in str(rsync_warning(version))
    assert "3.5.0" in str(rsync_warning(version))


def test_an_rsync_whose_version_cannot_be_told_is_warned_about() -> None:
    assert "3.5.0" in str(rsync_warning("missing"))
