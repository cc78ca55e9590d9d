"""The command line: help, exit codes, what goes where, and that nothing from elsewhere reaches the terminal raw."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from clr_client import __version__, cli
from clr_client.content.items import SourceItem
from clr_client.errors import TransportError
from clr_client.files import FileInfo
from clr_client.plan import Action, ItemPlan, Plan
from clr_client.reporting import status as statuses
from clr_client.reporting.status import Held, Report
from clr_client.store import Store
from support.templates import fake_template, replace
from support.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COMMANDS = [
    "check",
    "doctor",
    "fleet",
    "healthcheck",
    "notify",
    "plan",
    "publish",
    "repack",
    "rollback",
    "run",
    "schedule",
    "status",
    "sync",
    "verify",
    "version",
]
EVIL = "a\nfake\x1b[2J\x07\x9b\u202e"
RAW = set("\x1b\x07\x9b\u202e")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {"CLR_LIBRARY_DIR": str(tmp_path / "library"), "SYNC_PEER": "127.0.0.1:1", "SYNC_RETRIES": "0"}


def process(*arguments: str, env: Mapping[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run `clr` as a process, its standard output and error apart."""
    return subprocess.run(
        [sys.executable, "-m", "clr_client", *arguments],
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def clr(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run `clr` in this process, so that a test can put something in the place of a sync."""
    for name in [name for name in os.environ if name.startswith(("SYNC_", "LIBRARY_", "TLS_", "CLR_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(cli.logs, "configure", lambda *_, **__: None)

    def invoke(*arguments: str, **changes: str) -> Result:
        return CliRunner(env={**environment, **changes}).invoke(cli.main, arguments)

    return invoke


def put_status(environment: Mapping[str, str], *reports: Report) -> None:
    status = statuses.Status()
    for report in reports:
        library = {"name": EVIL, "id": "x", "version": 7, "generation": 4, "items": 2, "bytes": 5_000_000}
        status = status.after(report, library)
    store = Store(Path(environment["CLR_LIBRARY_DIR"]))
    store.root.mkdir(parents=True, exist_ok=True)
    store.status.write_bytes(statuses.dump(status))


# ---------------------------------------------------------------- help and usage


def test_all_commands_are_there() -> None:
    assert sorted(cli.main.commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_says_what_it_does(clr: Any, command: str) -> None:
    for flag in ("--help", "-h"):
        result = clr(command, flag)
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: main {command}") or f" {command}" in result.output.splitlines()[0]
        assert len(result.output.splitlines()) > 3


def test_help_names_the_exit_codes(clr: Any) -> None:
    result = clr("--help")
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert (
        "0 done, 1 failed, 2 wrong usage, 3 wrong setting, 4 problems found, 5 another run is at work, 6 done in part"
        in text
    )
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\S", result.output, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["sync", "--nonsense"], ["publish"], ["publish", "/tmp"], ["check"], ["rollback", "x"],
        ["rollback", "0"], ["schedule", "--count", "0"], ["schedule", "--count", "x"],
        ["check", "u", "--password-file", "/missing"], ["check", "u", "--ca-file", "/missing"],
        ["publish", "/tmp", "--name", ""], ["publish", "/tmp", "--name", "x" * 81],
        ["publish", "/tmp", "--name", "a\x1bb"],
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_code_2_and_a_hint(clr: Any, arguments: list[str]) -> None:
    result = clr(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Error:" in result.stderr


def test_a_password_file_that_is_no_text_is_wrong_usage(clr: Any, tmp_path: Path) -> None:
    (tmp_path / "password").write_bytes(b"\xff\xfe")
    result = clr("check", "http://127.0.0.1:1/lib.json", "--password-file", str(tmp_path / "password"))
    assert result.exit_code == 2
    assert "--password-file" in result.stderr


@pytest.mark.parametrize("command", ["plan", "schedule", "status", "sync", "verify", "rollback", "run", "healthcheck"])
def test_a_wrong_setting_ends_every_command_that_reads_settings_with_code_3(clr: Any, command: str) -> None:
    result = clr(command, SYNC_PORT="x")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == "clr: SYNC_PORT='x' cannot be used; allowed: a whole number from 1 to 65535\n"


def test_a_misspelt_setting_is_warned_about_on_standard_error_and_harms_no_answer(clr: Any) -> None:
    result = clr("status", "--json", SYNC_SHEDULE="x")
    assert result.exit_code == 0
    assert "did you mean SYNC_SCHEDULE?" in result.stderr
    json.loads(result.stdout)


# ---------------------------------------------------------------- sync


def replace_sync(monkeypatch: pytest.MonkeyPatch, outcome: Report | Exception) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    async def synchronise(_settings: object, **options: Any) -> Report:
        calls.append(options)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("clr_client.sync.synchronise", synchronise)
    return calls


@pytest.mark.parametrize(("result", "code"), [("success", 0), ("partial", 6), ("paused", 0)])
def test_a_sync_tells_by_its_exit_code_whether_everything_was_published(
    clr: Any, monkeypatch: pytest.MonkeyPatch, result: str, code: int
) -> None:
    calls = replace_sync(monkeypatch, Report("hand", "2026-11-21T20:00:00+00:00", result=result))
    assert clr("sync").exit_code == code
    assert calls[0]["trigger"] == "hand"
    assert calls[0]["allow_deletes"] is False
    assert clr("sync", "--allow-deletes").exit_code == code
    assert calls[1]["allow_deletes"] is True


def test_a_failed_sync_ends_with_one_harmless_line_and_its_code(clr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_sync(monkeypatch, TransportError(f"the line {EVIL}", "Is it up?"))
    result = clr("sync")
    assert result.exit_code == 75
    assert result.stderr == "clr: the line a\\x0afake\\x1b[2J\\x07\\x9b\\u202e. Is it up?\n"


def test_a_defect_is_shown_as_one(clr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_sync(monkeypatch, ZeroDivisionError())
    assert isinstance(clr("sync").exception, ZeroDivisionError)


def test_an_unreachable_server_ends_a_sync_with_code_75_and_the_status_says_so(
    environment: dict[str, str], tmp_path: Path
) -> None:
    keys = tmp_path / "ssh"
    keys.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id_syncer"], check=True)
    env = {**environment, "CLR_KEYS_DIR": str(keys)}
    done = process("sync", env=env)
    assert done.returncode == 75
    assert done.stderr.startswith("clr: ")
    assert done.stderr.count("\n") == 1
    told = process("status", env=env)
    assert told.returncode == 0
    assert told.stdout.splitlines()[0].endswith(": failed")
    assert told.stdout.splitlines()[1] == "nothing published yet"
    assert " (hand) failed: " in told.stdout.splitlines()[2]


def test_a_second_sync_ends_with_code_5_and_says_since_when(environment: dict[str, str]) -> None:
    with Store(Path(environment["CLR_LIBRARY_DIR"])).locked("schedule"):
        done = process("sync", env=environment)
    assert done.returncode == 5
    assert re.fullmatch(r"clr: already running since 20\S+ \(schedule\)\n", done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_sync_at_once_frees_the_lock_and_is_told_in_the_status(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    script = (
        "import asyncio\n"
        "from clr_client import cli, sync\n"
        "async def hang(*_, **__):\n"
        "    print('hanging', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "sync._sync = hang\n"
        "cli.main(['sync'])\n"
    )
    env = {"PATH": os.environ["PATH"], **environment}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as sync:
        assert sync.stdout is not None
        assert sync.stdout.readline() == "hanging\n"
        sync.send_signal(number)
        _, errors = sync.communicate(timeout=30)
    assert sync.returncode == 128 + number
    assert "Traceback" not in errors
    store = Store(Path(environment["CLR_LIBRARY_DIR"]))
    with store.locked("next"):
        pass
    assert "stopped" in statuses.load(store.status).runs[0]["error"]


def test_a_progress_bar_is_drawn_on_a_terminal_only(environment: dict[str, str]) -> None:
    volume = Volume(Path(environment["CLR_LIBRARY_DIR"]))
    volume.put("a/disk.vmdk", b"x" * 3_000_000)
    volume.sync()
    done = process("verify", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all is as published\n", "")
    ours, theirs = pty.openpty()
    try:
        shown = subprocess.run(
            [sys.executable, "-m", "clr_client", "verify"],
            env={"PATH": os.environ["PATH"], "TERM": "xterm", **environment},
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=60,
            check=True,
        )
        drawn = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert shown.stdout == b"all is as published\n"
    assert "verifying" in drawn
    assert "100%" in drawn


# ---------------------------------------------------------------- plan


def replace_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceItem("web", (FileInfo("web/a", 5_000_000, 1),))
    plan = Plan(
        (
            ItemPlan(EVIL, Action.SKIP, None, note=EVIL),
            ItemPlan("gone", Action.REMOVE),
            ItemPlan("same", Action.KEEP, source),
            ItemPlan("web", Action.ADD, source, source.files),
        )
    )

    async def plan_only(_settings: object, _advance: object) -> Plan:
        return plan

    monkeypatch.setattr("clr_client.update.plan_only", plan_only)


def test_a_plan_for_people_leaves_out_what_stays(clr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_plan(monkeypatch)
    result = clr("plan")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[1:] == [
        "remove  gone",
        "add     web  1 files, 5.0 MB",
        "1 files of 5.0 MB to fetch; changed files cross the line as deltas",
    ]
    assert lines[0].startswith("skip    a\\x0afake\\x1b[2J")
    assert not RAW & set(result.stdout)


def test_a_plan_for_programs_has_a_schema(clr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_plan(monkeypatch)
    document = json.loads(clr("plan", "--json").stdout)
    assert {name: document[name] for name in ("schema", "bytes", "files")} == {
        "schema": 1,
        "bytes": 5_000_000,
        "files": 1,
    }
    assert document["items"][-1] == {"key": "web", "action": "add", "files": 1, "bytes": 5_000_000, "note": ""}
    assert [item["action"] for item in document["items"]] == ["skip", "remove", "keep", "add"]


# ---------------------------------------------------------------- status, schedule


def test_status_without_and_with_runs(clr: Any, environment: dict[str, str]) -> None:
    result = clr("status")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1] == "nothing published yet"
    run = Report("schedule", "2026-11-21T20:00:00+00:00", held=(Held(EVIL, EVIL, 3),), version=7, result="partial")
    put_status(environment, run, dataclasses.replace(run, result="failed", error=EVIL, version=None))
    text = clr("status").stdout
    assert "held: a\\x0afake\\x1b[2J" in text
    assert "(version 3 stays published)" in text
    assert " failed: a\\x0afake" in text
    assert "next: " in text
    assert not RAW & set(text)


def test_status_names_the_generations_that_can_be_rolled_back_to(clr: Any, environment: dict[str, str]) -> None:
    volume = Volume(Path(environment["CLR_LIBRARY_DIR"]))
    for number in range(3):
        volume.put("a/disk", b"x" * number)
        volume.sync()
    assert "generations kept: 1, 2, 3" in clr("status").stdout.splitlines()


def test_status_for_programs_is_the_document_about_the_site_also_before_the_first_run(
    clr: Any, environment: dict[str, str]
) -> None:
    empty = json.loads(clr("status", "--json", SITE_NAME="berlin").stdout)
    assert (empty["schema"], empty["site"], empty["state"], empty["published"]) == (1, "berlin", "never", False)
    assert (empty["library"], empty["items"], empty["runs"], empty["held"]) == ({}, [], [], [])
    put_status(environment, Report("hand", "2026-11-21T20:00:00+00:00", version=1, added=("a",)))
    document = json.loads(clr("status", "--json").stdout)
    assert document["state"] == "success"
    assert document["runs"][0]["added"] == ["a"]
    fields = {field.name for field in dataclasses.fields(Report)}
    assert document["runs"][0].keys() == fields | {"summary", "saved_bytes"}
    assert document["totals"]["runs"]["success"] == 1


def test_a_damaged_status_file_leaves_standard_output_to_the_answer(environment: dict[str, str]) -> None:
    root = Path(environment["CLR_LIBRARY_DIR"])
    root.mkdir()
    (root / "status.json").write_bytes(b"{")
    done = process("status", "--json", env=environment)
    assert done.returncode == 0
    json.loads(done.stdout)
    assert "history of runs starts anew" in done.stderr


def test_the_schedule_is_shown_in_local_time_with_the_zone_and_the_delay(clr: Any) -> None:
    result = clr(
        "schedule", TZ="Europe/Berlin", SYNC_SCHEDULE="30 4 * * *", SYNC_DELAY="true", SYNC_DELAY_MAX_SECONDS="90"
    )
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "30 4 * * * (Europe/Berlin)"
    assert len(lines) == 7
    for line in lines[1:6]:
        assert re.fullmatch(r"[A-Z][a-z]{2} \d{4}-\d\d-\d\d 04:30 CES?T", line)
    assert lines[6] == "each up to 90 s later (SYNC_DELAY)"
    assert len(clr("schedule", "--count", "2").stdout.splitlines()) == 3


# ---------------------------------------------------------------- publish, verify, rollback


def test_publishing_a_directory_says_what_was_done_and_held(clr: Any, tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    fake_template(folder / "web", disk_bytes=1000)
    (folder / "loose.ova").write_bytes(b"x")
    (folder / EVIL.replace("\n", "")).mkdir()
    (folder / EVIL.replace("\n", "") / "file").write_bytes(b"x")
    result = clr("publish", str(folder), "--name", "Golden")
    assert result.exit_code == 6
    assert result.stdout == "Golden: version 1, 2 items; manifests written\n"
    assert "held: afake\\x1b[2J" in result.stderr
    assert "warning: loose.ova: " in result.stderr
    assert not RAW & set(result.stdout + result.stderr)
    again = clr("publish", str(folder), "--name", "Golden")
    assert again.stdout == "Golden: version 1, 2 items; manifests unchanged\n"


def test_publishing_what_is_no_folder_fails(clr: Any, tmp_path: Path) -> None:
    result = clr("publish", str(tmp_path / "missing"), "--name", "x")
    assert result.exit_code == 1
    assert "is not a folder" in result.stderr


def test_publishing_twice_at_once_ends_with_code_5(clr: Any, tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert clr("publish", str(tmp_path), "--name", "x").exit_code == 5
    finally:
        os.close(handle)


def test_verify_ends_with_code_4_and_names_what_is_damaged_and_the_remedy(
    clr: Any, environment: dict[str, str]
) -> None:
    volume = Volume(Path(environment["CLR_LIBRARY_DIR"]))
    volume.put("a/disk.vmdk", b"good")
    item = volume.sync().items[0]
    good = clr("verify")
    assert (good.exit_code, good.stdout) == (0, "all is as published\n")
    (volume.store.tree(item) / "disk.vmdk").write_bytes(b"evil")
    result = clr("verify")
    assert result.exit_code == 4
    first, last = result.stdout.splitlines()
    assert first == f"items/{item.uuid}/1/disk.vmdk: is not what was published"
    assert last == "1 damaged; the next sync mends it, or at once: clr verify --repair"
    status = clr("status")
    assert f"damaged: items/{item.uuid}/1/disk.vmdk: is not what was published\n" in status.stdout
    assert re.search(r": 4 B read in \d+ s; 1 found damaged; 1 still damaged\n", status.stdout)


def test_verify_mends_what_the_mirror_has_sound_and_ends_with_code_4_only_for_the_rest(
    clr: Any, environment: dict[str, str]
) -> None:
    volume = Volume(Path(environment["CLR_LIBRARY_DIR"]))
    volume.put("a/disk.vmdk", b"good")
    volume.put("b/disk.vmdk", b"good")
    mended, lost = volume.sync().items
    replace(volume.store.tree(mended) / "disk.vmdk", b"evil")
    (volume.store.tree(lost) / "disk.vmdk").write_bytes(b"evil")
    away = {"SYNC_PEER": "127.0.0.1", "SYNC_PORT": "1", "SYNC_CONNECT_TIMEOUT": "5"}
    result = process("verify", "--repair", env={**environment, **away})
    assert result.returncode == 4
    assert f"mended: items/{mended.uuid}/1/disk.vmdk: is not what was published" in result.stdout
    assert f"damaged: items/{lost.uuid}/1/disk.vmdk: is not what was published; no connection" in result.stdout
    assert result.stdout.endswith("; 2 found damaged; 1 mended; 1 still damaged\n")
    volume.put("b/disk.vmdk", b"good")
    again = process("verify", "--repair", env=environment)
    assert again.returncode == 0
    assert again.stdout.endswith("; 1 found damaged; 1 mended\n")
    assert clr("verify").stdout == "all is as published\n"


def test_verify_of_nothing_fails(clr: Any) -> None:
    result = clr("verify")
    assert result.exit_code == 1
    assert "nothing was ever published" in result.stderr


def test_a_rollback_says_what_is_published_and_how_to_end_it(clr: Any, environment: dict[str, str]) -> None:
    volume = Volume(Path(environment["CLR_LIBRARY_DIR"]))
    for number in (1, 2):
        volume.put("a/disk", b"x" * number)
        volume.sync()
    result = clr("rollback")
    assert result.exit_code == 0
    assert result.stdout == "generation 3 is published; syncs are paused until: clr rollback --release\n"
    assert clr("rollback", "--release").stdout == "syncs publish again\n"
    assert clr("rollback", "--release").stdout == "nothing was rolled back; syncs publish already\n"
    refused = clr("rollback", "99")
    assert refused.exit_code == 1
    assert refused.stderr == "clr: there is no generation 99. Kept generations: 1, 2, 3\n"


# ---------------------------------------------------------------- check, version, pipes


def test_a_check_of_nothing_there_ends_with_code_4_and_vspheres_word_for_it(clr: Any) -> None:
    result = clr("check", "http://127.0.0.1:1/lib.json")
    assert result.exit_code == 4
    assert result.stdout.startswith("http://127.0.0.1:1/lib.json: ")
    assert "vSphere would refuse it" in result.stdout


def test_a_check_for_programs_says_whether_it_is_ok(clr: Any) -> None:
    document = json.loads(clr("check", "http://127.0.0.1:1/lib.json", "--json").stdout)
    assert (document["schema"], document["ok"]) == (1, False)
    assert document["problems"][0]["severity"] == "error"
    assert clr("check", "http://127.0.0.1:1/lib.json", "--thumbprint").stdout.startswith("no certificate")


def test_a_url_with_control_characters_never_reaches_the_terminal_raw(clr: Any) -> None:
    result = clr("check", "http://127.0.0.1:1/\x1b[2J/lib.json")
    assert result.exit_code == 4
    assert not RAW & set(result.stdout + result.stderr)


def test_the_version_names_every_program(clr: Any) -> None:
    result = clr("version")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["clr", "rsync", "ssh", "caddy"]
    assert result.stdout.splitlines()[0] == f"clr {__version__}"


def test_a_reader_that_stops_reading_gets_no_traceback(environment: dict[str, str]) -> None:
    script = "import time; time.sleep(1); from clr_client.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, "schedule", "--count", "100"],
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.close()
        reader.stdout = None
        _, errors = reader.communicate(timeout=60)
    assert "Traceback" not in errors
    assert "Exception" not in errors
    assert reader.returncode == 128 + signal.SIGPIPE


def test_healthcheck_names_the_reason(clr: Any, tmp_path: Path) -> None:
    result = clr("healthcheck", CLR_RUN_DIR=str(tmp_path / "run"))
    assert result.exit_code == 1
    assert "`clr run` is not running" in result.stdout


def test_run_without_a_server_ends_with_code_3(clr: Any) -> None:
    result = clr("run", SYNC_PEER="")
    assert result.exit_code == 3
    assert "SYNC_PEER is not set" in result.stderr


def test_a_cancelled_work_without_a_signal_is_a_defect() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        cli._finish(cancelled())


def test_starting_is_quick(environment: dict[str, str]) -> None:
    """The health check starts it every thirty seconds."""
    began = time.monotonic()
    assert process("version", "--help", env=environment).returncode == 0
    assert time.monotonic() - began < 5
