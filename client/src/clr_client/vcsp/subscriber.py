"""A strict subscriber: ``check`` reads a library as vSphere would, ``Subscriber`` follows it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from clr_client.errors import SubscriberError
from clr_client.vcsp.checking import CheckReport, OnProgress, check
from clr_client.vcsp.fetching import fetch_items, fetch_library
from clr_client.vcsp.following import Known, KnownItem, Step, newer, steps
from clr_client.vcsp.reader import Reader, folder_of, refusal
from clr_client.vcsp.rules import Findings, Problem, RemoteFile, RemoteItem, RemoteLibrary, shown

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CheckReport", "OnProgress", "Problem", "Result", "Subscriber", "check"]


@dataclass(frozen=True, slots=True)
class Result:
    """What following a library took: its version, files loaded as (item name, file name), their bytes, and
    the names of items that were added, updated and removed. ``warnings`` are departures from the rules that
    did not stop it.
    """

    version: int
    files: tuple[tuple[str, str], ...]
    bytes: int
    added: tuple[str, ...]
    updated: tuple[str, ...]
    removed: tuple[str, ...]
    warnings: tuple[Problem, ...]


class Subscriber:
    """Follows one library into ``folder`` and remembers there, across instances, what it has.

    It does what vCenter does and nothing more: it looks at versions, loads only files whose generation grew,
    and matches items by id. Where vCenter would fail, or silently keep something stale, it raises
    SubscriberError.
    """

    def __init__(
        self, folder: Path, *, password: str | None = None, ca_file: Path | None = None, timeout: float = 30.0
    ) -> None:
        """``folder`` is made when it is missing; ``timeout`` is in seconds, for every single answer."""
        self._folder = folder
        self._password = password
        self._ca_file = ca_file
        self._timeout = timeout

    def sync(self, url: str) -> Result:
        """Follow the library at ``url`` once. Raises SubscriberError, and ProbeError when it cannot be
        reached.

        What was loaded before an error is kept, as in vCenter, where one bad item does not undo the others.
        """
        findings = Findings()
        known = self._recall()
        with Reader(url, password=self._password, ca_file=self._ca_file, timeout=self._timeout) as reader:
            final, library = fetch_library(reader, url, findings)
            library = _usable(library, findings)
            is_newer = newer(known, library)
            items = fetch_items(reader, final, library, findings)
            if known is not None and not is_newer and _differs(known, items):
                again = _usable(fetch_library(reader, url, findings)[1], findings)
                if not newer(known, again):
                    text = f"The items changed, but the library's version is still {library.version}"
                    raise SubscriberError(f"{text}: subscribers do not notice")
                library, is_newer = again, True
            _usable(library, findings)
            if known is not None and not is_newer:
                return Result(library.version, (), 0, (), (), (), _warnings(findings))
            return self._follow(reader, folder_of(final), known, library, items, findings)

    def files(self) -> dict[str, dict[str, Path]]:
        """What it has: by item name and file name, where the content lies."""
        known = self._recall()
        if known is None:
            return {}
        return {
            str(item.entry["name"]): {name: self._place(item_id) / name for name in item.files}
            for item_id, item in known.items.items()
        }

    def _follow(
        self,
        reader: Reader,
        base: str,
        known: Known | None,
        library: RemoteLibrary,
        items: tuple[RemoteItem, ...],
        findings: Findings,
    ) -> Result:
        plan = steps(known, items)
        before = known or Known(library.id, 0)
        kept = {item_id: item for item_id, item in before.items.items() if item_id not in plan.remove}
        removed = tuple(str(before.items[item_id].entry["name"]) for item_id in plan.remove)
        gone = {**before.gone, **{item_id: before.items[item_id].version for item_id in plan.remove}}
        for item_id in plan.remove:
            shutil.rmtree(self._place(item_id))
        for step in plan.take:
            self._remember(Known(library.id, before.version, kept, gone))
            self._take(reader, base, step)
            item = step.item
            kept[item.id] = KnownItem(item.version, item.raw, {file.name: file for file in item.files})
        self._remember(Known(library.id, library.version, kept, gone))
        return Result(
            version=library.version,
            files=tuple((step.item.name, file.name) for step in plan.take for file in step.load),
            bytes=sum(file.size for step in plan.take for file in step.load),
            added=tuple(step.item.name for step in plan.take if step.is_new),
            updated=tuple(step.item.name for step in plan.take if not step.is_new),
            removed=removed,
            warnings=_warnings(findings),
        )

    def _take(self, reader: Reader, base: str, step: Step) -> None:
        place = self._place(step.item.id)
        place.mkdir(parents=True, exist_ok=True)
        for file in step.load:
            self._load(reader, base + file.href, file, place)
        wanted = {file.name for file in step.item.files}
        for path in place.iterdir():
            if path.name not in wanted:
                path.unlink()

    def _load(self, reader: Reader, url: str, file: RemoteFile, place: Path) -> None:
        partial = self._folder / "partial"
        size = 0
        with reader.open(url) as (answer, chunks), partial.open("wb") as output:
            error = refusal(answer)
            if error is not None:
                raise error
            if answer.encoding:
                raise SubscriberError(f"{shown(file.name)} is sent compressed")
            if answer.length != file.size:
                text = f"{shown(file.name)} has {answer.length} bytes where the manifest says {file.size}"
                raise SubscriberError(text)
            for chunk in chunks:
                size += len(chunk)
                output.write(chunk)
        if size != file.size:
            raise SubscriberError(f"{shown(file.name)} ended after {size} of {file.size} bytes")
        partial.replace(place / file.name)

    def _place(self, item_id: str) -> Path:
        return self._folder / "items" / item_id.removeprefix("urn:uuid:")

    def _remember(self, known: Known) -> None:
        items = {
            item_id: {
                "version": item.version,
                "entry": item.entry,
                "files": [asdict(file) for file in item.files.values()],
            }
            for item_id, item in known.items.items()
        }
        state = {"id": known.id, "version": known.version, "items": items, "gone": dict(known.gone)}
        new = self._folder / "state.new"
        new.write_text(json.dumps(state))
        new.replace(self._folder / "state.json")

    def _recall(self) -> Known | None:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            state: dict[str, Any] = json.loads((self._folder / "state.json").read_text())
        except FileNotFoundError:
            return None
        items = {
            item_id: KnownItem(
                version=item["version"],
                entry=item["entry"],
                files={file["name"]: RemoteFile(**file) for file in item["files"]},
            )
            for item_id, item in state["items"].items()
        }
        return Known(state["id"], state["version"], items, state["gone"])


def _usable(library: RemoteLibrary | None, findings: Findings) -> RemoteLibrary:
    """``library``, unless something was found that makes vSphere fail."""
    errors = [str(problem) for problem in findings.problems if problem.severity == "error"]
    if errors or library is None:
        raise SubscriberError("; ".join(errors) or "lib.json cannot be used")
    return library


def _differs(known: Known, items: tuple[RemoteItem, ...]) -> bool:
    return {item.id: item.raw for item in items} != {item_id: item.entry for item_id, item in known.items.items()}


def _warnings(findings: Findings) -> tuple[Problem, ...]:
    return tuple(findings.problems)
