"""Messages and heartbeats for real: apprise, HTTP and SMTP, services that hang, and a site whose server goes away."""

from __future__ import annotations

import asyncio
import email
import email.policy
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clr_client.reporting import courier, delivery
from clr_client.reporting.messages import Event, Message, compose
from support.server import Server, free_port, wait_until
from support.sinks import Sink, mailbox, sink
from support.site import CLR, Site, cli_environment, running
from support.templates import envelope

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "s3cr3t"
EVIL = "a\nfake: line <b>bold</b> *stars* [x](http://evil.example) @everyone \x1b[2J"
MESSAGE = Message("berlin: sync failed", "first line\n- second line", "failure")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "tools.iso").write_bytes(b"tools" * 20_000)
    return folder


@pytest.fixture
def service() -> Iterator[Sink]:
    with sink() as made:
        yield made


def url(service: Sink) -> str:
    return f"json://127.0.0.1:{service.port}/{SECRET}"


def send(*urls: str, message: Message = MESSAGE) -> list[str]:
    return asyncio.run(delivery.send(urls, message))


def clr(site: Site, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CLR, command],
        env=cli_environment(site) | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_message_arrives_as_it_was_written(service: Sink) -> None:
    assert send(url(service), url(service)) == ["", ""]
    (message, again) = service.messages
    assert message == again
    assert (message["title"], message["message"], message["type"]) == (MESSAGE.subject, MESSAGE.body, "failure")
    assert message["attachments"] == []


def test_a_mail_is_text_that_no_name_can_turn_into_something_else() -> None:
    found = compose([Event("held", "items are held", (EVIL.split("\n")[0], "- <b>bold</b> &amp; *stars*"))], "berlin")
    with mailbox() as (mails, port):
        address = f"mailto://localhost:{port}?from=clr@example.com&to=admin@example.com,second@example.com"
        assert send(address, message=found) == [""]
        (mail, _) = (email.message_from_bytes(content, policy=email.policy.default) for content in mails.got)
    assert mail["Subject"] == "berlin: items are held"
    assert "admin@example.com" in mail["To"]
    text, html = mail.get_body(("plain", "html")), mail.get_body(("html",))
    assert text is not None
    assert "*stars*" in text.get_content()
    assert html is None or "<b>bold</b>" not in html.get_content()
    assert not list(mail.iter_attachments())


def test_what_a_service_did_not_take_is_said_without_a_word_of_its_own(service: Sink) -> None:
    service.status = 401
    gone = f"json://user:{SECRET}@127.0.0.1:{free_port()}/{SECRET}"
    unknown = f"foo://{SECRET}"
    assert send(url(service), gone, unknown) == ["the service answered 401", courier.NO_CONNECTION, courier.UNKNOWN]


def test_a_service_that_never_ends_its_answer_costs_a_limited_time_and_the_others_nothing(
    service: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.slow = True
    with sink() as other:
        started = time.monotonic()
        assert send(url(service), url(other)) == [delivery.TOO_LATE, ""]
        assert 10 <= time.monotonic() - started < 20
        assert other.subjects == [MESSAGE.subject]
        monkeypatch.setattr(courier, "LIMIT_SECONDS", 1)
        assert asyncio.run(delivery.ping(f"http://127.0.0.1:{service.port}/x", "", "")) == delivery.TOO_LATE


def test_a_heartbeat_goes_where_healthchecks_wants_it(service: Sink) -> None:
    address = f"http://127.0.0.1:{service.port}/ping/{SECRET}"
    for sign, body in (("start", ""), ("", "success: …"), ("fail", "failed: …")):
        assert asyncio.run(delivery.ping(address, sign, body)) == ""
    assert asyncio.run(delivery.ping(f"{address}/?create=1", "start", "")) == ""
    assert service.got == [
        (f"/ping/{SECRET}/start", b""),
        (f"/ping/{SECRET}", "success: …".encode()),
        (f"/ping/{SECRET}/fail", "failed: …".encode()),
        (f"/ping/{SECRET}/start?create=1", b""),
    ]
    service.status = 404
    assert asyncio.run(delivery.ping(address, "", "")) == "the service answered 404"
    assert asyncio.run(delivery.ping(f"http://127.0.0.1:{free_port()}/", "", "")) == courier.NO_CONNECTION


def test_without_apprise_there_is_a_warning_and_everything_else_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    assert send("json://127.0.0.1/x") == [courier.NO_APPRISE]
    warning = asyncio.run(delivery.check(["json://127.0.0.1/x"]))
    assert warning == "NOTIFY_URLS could not be looked at (apprise is not installed), so messages may not go out"


def test_an_address_that_cannot_be_ends_clr_run_with_code_3_its_number_and_scheme(tmp_path: Path) -> None:
    environment = {
        "SYNC_PEER": "127.0.0.1",
        "NOTIFY_URLS": f"json://127.0.0.1/{SECRET}, foo://{SECRET}",
        **{f"CLR_{name}_DIR": str(tmp_path / name) for name in ("LIBRARY", "KEYS", "DATA", "RUN")},
    }
    done = subprocess.run([CLR, "run"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "NOTIFY_URLS cannot be used: entry 2 (foo): apprise knows no such service" in done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_every_address_that_the_documentation_shows_is_one_that_apprise_understands() -> None:
    page = Path(__file__).parents[2] / "docs/how-to/messages.md"
    shown = re.findall(r"^\|[^|]+\| `([a-z]+://[^`]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) > 5
    assert asyncio.run(delivery.check(shown)) == ""


def test_clr_notify_says_of_each_service_whether_it_took_the_message(service: Sink, tmp_path: Path) -> None:
    secrets = tmp_path / "urls"
    secrets.write_text(f"{url(service)}\njson://127.0.0.1:{free_port()}/{SECRET}\n")
    environment = {"NOTIFY_URLS_FILE": str(secrets), "SITE_NAME": "berlin", "LOG_LEVEL": "debug"}
    done = subprocess.run([CLR, "notify"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == "1 (json): sent\n2 (json): no connection\n"
    assert done.stderr == ""
    assert service.subjects == ["berlin: a message for a try"]


def test_a_site_tells_each_event_once_and_beats_at_each_run(library: Path, tmp_path: Path, service: Sink) -> None:
    with sink() as monitor:
        beats = f"/ping/{SECRET}"
        environment = {
            "HTTP_PORT": str(free_port()),
            "SITE_NAME": "berlin",
            "LOG_LEVEL": "debug",
            "NOTIFY_URLS": f"{url(service)} json://127.0.0.1:{free_port()}/{SECRET}",
            "HEARTBEAT_URL": f"http://127.0.0.1:{monitor.port}{beats}",
        }
        with Server(library, tmp_path / "server") as server:
            site = Site(tmp_path / "site", server, **environment)
            with running(site):
                wait_until(lambda: service.subjects, 60, "the first message")
                wait_until(lambda: monitor.paths[-1:] == [beats], 60, "the first success")
                assert monitor.paths[:-1] in ([], [f"{beats}/start"])
                assert b"success: 1 added" in monitor.got[-1][1]
                server.stop()
                for number in (1, 2):  # by other processes, twice
                    assert clr(site, "sync").returncode == 75
                    wait_until(lambda n=number: monitor.paths.count(f"{beats}/fail") == n, 60, "a failure")  # type: ignore[misc]
                wait_until(lambda: len(service.subjects) == 2, 60, "the second message")
        with running(site):  # a restart, whose first sync fails too
            wait_until(lambda: monitor.paths.count(f"{beats}/fail") == 3, 60, "the third failure")
            with Server(library, tmp_path / "server", port=server.port):
                assert clr(site, "sync").returncode == 0
                wait_until(lambda: len(service.subjects) == 3, 60, "the third message")
                (library / "Jump host").mkdir()
                (library / "Jump host" / "jump.ovf").write_bytes(envelope("jump", {"disk.vmdk": 1000}))
                for number in (3, 4):
                    assert clr(site, "sync").returncode == 6
                    wait_until(lambda n=number: monitor.paths.count(beats) == n, 60, "a success")  # type: ignore[misc]
                wait_until(lambda: len(service.subjects) == 4, 60, "the fourth message")
        log = (site.home / "run.log").read_text()
    failure = service.subjects[1]
    assert failure.startswith("berlin: sync failed: no connection to 127.0.0.1:")
    assert service.subjects == [
        "berlin: first sync succeeded", failure, "berlin: syncs work again", "berlin: Jump host is held",
    ]  # fmt: skip
    assert "- Jump host: disk.vmdk is referenced but not there" in service.messages[3]["message"]
    signs = [path.removeprefix(beats) for path in monitor.paths]
    assert [sign for sign in signs if sign != "/start"] == ["", "/fail", "/fail", "/fail", "", "", ""]
    assert ("/start", "/start") not in pairwise(signs), "each start is followed by a result"
    assert "told json: berlin: first sync succeeded" in log
    assert "entry 2 (json) of NOTIFY_URLS took no message: no connection; trying again in 1 min 0 s" in log
    assert SECRET not in log
    assert "Traceback" not in log
