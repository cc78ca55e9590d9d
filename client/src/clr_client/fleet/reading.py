"""Reading the status of many sites at once. What they answer is data, whatever it is."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import responses
from typing import TYPE_CHECKING, Any, Final

from clr_client.errors import ProbeError
from clr_client.text import span
from clr_client.vcsp.reader import Reader
from clr_client.vcsp.rules import Findings, read_json, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clr_client.fleet.sites import Site
    from clr_client.vcsp.reader import Answer

AT_ONCE: Final = 128
MOST_BYTES: Final = 16 << 20
"""Of one status. The largest one of a site with thirty thousand items has half of it."""
MOST_AHEAD: Final = 10 * 365 * 86400.0
UNREACHABLE, UNREADABLE = "unreachable", "unreadable"

_parsing = threading.Lock()
"""Documents become many times their size when they are parsed, so that is done one at a time."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a site answered: its status as parsed JSON, or why there is none.

    ``failure`` is UNREACHABLE or UNREADABLE, and ``reason`` says more; both are empty when there is a document.
    ``ahead`` is how many seconds the site's clock is before ours, by the answer's Date; ``unverified`` why its
    certificate is not to be trusted, if it is not.
    """

    site: Site
    document: Any = None
    failure: str = ""
    reason: str = ""
    ahead: float = 0.0
    unverified: str = ""


class Fleet:
    """Sites that are read again and again. A site that does not end its answer is not asked again until it did."""

    def __init__(self, sites: Iterable[Site], timeout: float) -> None:
        """``timeout`` is in seconds, for all of a site's answer."""
        self._sites = tuple(sites)
        self._timeout = timeout
        self._busy: set[str] = set()
        self._guard = threading.Lock()

    def read(self) -> tuple[Reading, ...]:
        """Read all sites at once, in their order. Takes little longer than the timeout for each ``AT_ONCE`` of them."""
        waiting: queue.SimpleQueue[Site] = queue.SimpleQueue()
        found: queue.SimpleQueue[Reading] = queue.SimpleQueue()
        answered: dict[str, Reading] = {}
        for site in self._sites:
            if site.name not in self._busy:
                waiting.put(site)
        asked = waiting.qsize()
        rounds = math.ceil(asked / AT_ONCE)
        for _ in range(min(AT_ONCE, asked)):
            # daemons: nobody can call back a thread that waits for a name server
            threading.Thread(target=self._work, args=(waiting, found), daemon=True).start()
        until = time.monotonic() + rounds * (self._timeout + 0.2)
        while len(answered) < asked and (left := until - time.monotonic()) > 0:
            try:
                reading = found.get(timeout=left)
            except queue.Empty:
                break
            answered[reading.site.name] = reading
        with contextlib.suppress(queue.Empty):
            while True:  # nobody is to begin with these now
                waiting.get_nowait()
        late = f"did not end its answer within {span(self._timeout)}"
        return tuple(answered.get(site.name) or Reading(site, None, UNREACHABLE, late) for site in self._sites)

    def _work(self, waiting: queue.SimpleQueue[Site], found: queue.SimpleQueue[Reading]) -> None:
        while True:
            try:
                site = waiting.get_nowait()
            except queue.Empty:
                return
            with self._guard:
                self._busy.add(site.name)
            try:
                found.put(read(site, self._timeout))
            finally:
                with self._guard:
                    self._busy.discard(site.name)


def read(site: Site, timeout: float) -> Reading:
    """Read one site's status. Never raises for what a site may do."""
    try:
        with Reader(
            site.url,
            password=site.password,
            ca_file=site.ca_file,
            thumbprint=site.pin,
            timeout=timeout,
            follow_elsewhere=False,
        ) as reader:
            headers = {"Accept-Encoding": "identity", "User-Agent": "clr-fleet"}
            answer, body = reader.fetch(site.status_url, headers=headers, limit=MOST_BYTES, seconds=timeout)
            ahead = _ahead(answer)
            unverified = reader.unverified or ""
    except ProbeError as error:
        return _unread(site, error, timeout)
    except Exception as error:  # noqa: BLE001 - whatever a site does, the others are shown
        return Reading(site, None, UNREADABLE, shown(repr(error)))
    reason, document = _understood(answer, body, has_password=site.password is not None)
    return Reading(site, document, UNREADABLE if reason else "", reason, ahead, unverified)


def _unread(site: Site, error: ProbeError, timeout: float) -> Reading:
    """The reading of a site without an answer, with the reason as short as it fits into a table."""
    if error.probe == "TIMED_OUT":
        return Reading(site, None, UNREACHABLE, f"did not answer within {span(timeout)}")
    reason = error.message.removeprefix(f"{shown(site.status_url)} ")
    is_silent = isinstance(error.__cause__, OSError) and error.probe != "CERTIFICATE_ERROR"
    if is_silent:
        reason = reason.removeprefix("cannot be read: ").strip("'")
    return Reading(site, None, UNREACHABLE if is_silent else UNREADABLE, reason)


def _understood(answer: Answer, body: bytes, *, has_password: bool) -> tuple[str, Any]:
    """Why there is no document in an answer, or the document."""
    if answer.status in (401, 403):
        return "refuses the password" if has_password else "asks for a password: name a password-file", None
    if answer.status == 404:
        return "has no status: it is none of ours, or older than this program", None
    if answer.status != 200:
        return f"answers {answer.status} {responses.get(answer.status, '')}".rstrip(), None
    if answer.encoding:
        return f"sends its status compressed ({shown(answer.encoding)})", None
    if answer.length is not None and answer.length != len(body):
        return "broke off in the middle of its status", None
    findings = Findings()
    try:
        with _parsing:
            document = read_json(body, "status.json", findings)
    except (MemoryError, RecursionError):
        return "sends what cannot be read", None
    if document is None:
        return f"its status {findings.problems[0].text}"[:200], None
    return "", document


def _ahead(answer: Answer) -> float:
    """Seconds that the site's clock is before ours; 0.0 when it does not tell."""
    try:
        there = parsedate_to_datetime(answer.headers["date"])
        ahead = (there - datetime.now(UTC)).total_seconds() if there.tzinfo else 0.0
        return max(-MOST_AHEAD, min(MOST_AHEAD, ahead))
    except (KeyError, ValueError, TypeError, OverflowError, IndexError):
        return 0.0
