"""Sends what it is given, in a process of its own: whatever a service does, it ends after ten seconds, and all of it.

It takes an order as JSON on standard input and answers a line of JSON for each target as soon as that is done. What
apprise and its services say may hold addresses and tokens, so nothing of it is passed on but an HTTP status.
It imports nothing of this package.
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import re
import signal
import sys
import threading
import urllib.error
import urllib.request
from typing import Any

LIMIT_SECONDS = 10
NO_APPRISE = "apprise is not installed"
UNKNOWN = "apprise knows no such service, or an essential part is missing"
NO_CONNECTION = "no connection"

_said: contextvars.ContextVar[list[str]] = contextvars.ContextVar("said")


class _Hear(logging.Handler):
    """Keeps what is logged on behalf of one target."""

    def emit(self, record: logging.LogRecord) -> None:
        said = _said.get(None)
        if said is not None:
            said.append(record.getMessage())


def _open(url: str) -> Any:  # noqa: ANN401 - apprise has types in some releases only
    import apprise

    asset = apprise.AppriseAsset(
        app_id="Content Library Rsync",
        app_desc="Content Library Rsync",
        async_mode=False,
        interpret_emojis=False,
        interpret_escapes=False,
        storage_mode=apprise.PersistentStoreMode.MEMORY,
    )
    service = apprise.Apprise(asset=asset)
    return service if service.add(url) else None


def check(url: str) -> str:
    """Return what is wrong with a URL of apprise; empty when nothing is."""
    return UNKNOWN if _open(url) is None else ""


def send(url: str, order: dict[str, Any]) -> str:
    """Send a message to one service. Returns why that failed; empty when it did not."""
    import apprise

    service = _open(url)
    if service is None:
        return UNKNOWN
    said: list[str] = []
    _said.set(said)
    if service.notify(
        body=order["body"], title=order["subject"], notify_type=order["tone"], body_format=apprise.NotifyFormat.TEXT
    ):
        return ""
    return _reason(said)


def _reason(said: list[str]) -> str:
    text = "\n".join(said)
    if answered := re.search(r"error=(\d{3})\b", text):
        return f"the service answered {answered[1]}"
    return NO_CONNECTION if "onnection error" in text else "the service did not take it"


def ping(url: str, order: dict[str, Any]) -> str:
    """POST a text to a URL. Returns why that failed; empty when it did not."""
    if not url.startswith(("http://", "https://")):
        return UNKNOWN
    headers = {"Content-Type": "text/plain; charset=utf-8", "User-Agent": "content-library-rsync"}
    request = urllib.request.Request(url, order["body"].encode(), headers, method="POST")  # noqa: S310 - see above
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_SECONDS):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"the service answered {error.code}"
    except OSError:
        return NO_CONNECTION


def main() -> None:
    """Carry out the order: ``do`` (send, check or ping) for each of ``urls``."""
    signal.alarm(LIMIT_SECONDS + 2)  # should whoever started this be gone
    order = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
    logging.basicConfig(level=logging.WARNING, handlers=[_Hear()])

    def work(number: int, url: str) -> None:
        try:
            done = {"check": lambda: check(url), "send": lambda: send(url, order), "ping": lambda: ping(url, order)}
            reason = done[order["do"]]()
        except ImportError:
            reason = NO_APPRISE
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, and its text may hold the URL
            reason = f"it could not be sent ({type(error).__name__})"
        answers.write(json.dumps([number, reason]) + "\n")
        answers.flush()

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in enumerate(order["urls"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)  # threads of plug-ins may hang


if __name__ == "__main__":
    main()
