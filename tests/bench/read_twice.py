"""Manifests as the make_vcsp scripts make them: every file is read twice, at every run. ``read_twice.py FOLDER NAME``.

VMware's samples hash each folder to see whether it changed, and then each file for its etag. This does no more than
that, with their block size, and nothing that would make it slower.
"""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from pathlib import Path

BLOCK = 1 << 20


def add(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)


def item(folder: Path) -> dict[str, object]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.name != "item.json")
    whole = hashlib.md5()
    for name in names:
        add(whole, folder / name)
    files = []
    for name in names:
        digest = hashlib.md5()
        add(digest, folder / name)
        size = (folder / name).stat().st_size
        files.append({"name": name, "size": size, "etag": digest.hexdigest(), "hrefs": [f"{folder.name}/{name}"]})
    found: dict[str, object] = {
        "id": f"urn:uuid:{uuid.uuid4()}",
        "name": folder.name,
        "type": "vcsp.ovf",
        "version": "1",
        "etag": whole.hexdigest(),
        "files": files,
        "selfHref": f"{folder.name}/item.json",
    }
    (folder / "item.json").write_text(json.dumps(found, indent=2))
    return found


def main() -> None:
    root = Path(sys.argv[1])
    items = [item(folder) for folder in sorted(root.iterdir()) if folder.is_dir()]
    (root / "items.json").write_text(json.dumps({"items": items}, indent=2))
    library = {"vcspVersion": "2", "version": "1", "name": sys.argv[2], "id": f"urn:uuid:{uuid.uuid4()}"}
    (root / "lib.json").write_text(json.dumps({**library, "itemsHref": "items.json"}, indent=2))


if __name__ == "__main__":
    main()
