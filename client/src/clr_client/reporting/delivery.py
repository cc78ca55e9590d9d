"""Handing messages and heartbeats to a process that sends them: ten seconds at most, and nothing said of addresses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from clr_client.errors import SettingsError, Trouble
from clr_client.reporting import courier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clr_client.reporting.messages import Message

NO_SUCH_SERVICE = Trouble(
    "NOTIFY_URLS cannot be used: entry {entry}: {reason}",
    "The form of each service's URL: https://appriseit.com/services/",
)
NOT_LOOKED_AT = Trouble(
    "NOTIFY_URLS could not be looked at ({reason}), so messages may not go out", "Install apprise; the image has it"
)
TOO_LATE = f"no answer within {courier.LIMIT_SECONDS} s"
PASSED_ON = re.compile(r"(?i)PATH|HOME|LANG|TZ|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|(https?|all|no)_proxy")
"""The variables that the process gets: where proxies and certificates are, and no setting of ours."""


async def send(urls: Sequence[str], message: Message) -> list[str]:
    """Send a message to services by their URLs. Returns for each why that failed; empty when it did not."""
    order = {"subject": message.subject, "body": message.body, "tone": message.tone}
    return await _deliver({"do": "send", "urls": list(urls), **order})


async def ping(url: str, sign: str, body: str) -> str:
    """Tell a monitor how a run goes, as healthchecks.io wants it. Returns why that failed; empty when it did not.

    :param sign: start, fail, or nothing for a success: added to the URL's path.
    """
    parts = urlsplit(url)
    path = f"{parts.path.rstrip('/')}/{sign}" if sign else parts.path
    return (await _deliver({"do": "ping", "urls": [urlunsplit(parts._replace(path=path))], "body": body}))[0]


async def check(urls: Sequence[str]) -> str:
    """Have apprise look at the URLs. Returns a warning if it could not; empty when all is well.

    :raises SettingsError: the first URL that it cannot use: its number and scheme.
    """
    if not urls:
        return ""
    reasons = await _deliver({"do": "check", "urls": list(urls)})
    for number, (url, reason) in enumerate(zip(urls, reasons, strict=True)):
        if reason == courier.UNKNOWN:
            raise SettingsError(*NO_SUCH_SERVICE.told(entry=named(number, url), reason=reason))
    problem = next(filter(None, reasons), "")
    return NOT_LOOKED_AT.told(reason=problem)[0] if problem else ""


def named(number: int, url: str) -> str:
    """Return what may be shown of a URL: its number, counted from 1, and its scheme."""
    return f"{number + 1} ({scheme(url)})"


def scheme(url: str) -> str:
    """Return a URL's scheme."""
    return url.partition("://")[0].lower()[:32]


async def _deliver(order: dict[str, Any]) -> list[str]:
    reasons = [TOO_LATE] * len(order["urls"])
    environment = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-IB", courier.__file__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            cwd="/",
        )
    except OSError as error:
        return [f"no process could be started: {error.strerror}"] * len(reasons)
    assert process.stdin is not None  # noqa: S101 - asyncio's promise
    assert process.stdout is not None  # noqa: S101
    try:
        async with asyncio.timeout(courier.LIMIT_SECONDS):
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
            async for line in process.stdout:
                number, reason = json.loads(line)
                reasons[number] = reason
            if await process.wait():
                reasons = [reason if reason != TOO_LATE else "sending ended in a defect" for reason in reasons]
    except (TimeoutError, OSError):
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return reasons
