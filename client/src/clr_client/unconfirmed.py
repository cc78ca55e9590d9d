"""Files that came from a server which has not been listed since: it may have changed them while they were read.

They are remembered on the volume, in ``unconfirmed.json``: what another server lists, or the same one before the
transfer, proves nothing about them, in this run or in a later one.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from clr_client.disk import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from clr_client.files import FileInfo

log = logging.getLogger("clr.sync")


def load(place: Path) -> dict[str, str]:
    """Return the server of each unconfirmed file by the file's path; of a damaged list, nothing."""
    try:
        return {str(path): str(peer) for path, peer in json.loads(place.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, RecursionError) as error:
        log.warning("%s cannot be read (%s); files that arrived last are taken to be right", place, error)
        return {}


def save(place: Path, unconfirmed: Mapping[str, str]) -> None:
    """Remember the unconfirmed files, in one step.

    :raises OSError: the volume cannot be written.
    """
    replace_file(place, json.dumps(unconfirmed).encode())


def remaining(
    unconfirmed: Mapping[str, str], peer: str, listed: Iterable[FileInfo], here: Mapping[str, FileInfo]
) -> dict[str, str]:
    """Return what is unconfirmed still after a server was listed. Pure.

    :param peer: the server; it confirms what came from it and is the same there and here.
    :param here: the files of the mirror by path; what is not among them needs no confirmation any more.
    """
    same = {file.path for file in listed if here.get(file.path) == file}
    return {
        path: server for path, server in unconfirmed.items() if path in here and not (server == peer and path in same)
    }
