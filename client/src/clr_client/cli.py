"""The `clr` command. Each subcommand reads the settings and calls one function.

What only some of them need is imported there: it would cost the others more time than their work.
"""

from __future__ import annotations

import atexit
import dataclasses
import gc
import json
import logging
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from zoneinfo import ZoneInfo

import click

from clr_client import __version__
from clr_client.errors import ClrError
from clr_client.reporting import bar, logs
from clr_client.text import printable, size
from clr_client.values import Duration, Label

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import timedelta

    from clr_client.plan import Plan
    from clr_client.settings import Settings
    from clr_client.store import Store

PARTIAL_EXIT = 6
PROBLEMS_EXIT = 4
SIGNALLED_EXIT = 128

Result = TypeVar("Result")

atexit.register(gc.freeze)  # else the interpreter looks through all modules once more before it ends, for 15 ms


class _Group(click.Group):
    """Shows expected errors in one line with their exit code, and everything else as the defect it is."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().invoke(ctx)
        except ClrError as error:
            click.echo(f"clr: {printable(str(error))}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            sys.exit(SIGNALLED_EXIT + signal.SIGINT)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(SIGNALLED_EXIT + signal.SIGPIPE)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Content Library Rsync: pulls VM templates with rsync and publishes them as a subscribable library.

    Settings are environment variables (SYNC_PEER, LIBRARY_NAME, ...). Exit codes: 0 done, 1 failed, 2 wrong usage,
    3 wrong setting, 4 problems found, 5 another run is at work, 6 done in part, 75 try again later.
    """


def _settings() -> Settings:
    from clr_client import settings

    loaded, warnings = settings.load(os.environ)
    for warning in warnings:
        click.echo(f"clr: warning: {printable(warning)}", err=True)
    return loaded


def _working() -> Settings:
    """Read the settings for a command that does work: what it does is logged."""
    from clr_client import settings

    loaded, warnings = settings.load(os.environ)
    site = loaded.site if loaded.log_format == "json" else loaded.site_name
    logs.configure(loaded.tz, form=loaded.log_format, level=loaded.log_level, site=site)
    for warning in warnings:
        logging.getLogger("clr").warning("%s", warning)
    return loaded


def _answering() -> tuple[Settings, Store]:
    """Read the settings for a command that answers a question: standard output is for the answer alone."""
    from clr_client.store import Store

    loaded = _settings()
    logs.configure(loaded.tz, level="warning", stream=sys.stderr)
    return loaded, Store(loaded.clr_library_dir)


def _finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, or until a signal: then children are ended, what arrived is kept, and the exit code tells."""
    import asyncio

    signalled: list[signal.Signals] = []

    async def stoppable() -> Result:
        task = asyncio.ensure_future(work)

        def stop(number: signal.Signals) -> None:
            signalled.append(number)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await task

    try:
        return asyncio.run(stoppable())
    except asyncio.CancelledError:
        if not signalled:
            raise
        sys.exit(SIGNALLED_EXIT + signalled[0])


@main.command()
def run() -> NoReturn:
    """Serve at once, sync now, then sync on schedule: the container's process."""
    import asyncio

    from clr_client import daemon

    sys.exit(asyncio.run(daemon.run(_working())))


@main.command()
@click.option(
    "--allow-deletes",
    is_flag=True,
    help="Let the guard against mass deletion and an empty source pass, once.",
)
def sync(allow_deletes: bool) -> NoReturn:
    """Sync now, also while `clr run` is running.

    Example: docker exec clr-client clr sync
    """
    from clr_client.reporting.status import PARTIAL
    from clr_client.sync import synchronise

    loaded = _working()
    report = _finish(synchronise(loaded, trigger="hand", allow_deletes=allow_deletes, observer=bar.observer()))
    sys.exit(PARTIAL_EXIT if report.result == PARTIAL else 0)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(as_json: bool) -> None:
    """Show what a sync would add, change and remove, with bytes. Touches nothing."""
    from clr_client.update import plan_only

    loaded, _ = _answering()
    with bar.progress("listing", "files") as advance:
        found = _finish(plan_only(loaded, advance))
    click.echo(json.dumps(_plan_document(found), indent=2) if as_json else _plan_text(found))


def _plan_document(found: Plan) -> dict[str, Any]:
    items = [
        {
            "key": printable(item.key),
            "action": item.action.value,
            "files": len(item.fetch),
            "bytes": item.bytes,
            "note": item.note,
        }
        for item in found.items
    ]
    return {"schema": 1, "bytes": found.bytes, "files": len(found.fetch), "items": items}


def _plan_text(found: Plan) -> str:
    lines = [
        f"{item.action.value:7} {printable(item.key)}"
        + (f"  {len(item.fetch)} files, {size(item.bytes)}" if item.fetch else "")
        + (f"  ({printable(item.note)})" if item.note else "")
        for item in found.items
        if item.action != "keep"
    ]
    lines.append(f"{len(found.fetch)} files of {size(found.bytes)} to fetch; changed files cross the line as deltas")
    return "\n".join(lines)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", required=True, type=Label(1, 80), help="Name of the library.")
def publish(folder: Path, name: str) -> NoReturn:
    """Write manifests into any plain directory of templates, reading only what changed.

    For libraries that another web server hosts; replaces make_vcsp. Example: clr publish /srv/templates --name Golden
    """
    from clr_client.directory import publish_directory

    logs.configure(ZoneInfo("UTC"), level="warning", stream=sys.stderr)
    with bar.progress("reading") as advance:
        done = publish_directory(folder, name, advance)
    state = "written" if done.changed else "unchanged"
    click.echo(f"{done.name}: version {done.version}, {done.items} items; manifests {state}")
    for warning in done.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    for held in done.held:
        click.echo(f"held: {printable(held.key)}: {printable(held.reason)}", err=True)
    sys.exit(PARTIAL_EXIT if done.held else 0)


@main.command()
@click.argument("url")
@click.option(
    "--password-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the library's password.",
)
@click.option("--full", is_flag=True, help="Fetch all content, not only headers.")
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CA certificates to trust (PEM).",
)
@click.option("--pin", metavar="THUMBPRINT", help="Trust the certificate with this thumbprint, as vSphere does.")
@click.option("--thumbprint", is_flag=True, help="Print only the thumbprints of the server's certificate.")
@click.option("--wait", default=0, type=click.IntRange(0), help="Seconds to wait for a site's first library.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    url: str,
    password_file: Path | None,
    full: bool,
    ca_file: Path | None,
    pin: str | None,
    thumbprint: bool,
    wait: int,
    as_json: bool,
) -> NoReturn:
    """Read a library as a strict vSphere subscriber would, and say what it would say.

    Example: clr check http://library.example.com/lib.json --full
    """
    from clr_client.reporting import verdict
    from clr_client.vcsp.checking import check as read

    password = _password(password_file) if password_file else None
    with bar.progress("reading", "bytes" if full else "files") as advance:
        report = read(
            url,
            password=password,
            full=full,
            ca_file=ca_file,
            thumbprint=pin,
            wait=wait,
            on_progress=advance,
        )
    if thumbprint:
        click.echo(verdict.thumbprints(report))
    elif as_json:
        click.echo(json.dumps({"schema": 1, "ok": report.ok, **dataclasses.asdict(report)}, indent=2))
    else:
        click.echo(verdict.text(report))
    sys.exit(0 if report.ok else PROBLEMS_EXIT)


def _password(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{file}: {error}", param_hint="--password-file") from None


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print what the site's status.json says.")
def status(as_json: bool) -> None:
    """Show the last runs, what is published, and what is held and why."""
    from clr_client.lock import running_since
    from clr_client.reporting import document, overview

    loaded, store = _answering()
    found = document.describe(loaded)
    if as_json:
        click.echo(document.dump(found), nl=False)
    else:
        click.echo(overview.as_text(found, loaded.tz, store.generation_numbers(), running_since(store.root)))


@main.command()
@click.argument("sites", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page to this file, too.")
@click.option("--sort", default="worst", show_default=True, type=click.Choice(["worst", "name"]), help="What is first.")
@click.option("--max-age", type=Duration(), help="Call a site stale whose last success is longer ago, such as 8d.")
@click.option("--timeout", default=3.0, show_default=True, type=click.FloatRange(0.1, 600), help="Seconds for a site.")
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CA certificates to trust (PEM).",
)
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--every", default=10, show_default=True, type=click.IntRange(1), help="Seconds from look to look.")
def fleet(
    sites: Path,
    as_json: bool,
    html: Path | None,
    sort: str,
    max_age: timedelta | None,
    timeout: float,
    ca_file: Path | None,
    watch: bool,
    every: int,
) -> NoReturn:
    """Show all sites at a glance, the worst first; each is asked for its status.

    SITES is a file with a line for each site, or - for standard input: NAME URL [password-file=PATH]
    [pin=THUMBPRINT] [ca-file=PATH]. Exit code 4: a site is not well. Example: clr fleet sites.txt --html fleet.html
    """
    from clr_client.fleet.show import View, show
    from clr_client.fleet.sites import read_sites

    view = View(sort == "name", as_json, html, every if watch else 0, max_age)
    sys.exit(show(read_sites(sites, ca_file), view, timeout))


@main.command()
@click.option("--count", default=5, show_default=True, type=click.IntRange(1, 100), help="How many runs to show.")
def schedule(count: int) -> None:
    """Show the next runs in local time."""
    loaded, _ = _answering()
    click.echo(f"{loaded.sync_schedule} ({loaded.tz.key})")
    instant = datetime.now(UTC)
    for _ in range(count):
        instant = loaded.sync_schedule.next_after(instant, loaded.tz)
        click.echo(instant.astimezone(loaded.tz).strftime("%a %Y-%m-%d %H:%M %Z"))
    if loaded.sync_delay:
        click.echo(f"each up to {loaded.sync_delay_max_seconds} s later (SYNC_DELAY)")


@main.command()
@click.option("--repair", is_flag=True, help="Mend at once what is damaged, with the server's help where needed.")
def verify(repair: bool) -> NoReturn:
    """Hash everything published and hold it against the recorded digests.

    What is damaged is mended by the next sync, or at once with --repair. Syncs may go on meanwhile.
    """
    from clr_client.integrity.verification import verify as read

    loaded = _working() if repair else _answering()[0]
    with bar.progress("verifying") as advance:
        observer = bar.observer() if repair else None
        done = _finish(read(loaded, trigger="hand", repairing=repair, on_progress=advance, observer=observer))
    for damage in done.damaged if not repair else ():  # else the log says it
        click.echo(printable(str(damage)))
    if repair:
        click.echo(done.summary)
    elif done.found:
        click.echo(f"{len(done.found)} damaged; the next sync mends it, or at once: clr verify --repair")
    else:
        click.echo("all is as published")
    sys.exit(PROBLEMS_EXIT if done.damaged else 0)


@main.command()
@click.argument("templates", metavar="TEMPLATE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--compress", is_flag=True, help="The way back: compress the disks as other programs do.")
@click.option("--drop-cert", is_flag=True, help="Remove a template's certificate, whose signature no longer fits.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and how large it would become.")
def repack(templates: tuple[Path, ...], compress: bool, drop_cert: bool, dry_run: bool) -> NoReturn:
    """Rewrite the stream-optimized disks of templates so that their changes travel as small deltas.

    For the primary site or its image pipeline. TEMPLATE is a template's folder, or the .ovf in it. The disks keep their
    content and take more room, because nothing in them is compressed any more. Example: clr repack /srv/templates/web
    """
    from clr_client.repack.template import repack as rewrite

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(SIGNALLED_EXIT + received))
    failed: list[ClrError] = []
    for template in templates:
        shown = printable(str(template))
        try:
            with bar.progress("repacking") as advance:
                done = rewrite(template, compress=compress, drop_cert=drop_cert, dry_run=dry_run, on_progress=advance)
        except ClrError as error:
            click.echo(f"clr: {shown}: {printable(str(error))}", err=True)
            failed.append(error)
            continue
        for disk in done.disks:
            sizes = f"{size(disk.before)}, {'would be about' if dry_run else 'now'} {size(disk.after)}"
            what = sizes if disk.is_changed else "left as it is: it has that form already"
            click.echo(f"{shown}: {printable(disk.name)}: {what}")
        if done.was_interrupted:
            click.echo(f"{shown}: what an earlier run was killed at is completed")
        for warning in done.warnings:
            click.echo(f"{shown}: warning: {printable(warning)}", err=True)
    if 0 < len(failed) < len(templates):
        sys.exit(PARTIAL_EXIT)
    sys.exit(failed[0].exit_code if failed else 0)


@main.command()
@click.argument("generation", required=False, type=click.IntRange(1))
@click.option("--release", "releasing", is_flag=True, help="Let syncs publish again.")
def rollback(generation: int | None, releasing: bool) -> None:
    """Publish an older generation again; without a number, the one before. Versions still grow.

    Syncs do not publish until `clr rollback --release`.
    """
    from clr_client.rollback import release, roll_back

    loaded, store = _answering()
    if releasing:
        click.echo("syncs publish again" if release(store) else "nothing was rolled back; syncs publish already")
        return
    number = roll_back(loaded, store, generation)
    click.echo(f"generation {number} is published; syncs are paused until: clr rollback --release")


@main.command()
def notify() -> NoReturn:
    """Send a message for a try to all of NOTIFY_URLS, and say of each whether it was taken."""
    from clr_client.reporting.messenger import greet

    failed = False
    for shown, reason in _finish(greet(_answering()[0])):
        click.echo(f"{shown}: {reason or 'sent'}")
        failed = failed or bool(reason)
    sys.exit(1 if failed else 0)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> NoReturn:
    """Check all that goes wrong at set-up, in order, and say what to do about it. Changes nothing.

    Works at any time: before the first start, while a sync runs, with settings that no other command takes. Example:
    docker-compose -f docker-compose.client.yaml run --rm clr-client doctor
    """
    from clr_client.doctor import report

    logs.configure(ZoneInfo("UTC"), level="error", stream=sys.stderr)
    sys.exit(0 if _finish(report.tell(os.environ, click.echo, as_json=as_json)) else PROBLEMS_EXIT)


@main.command()
def healthcheck() -> NoReturn:
    """Exit 0 when the container does its work, 1 with the reason when not."""
    from clr_client.web.health import problems

    loaded, store = _answering()
    found = problems(loaded, store.status)
    for problem in found:
        click.echo(printable(problem))
    sys.exit(1 if found else 0)


@main.command()
def version() -> None:
    """Print the versions of this program, rsync, ssh and Caddy."""
    from clr_client import transport
    from clr_client.web import caddy

    click.echo(f"clr {__version__}")
    for name, text in {**transport.versions(), **caddy.versions()}.items():
        click.echo(f"{name} {printable(text)}")
