"""What the original Content Library Rsync leaves behind: manifests with hexadecimal etags beside its templates."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def leave_original(folder: Path, version: int = 7) -> dict[str, str]:
    """Write the manifests that the original would have left for the templates in ``folder``; return ids by name."""
    ids, items = {}, []
    for item in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        ids[item.name] = f"urn:uuid:{uuid.uuid4()}"
        files = [
            {
                "name": file.name,
                "size": file.stat().st_size,
                "etag": hashlib.md5(file.read_bytes()).hexdigest(),
                "hrefs": [f"{item.name}/{file.name}"],
            }
            for file in sorted(item.iterdir())
        ]
        document = {
            "created": "2023-02-21T15:46Z",
            "description": "",
            "version": str(version),
            "files": files,
            "id": ids[item.name],
            "name": item.name,
            "metadata": [{"key": "type-metadata", "value": "{'id': 'single quotes'}", "type": "String"}],
            "properties": {},
            "selfHref": f"{item.name}/item.json",
            "type": "vcsp.ovf",
            "contentVersion": "1",
        }
        (item / "item.json").write_text(json.dumps(document))
        items.append(document)
    library = {
        "vcspVersion": "2",
        "version": str(version + 3),
        "contentVersion": "1",
        "name": "Library",
        "id": f"urn:uuid:{uuid.uuid4()}",
        "created": "2022-08-07T20:14Z",
        "capabilities": {"transferIn": ["httpGet"], "transferOut": ["httpGet"]},
        "itemsHref": "items.json",
    }
    ids[""] = str(library["id"])
    (folder / "items.json").write_text(json.dumps({"items": items}))
    (folder / "lib.json").write_text(json.dumps(library))
    return ids
