"""Every environment variable, once: its name, type, default and meaning.

``load`` turns an environment into ``Settings``; the reference page in ``docs/reference/settings.md`` is generated from
the same table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from clr_client.errors import SettingsError, Trouble
from clr_client.values import (
    AnyOf,
    Bandwidth,
    BlockSize,
    Cron,
    CronOrNever,
    DeleteLimit,
    Duration,
    Folder,
    HostKeys,
    HostName,
    Label,
    Limit,
    OneOf,
    Password,
    Patience,
    Peer,
    Peers,
    Services,
    Text,
    Truth,
    WebAddress,
    Whole,
    Words,
    Zone,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from datetime import timedelta
    from zoneinfo import ZoneInfo

    from clr_client import rates, schedule


def _setting(type_: Text, default: str, text: str, *, group: str, secret: bool = False) -> Any:  # noqa: ANN401
    """Declare one variable: the field's name in capitals is the variable's."""
    metadata = {"type": type_, "default": default, "help": text, "group": group, "secret": secret}
    return dataclasses.field(metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The client's settings, validated. Durations are timedeltas; see each field's help for its meaning."""

    tz: ZoneInfo = _setting(
        Zone(),
        "UTC",
        "Time zone of the schedule and of log lines. Manifests are always in UTC.",
        group="Sync",
    )
    sync_peer: tuple[tuple[str, int | None], ...] = _setting(
        Peers(),
        "",
        "The server, or several, tried in this order. Names, IPv4 or IPv6 addresses.",
        group="Sync",
    )
    sync_port: int = _setting(Whole(1, 65535), "2222", "SSH port of servers that name none of their own.", group="Sync")
    sync_user: str = _setting(Label(1, 32), "syncer", "Account at the server.", group="Sync")
    sync_host_key: tuple[str, ...] = _setting(
        HostKeys(),
        "",
        "Pins the server: its fingerprint or public key, as the server's log prints it. Without it the first"
        " key seen is remembered on the library volume and any other refused.",
        group="Sync",
        secret=True,
    )
    sync_schedule: schedule.Schedule = _setting(
        Cron(),
        "0 21 * * 5",
        "When to sync, in the time zone TZ: five cron fields or an @alias.",
        group="Sync",
    )
    sync_delay: bool = _setting(
        Truth(),
        "false",
        "Wait a random time before each scheduled sync, so that sites do not start together.",
        group="Sync",
    )
    sync_delay_max_seconds: int = _setting(Whole(0, 604800), "21600", "Longest random wait in seconds.", group="Sync")
    sync_max_bw: rates.Rates = _setting(
        Bandwidth(),
        "0",
        "Bandwidth limit for all transfers together: 1.5m is 1.5 MiB/s, 0 is unlimited. `1m@08:00-18:00,0` is 1 MiB/s"
        " in these hours, in the time zone TZ, and unlimited in the others.",
        group="Sync",
    )
    sync_parallel: int = _setting(
        Whole(1, 16),
        "4",
        "Most transfers at the same time. Fewer run when there is little to fetch or the limit is low.",
        group="Sync",
    )
    sync_block_size: int = _setting(
        BlockSize(),
        "auto",
        "Length of the blocks in which rsync looks for what is here already. `auto`: 2048 bytes, longer for files above"
        " 4 GiB. `whole`: do not look, for lines above 1 Gbit/s.",
        group="Sync",
    )
    sync_include: tuple[str, ...] = _setting(
        Words(),
        "",
        "Only items whose folder or name matches one of these globs (* ? [a-z]), comma-separated.",
        group="Choice",
    )
    sync_exclude: tuple[str, ...] = _setting(
        Words(), "", "No items whose folder or name matches one of these globs.", group="Choice"
    )
    sync_add: bool = _setting(Truth(), "true", "Bring new items.", group="Choice")
    sync_update: bool = _setting(Truth(), "true", "Bring changes to items that are here.", group="Choice")
    sync_delete: bool = _setting(Truth(), "true", "Remove items that are gone at the server.", group="Choice")
    sync_max_delete: DeleteLimit = _setting(
        Limit(),
        "50%",
        "A run that would remove more items than this is refused before anything is touched; `clr sync --allow-deletes`"
        " overrides it once. One item may always go.",
        group="Safety",
    )
    sync_retries: int = _setting(
        Whole(0, 1000), "5", "Attempts after a failed one, when nothing moved in between.", group="Safety"
    )
    sync_retry_delay: timedelta = _setting(
        Duration(),
        "15s",
        "Wait before the first retry; doubles each time, up to ten minutes.",
        group="Safety",
    )
    sync_timeout: timedelta = _setting(
        Duration(), "5m", "A line silent for this long is given up (and the attempt retried).", group="Safety"
    )
    sync_connect_timeout: timedelta = _setting(Duration(), "30s", "Longest wait for a connection.", group="Safety")
    sync_window: timedelta = _setting(
        Duration(),
        "7d",
        "Longest run; then it stops cleanly and the next run goes on. 0 is no limit.",
        group="Safety",
    )
    verify_schedule: schedule.Schedule | None = _setting(
        CronOrNever(),
        "",
        "When to read everything published again and mend what is damaged. Empty: never.",
        group="Safety",
    )
    library_name: str = _setting(Label(1, 80), "Library", "Name of the library in its manifest.", group="Library")
    library_browse: bool = _setting(Truth(), "false", "Let people list folders in a browser.", group="Library")
    library_password: str = _setting(
        Password(),
        "",
        "Password of the library, user `vcsp`. Empty: no password asked.",
        group="Library",
        secret=True,
    )
    library_keep: int = _setting(
        Whole(1, 1000), "3", "Generations kept for `clr rollback`, the current one included.", group="Library"
    )
    library_grace: timedelta = _setting(
        Duration(),
        "24h",
        "How long replaced files stay readable, so that a slow subscriber finishes the generation it began.",
        group="Library",
    )
    library_hrefs: str = _setting(
        OneOf("tree", "plain"),
        "tree",
        "`tree`: file URLs name the immutable item tree. `plain`: they name the folder, as the original's did.",
        group="Library",
    )
    library_generation_num: str = _setting(
        OneOf("file", "item"),
        "file",
        "`file`: generationNum grows for changed files only. `item`: for all files of a changed item.",
        group="Library",
    )
    tls_name: str = _setting(
        HostName(), "", "Name of the site. Set: HTTPS with a certificate for it. Empty: HTTP.", group="TLS"
    )
    tls_custom_cert: bool = _setting(
        Truth(),
        "false",
        "Use `cert.pem` and `key.pem` from /etc/caddycerts. Otherwise ACME (Let's Encrypt).",
        group="TLS",
    )
    tls_internal: bool = _setting(
        Truth(), "false", "Use a certificate of Caddy's own CA, made and renewed here.", group="TLS"
    )
    http_port: int = _setting(Whole(1, 65535), "80", "Port for HTTP inside the container.", group="TLS")
    https_port: int = _setting(Whole(1, 65535), "443", "Port for HTTPS inside the container.", group="TLS")
    metrics_port: int = _setting(
        Whole(0, 65535),
        "0",
        "Port that serves nothing but `/metrics` and `/healthz`, over HTTP and without a password. 0: none.",
        group="Status",
    )
    site_name: str = _setting(
        Label(0, 80),
        "",
        "Name of this site on its page, in status and messages. Empty: TLS_NAME, or else the host's name.",
        group="Status",
    )
    notify_urls: tuple[str, ...] = _setting(
        Services(),
        "",
        "Who is told of what happens: mail, chats, webhooks, as URLs of [apprise](https://appriseit.com/services/)."
        " Empty: nobody.",
        group="Messages",
        secret=True,
    )
    notify_events: tuple[str, ...] = _setting(
        AnyOf("failure", "recovery", "held", "first-success", "stale", "damaged", "certificate", "paused"),
        "all",
        "What is told, each event once.",
        group="Messages",
    )
    notify_stale_after: timedelta | None = _setting(
        Patience(),
        "auto",
        "How long a site may go without a sync that succeeds before that is told. `auto`: until two scheduled syncs in"
        " a row brought nothing. 0: never.",
        group="Messages",
    )
    heartbeat_url: str = _setting(
        WebAddress(),
        "",
        "URL of a monitor such as healthchecks.io that notices when nothing comes any more: it gets a POST when a sync"
        " succeeds, at `/start` when one starts, at `/fail` when one fails.",
        group="Messages",
        secret=True,
    )
    log_format: str = _setting(OneOf("text", "json"), "text", "Form of log lines.", group="Logs")
    log_level: str = _setting(OneOf("debug", "info", "warning", "error"), "info", "Least level logged.", group="Logs")
    clr_library_dir: Path = _setting(Folder(), "/syncer/library", "The library volume.", group="Folders")
    clr_keys_dir: Path = _setting(Folder(), "/syncer/.ssh", "Folder with the private key `id_syncer`.", group="Folders")
    clr_certs_dir: Path = _setting(Folder(), "/etc/caddycerts", "Folder with cert.pem and key.pem.", group="Folders")
    clr_data_dir: Path = _setting(Folder(), "/data", "Caddy's data: certificates it obtained, its CA.", group="Folders")
    clr_run_dir: Path = _setting(Folder(), "/run/clr", "Sockets and files of the running process.", group="Folders")

    @property
    def site(self) -> str:
        """How this site is called where people or monitors see it."""
        return self.site_name or self.tls_name or socket.gethostname()

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The servers in the order in which they are tried, each with its port."""
        return tuple(Peer(host, port or self.sync_port) for host, port in self.sync_peer)

    def require_peer(self) -> None:
        """Raise SettingsError unless there is a server to pull from."""
        if not self.sync_peer:
            raise SettingsError(f"SYNC_PEER is not set; allowed: {Peers.allowed}")


PREFIXES = ("SYNC_", "TLS_", "LIBRARY_", "VERIFY_", "SITE_", "METRICS_", "NOTIFY_", "HEARTBEAT_")
ALIASES = {"SYNC_MAX_KBPS": "SYNC_MAX_BW"}
LIKENESS = 0.85
"""How like one of ours a name without our prefixes must be to count as misspelt; HTTP_PROXY is 0.74 like HTTP_PORT."""

TROUBLES = (
    CANNOT_BE := Trouble("{variable}={value} cannot be used; allowed: {allowed}"),
    TWICE := Trouble("{variable} and {variable}_FILE are both set; keep one of them"),
    FILE_UNREADABLE := Trouble("{variable}_FILE={file} cannot be read ({error}); allowed: a readable text file"),
    FILE_EMPTY := Trouble("{variable}_FILE={file} is empty; allowed: a file that holds the value"),
    BOTH_WAYS := Trouble("TLS_INTERNAL=true and TLS_CUSTOM_CERT=true exclude each other; set one of them"),
    NAMELESS := Trouble("{variable}=true needs TLS_NAME, the name that the certificate is for"),
    SAME_PORT := Trouble("HTTP_PORT and HTTPS_PORT are both {port}; allowed: two different ports"),
    PORT_TAKEN := Trouble("METRICS_PORT={port} is the library's; allowed: a port of its own"),
    NOT_OURS := Trouble("{variable} is not a setting of this program{hint}"),
    OLD_NAME := Trouble("{old} is an old name; rename it to {new}"),
    OLD_IGNORED := Trouble("{old} is ignored, because {new} is set"),
)


@dataclass(frozen=True, slots=True)
class Survey:
    """What an environment says, as far as it can be used.

    ``settings`` lacks the fields that are ``broken``: to read one raises AttributeError. ``errors`` tell why, one for
    each mistake; ``warnings`` are about variables that look misspelt or go by an old name.
    """

    settings: Settings
    errors: tuple[SettingsError, ...]
    broken: frozenset[str]
    warnings: tuple[str, ...]


def load(environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Read the settings from an environment.

    :returns: the settings, and warnings about variables that look misspelt or go by an old name.
    :raises SettingsError: the first value that cannot be used: its name, the value and what is allowed.
    """
    found = survey(environ)
    if found.errors:
        raise found.errors[0]
    return found.settings, list(found.warnings)


def survey(environ: Mapping[str, str]) -> Survey:
    """Read all that can be read of the settings, and say everything that is wrong with them."""
    warnings: list[str] = []
    errors: list[SettingsError] = []
    broken: set[str] = set()
    settings = object.__new__(Settings)
    for field in dataclasses.fields(Settings):
        variable = field.name.upper()
        try:
            text = _lookup(environ, variable, secret=field.metadata["secret"], warnings=warnings)
            value = _convert(variable, field.metadata, text or field.metadata["default"])
        except SettingsError as error:
            errors.append(error)
            broken.add(field.name)
        else:
            object.__setattr__(settings, field.name, value)
    for names, text in _conflicts(settings, broken):
        errors.append(SettingsError(text))
        broken.update(names)
    for name in broken:
        with contextlib.suppress(AttributeError):
            object.__delattr__(settings, name)
    return Survey(settings, tuple(errors), frozenset(broken), (*warnings, *_misspelt(environ)))


def _conflicts(settings: Settings, broken: Collection[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The fields that exclude each other as they are set, and why."""
    ways, ports = ("tls_name", "tls_custom_cert", "tls_internal"), ("http_port", "https_port")
    if not any(name in broken for name in ways):
        if settings.tls_custom_cert and settings.tls_internal:
            yield ways, BOTH_WAYS.told()[0]
        if settings.tls_internal and not settings.tls_name:
            yield ways, NAMELESS.told(variable="TLS_INTERNAL")[0]
        if settings.tls_custom_cert and not settings.tls_name:
            yield ways, NAMELESS.told(variable="TLS_CUSTOM_CERT")[0]
    if any(name in broken for name in ("tls_name", *ports)):
        return
    if settings.tls_name and settings.http_port == settings.https_port:
        yield ports, SAME_PORT.told(port=settings.http_port)[0]
    taken = (settings.http_port, settings.https_port) if settings.tls_name else (settings.http_port,)
    if "metrics_port" not in broken and settings.metrics_port in taken:
        yield ("metrics_port", *ports), PORT_TAKEN.told(port=settings.metrics_port)[0]


def _lookup(environ: Mapping[str, str], variable: str, *, secret: bool, warnings: list[str]) -> str:
    text = environ.get(variable, "")
    for old, new in ALIASES.items():
        if new == variable and old in environ:
            if text:
                warnings.append(OLD_IGNORED.told(old=old, new=new)[0])
            else:
                warnings.append(OLD_NAME.told(old=old, new=new)[0])
                text = environ[old]
    file = environ.get(f"{variable}_FILE") if secret else None
    if not file:
        return text
    if text:
        raise SettingsError(*TWICE.told(variable=variable))
    try:
        text = Path(file).read_text(encoding="utf-8").strip("\ufeff").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise SettingsError(*FILE_UNREADABLE.told(variable=variable, file=repr(file), error=error)) from None
    if not text:
        raise SettingsError(*FILE_EMPTY.told(variable=variable, file=repr(file)))
    return text


def _convert(variable: str, metadata: Mapping[str, Any], text: str) -> Any:  # noqa: ANN401
    try:
        return metadata["type"].convert(text, None, None)
    except click.BadParameter as error:
        shown = "***" if metadata["type"].hidden else repr(text)
        raise SettingsError(*CANNOT_BE.told(variable=variable, value=shown, allowed=error.message)) from None


def _misspelt(environ: Mapping[str, str]) -> list[str]:
    import difflib

    fields = dataclasses.fields(Settings)
    known = {field.name.upper() for field in fields} | set(ALIASES)
    known |= {f"{field.name.upper()}_FILE" for field in fields if field.metadata["secret"]}
    warnings = []
    for name in sorted(set(environ) - known):
        is_ours = name.startswith(PREFIXES)
        likely = difflib.get_close_matches(name, known, n=1, cutoff=0.6 if is_ours else LIKENESS)
        if is_ours or likely:
            hint = f"; did you mean {likely[0]}?" if likely else ""
            warnings.append(NOT_OURS.told(variable=name, hint=hint)[0])
    return warnings
