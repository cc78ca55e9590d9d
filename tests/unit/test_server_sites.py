"""The table of sites that is made of the server's log."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from support.programs import load_program
from support.server import SERVER

program: Any = load_program("sites")

KEYS = """\
host key: ed25519 SHA256:3aHX    pin it at the clients with SYNC_HOST_KEY=SHA256:3aHX
key oslo.pub: accepted for site oslo, ssh-ed25519 SHA256:IA3w
key lima.pub: accepted for site lima, ssh-ed25519 SHA256:0000, no newline at its end (harmless)
key rio.pub: NOT accepted: there is no key in it
serving /syncer/library on port 22; 200 sites may log in at the same moment
"""
SYNC = """\
Accepted publickey for syncer from 192.0.2.7 port 5589 ssh2: ED25519 SHA256:IA3w site=oslo
2026-11-21T23:24:08+0000 serve-library: site=oslo address=192.0.2.7 session=15 start
2026-11-21T23:24:09+0000 serve-library: site=oslo address=192.0.2.7 session=15 end exit=0 seconds=1 sent=900 received=80
2026-11-21T23:24:11+0000 serve-library: site=oslo address=192.0.2.7 session=17 start
2026-11-21T23:24:11+0000 serve-library: site=oslo address=192.0.2.7 session=18 start
2026-11-22T01:30:00+0000 serve-library: site=oslo address=192.0.2.7 session=18 end exit=0 seconds=7549 sent=1000000 received=2000
2026-11-22T01:30:01+0000 serve-library: site=oslo address=192.0.2.7 session=17 end exit=0 seconds=7550 sent=2000000 received=3000
2026-11-22T01:30:02+0000 serve-library: site=oslo address=192.0.2.7 session=21 start
2026-11-22T01:30:03+0000 serve-library: site=oslo address=192.0.2.7 session=21 end exit=0 seconds=1 sent=900 received=80
"""  # noqa: E501


def sites(log: str) -> dict[str, dict[str, Any]]:
    """What the command says as JSON, by the sites' names."""
    done = subprocess.run([SERVER / "sites", "--json"], input=log.encode(), capture_output=True, check=True)
    return {site["site"]: site for site in json.loads(done.stdout)}


def test_the_sessions_of_one_sync_are_one_visit_with_its_duration_and_all_bytes() -> None:
    assert sites(KEYS + SYNC)["oslo"] == {
        "site": "oslo",
        "state": "ok",
        "began": "2026-11-21T23:24:08+00:00",
        "ended": "2026-11-22T01:30:03+00:00",
        "seconds": 2 * 3600 + 5 * 60 + 55,
        "last_success": "2026-11-22T01:30:03+00:00",
        "address": "192.0.2.7",
        "sessions": 4,
        "failures": 0,
        "sent_bytes": 3_001_800,
        "received_bytes": 5160,
        "refusals": 0,
    }


def test_a_site_with_a_key_that_never_came_is_in_the_table_too() -> None:
    found = sites(KEYS + SYNC)
    assert found.keys() == {"lima", "oslo"}
    assert (found["lima"]["state"], found["lima"]["sessions"], found["lima"]["ended"]) == ("never", 0, None)


def test_the_table_is_for_people() -> None:
    done = subprocess.run([SERVER / "sites"], input=(KEYS + SYNC).encode(), capture_output=True, check=True)
    head, lima, oslo = done.stdout.decode().splitlines()
    assert head.split("  ")[0] == "SITE"
    assert "never" in lima
    for text in ("2026-11-22 01:30", "2 h 5 min", "192.0.2.7", "3.0 MB", "5.2 kB"):
        assert text in oslo


def test_a_later_visit_is_a_new_one_and_a_failed_one_keeps_the_last_success() -> None:
    later = (
        "2026-11-23T05:00:00+0000 serve-library: site=oslo address=192.0.2.9 session=30 start\n"
        "2026-11-23T05:00:30+0000 serve-library: site=oslo address=192.0.2.9 session=30"
        " end exit=23 seconds=30 sent=5 received=6\n"
    )
    oslo = sites(SYNC + later)["oslo"]
    assert (oslo["state"], oslo["seconds"], oslo["address"]) == ("exit 23", 30, "192.0.2.9")
    assert (oslo["last_success"], oslo["failures"]) == ("2026-11-22T01:30:03+00:00", 1)


def test_a_visit_is_a_success_only_when_its_last_session_is() -> None:
    first, rest = SYNC.splitlines()[:3], SYNC.splitlines()[3:]
    listed = sites("\n".join(first))["oslo"]
    assert listed["last_success"] == "2026-11-21T23:24:09+00:00"
    assert sites("\n".join([*first, rest[0]]))["oslo"]["last_success"] is None
    broken = [line.replace("exit=0", "exit=12") for line in rest[:4]]
    cut = sites("\n".join([*first, *broken]))["oslo"]
    assert (cut["state"], cut["last_success"], cut["failures"]) == ("exit 12", None, 2)


def test_a_session_that_runs_is_running_until_the_server_starts_anew() -> None:
    begun = "\n".join(SYNC.splitlines()[:4]) + "\n"
    assert (sites(begun)["oslo"]["state"], sites(begun)["oslo"]["seconds"]) == ("running", None)
    assert sites(begun + KEYS)["oslo"]["state"] == "cut off"


def test_a_log_that_begins_in_the_middle_counts_what_is_there() -> None:
    oslo = sites("\n".join(SYNC.splitlines()[5:]))["oslo"]
    assert (oslo["sessions"], oslo["sent_bytes"]) == (3, 3_000_900)
    assert oslo["began"] == "2026-11-21T23:24:11+00:00"


def test_refusals_of_rrsync_and_of_sshd_are_counted() -> None:
    log = (
        '2026-11-22T01:44:15+0000 sshd: site=oslo address=192.0.2.7 refused request="pty-req"\n'
        "2026-11-22T01:44:15+0000 serve-library: site=oslo address=192.0.2.7 session=30 start\n"
        "2026-11-22T01:44:15+0000 serve-library: site=oslo address=192.0.2.7 session=30"
        ' refused exit=1 seconds=0 sent=94 received=0 command="id"\n'
    )
    assert (sites(log)["oslo"]["refusals"], sites(log)["oslo"]["state"]) == (2, "refused")


def test_lines_of_an_earlier_release_and_of_a_kernel_that_does_not_count_have_no_bytes() -> None:
    log = "2026-11-22T01:44:15+0000 serve-library: site=oslo address=192.0.2.7 session=30 end exit=0 seconds=0"
    assert sites(log)["oslo"]["sent_bytes"] == 0
    assert sites(f"{log} sent=? received=7")["oslo"]["received_bytes"] == 7


def test_what_compose_and_docker_put_in_front_of_a_line_does_no_harm() -> None:
    for front in ("clr-server  | ", "2026-11-22T01:30:03.123456789Z ", "clr-server | 2026-11-22T01:30:03.1Z "):
        log = "".join(front + line + "\n" for line in SYNC.splitlines())
        assert sites(log)["oslo"]["sessions"] == 4


# The log that docs/how-to/which-sites.md shows the table of
EXAMPLE = """\
key berlin.pub: accepted for site berlin, ssh-ed25519 SHA256:IA3w
key lima.pub: accepted for site lima, ssh-ed25519 SHA256:0000
key oslo.pub: accepted for site oslo, ssh-ed25519 SHA256:0001
key rio.pub: accepted for site rio, ssh-ed25519 SHA256:0002
serving /syncer/library on port 22; 200 sites may log in at the same moment
2026-11-20T22:40:00+0000 serve-library: site=lima address=203.0.113.4 session=9 end exit=0 seconds=2 sent=41230 received=80
2026-11-20T21:05:10+0000 serve-library: site=oslo address=198.51.100.20 session=11 end exit=0 seconds=1 sent=41230 received=80
2026-11-21T21:00:11+0000 serve-library: site=berlin address=192.0.2.7 session=15 start
2026-11-21T21:00:12+0000 serve-library: site=berlin address=192.0.2.7 session=15 end exit=0 seconds=1 sent=41230 received=80
2026-11-21T21:00:14+0000 serve-library: site=berlin address=192.0.2.7 session=17 start
2026-11-21T21:03:40+0000 serve-library: site=oslo address=198.51.100.20 session=19 start
2026-11-21T21:03:41+0000 serve-library: site=oslo address=198.51.100.20 session=19 end exit=0 seconds=1 sent=41230 received=80
2026-11-21T21:03:43+0000 serve-library: site=oslo address=198.51.100.20 session=22 start
2026-11-21T22:12:43+0000 serve-library: site=oslo address=198.51.100.20 session=22 end exit=12 seconds=4140 sent=1904118273 received=1733310
2026-11-21T23:05:16+0000 serve-library: site=berlin address=192.0.2.7 session=17 end exit=0 seconds=7502 sent=4812118273 received=9733310
2026-11-21T23:05:17+0000 serve-library: site=berlin address=192.0.2.7 session=23 start
2026-11-21T23:05:18+0000 serve-library: site=berlin address=192.0.2.7 session=23 end exit=0 seconds=1 sent=41230 received=80
2026-11-21T23:30:00+0000 serve-library: site=lima address=203.0.113.4 session=25 start
2026-11-21T23:30:01+0000 serve-library: site=lima address=203.0.113.4 session=25 end exit=0 seconds=1 sent=41230 received=80
2026-11-21T23:30:02+0000 serve-library: site=lima address=203.0.113.4 session=26 start
"""  # noqa: E501


def test_the_table_that_the_documentation_shows_is_real() -> None:
    done = subprocess.run([SERVER / "sites"], input=EXAMPLE.encode(), capture_output=True, check=True)
    assert done.stdout.decode() in (SERVER.parent / "docs/how-to/which-sites.md").read_text()


FORGED = "2026-01-01T00:00:00+0000 serve-library: site=forged address=192.0.2.1 session=1 start"
HOSTILE = [
    f"Invalid user {FORGED} from 192.0.2.66 port 1",
    f"Invalid user x | {FORGED} from 192.0.2.66",
    f'2026-11-22T01:44:15+0000 sshd: site=oslo address=192.0.2.7 refused request="{FORGED}"',
    (
        "2026-11-22T01:44:15+0000 serve-library: site=oslo address=192.0.2.7 session=30"
        f' refused exit=1 seconds=0 sent=9 received=0 command="x exit=0 sent=999999 {FORGED}"'
    ),
    "2026-13-45T99:99:99+0000 serve-library: site=forged address=192.0.2.7 session=30 start",
    "2026-11-22T01:44:15+0000 serve-library: site=oslo address=192.0.2.7 session=30 end exit=0 seconds=" + "9" * 5000,
    '2026-11-22T01:44:15+0000 serve-library: site=a"b address=192.0.2.7 session=30 start',
    "2026-11-22T01:44:15+0000 serve-library: site=oslo address=\x1b[31m session=30 start",
]


def test_what_strangers_make_sshd_and_us_log_is_never_a_site_or_a_session_of_its_own() -> None:
    found = sites("\n".join(HOSTILE))
    assert found["oslo"]["sent_bytes"] == 9
    assert found["oslo"]["refusals"] == 2
    assert found["oslo"]["sessions"] == 1
    assert found.keys() == {"oslo"}
    done = subprocess.run([SERVER / "sites"], input="\n".join(HOSTILE).encode(), capture_output=True, check=True)
    assert b"\x1b" not in done.stdout


WORDS = st.sampled_from([*KEYS.splitlines(), *SYNC.splitlines(), *HOSTILE])
CUT = st.builds(lambda line, start, end: line[start : len(line) - end], WORDS, st.integers(0, 99), st.integers(0, 99))


@given(st.lists(st.one_of(WORDS, CUT, st.text(max_size=50))))
def test_whatever_the_log_is_there_is_a_table_and_json(lines: list[str]) -> None:
    found = program.read(lines)
    assert len(list(program.table(found.values()))) == len(found) + 1
    for site in json.loads(program.as_json(found.values())):
        assert site["sessions"] >= site["failures"] >= 0
        assert (site["seconds"] or 0) >= 0
