"""Every error a person can meet: what happened, what to do about it, and the exit code that scripts see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that can go wrong, in the words that errors, `clr doctor` and the documentation share.

    ``text`` says what happened, ``remedy`` what to do. ``{names}`` in them stand for what only the moment knows.
    """

    text: str
    remedy: str = ""

    def told(self, **known: object) -> tuple[str, str]:
        """Return text and remedy, complete; what an error is made from."""
        return self.text.format(**known), self.remedy.format(**known)


class ClrError(Exception):
    """Base of all expected failures.

    ``message`` says what happened and why, ``remedy`` what to do (may be empty). ``exit_code`` is stable:
    1 failure, 3 settings, 4 verification found problems, 5 another run holds the lock, 6 partial, 75 try again later.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.facts: dict[str, Any] = {}
        """What a log line as JSON says beside the text: a failed run in numbers."""

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


class SettingsError(ClrError):
    """A setting has a value that cannot be used: names the variable, its value and what is allowed."""

    exit_code = 3


class LockedError(ClrError):
    """Another run works on the same library."""

    exit_code = 5


class GuardError(ClrError):
    """A run was refused before anything was touched, because it looked like a disaster at the source."""


class StoreError(ClrError):
    """The library volume cannot be used as it is: not writable, full, or holds something foreign."""


class ManifestError(ClrError):
    """Manifests or state on disk cannot be read as what they should be."""


class TransportError(ClrError):
    """rsync or ssh failed. ``retryable`` tells whether the same thing may succeed in a minute."""

    exit_code = 75

    def __init__(self, message: str, remedy: str = "", *, retryable: bool = True) -> None:
        super().__init__(message, remedy)
        self.retryable = retryable


class HostKeyError(TransportError):
    """The server's host key is not the pinned or remembered one; never retried."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy, retryable=False)


class WebServerError(ClrError):
    """Caddy cannot serve: bad certificate, busy port, or it died and stays dead."""


class SubscriberError(ClrError):
    """A library is not what a strict subscriber accepts."""

    exit_code = 4


class ProbeError(SubscriberError):
    """A URL does not lead to a library.

    ``probe`` is the result that vSphere names for it. ``progress`` (per cent) is set while the server says that it
    is still preparing its first library.
    """

    def __init__(self, probe: str, message: str, remedy: str = "", *, progress: int | None = None) -> None:
        super().__init__(message, remedy)
        self.probe = probe
        self.progress = progress


class SitesError(ClrError):
    """The file that names the sites of a fleet cannot be read or understood."""

    exit_code = 3


class HeldError(ClrError):
    """One item cannot be published as it is; its last good version stays. The message is the reason shown."""


class TreeError(HeldError):
    """The files of the item ``key`` turned out bad while its tree was built."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class RepackError(ClrError):
    """A template or one of its disks cannot be rewritten; it stays as it is."""
