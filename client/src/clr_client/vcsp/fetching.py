"""From a URL to the library and items that its documents describe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from clr_client.vcsp.reader import folder_of, not_ready, refusal
from clr_client.vcsp.rules import read_items, read_library, shown

if TYPE_CHECKING:
    from clr_client.vcsp.reader import Answer, Reader
    from clr_client.vcsp.rules import Findings, RemoteItem, RemoteLibrary

_POLL_SECONDS: Final = 2.0


def fetch_library(
    reader: Reader, url: str, findings: Findings, *, wait: float = 0.0
) -> tuple[str, RemoteLibrary | None]:
    """The final URL of a library and what its lib.json says (None: nothing usable, see ``findings``).

    Raises ProbeError when there is no answer, or another one than 200.
    """
    until = time.monotonic() + wait
    while True:
        answer, body = reader.fetch(url)
        preparing = not_ready(answer, body)
        if preparing is None:
            break
        if preparing.progress is None or time.monotonic() >= until:
            raise preparing
        time.sleep(min(_POLL_SECONDS, max(0.0, until - time.monotonic())))
    error = refusal(answer)
    if error is not None:
        if error.probe == "RESOURCE_NOT_FOUND" and not answer.url.endswith("/lib.json"):
            error.remedy = "The URL of a library ends in /lib.json"
        raise error
    if answer.url != url:
        findings.warning(url, f"redirects; subscribe to {shown(answer.url)}")
    if not answer.url.partition("?")[0].endswith("/lib.json"):
        findings.error(url, "does not end in /lib.json: vSphere is unable to access such a URL (KB 376563)")
    body = plain_json(reader, answer, body, "lib.json", findings)
    return answer.url, read_library(body, findings)


def fetch_items(reader: Reader, url: str, library: RemoteLibrary, findings: Findings) -> tuple[RemoteItem, ...]:
    """The items of a library. Raises ProbeError when there is no answer, or another one than 200."""
    answer, body = reader.fetch(folder_of(url) + library.items_href)
    error = refusal(answer)
    if error is not None:
        raise error
    body = plain_json(reader, answer, body, "items.json", findings)
    return read_items(body, library, findings)


def plain_json(reader: Reader, answer: Answer, body: bytes, where: str, findings: Findings) -> bytes:
    """``body``, the body of ``answer``, without compression, which only some readers undo."""
    if not answer.encoding:
        return body
    findings.warning(where, f"is sent compressed ({shown(answer.encoding)}) to readers that allow it")
    again, body = reader.fetch(answer.url, headers={"Accept-Encoding": "identity"})
    if again.encoding:
        findings.error(where, "is sent compressed also to readers that do not allow it")
    return body
