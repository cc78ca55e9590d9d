"""Makes templates as a publisher would: tiny valid ones for unit tests, real disks for everything else.

``fake_template`` writes a valid OVF item in milliseconds.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MIB = 1 << 20
VMDK = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"


def envelope(
    name: str,
    files: Mapping[str, int],
    *,
    capacity: int = MIB,
    vapp: bool = False,
    hrefs: Mapping[str, str] | None = None,
) -> bytes:
    """An OVF envelope like ovftool's.

    ``files`` are names and sizes; ``hrefs`` replaces what is written for a name.
    """
    hrefs = hrefs or {}
    references = "".join(
        f"    <File ovf:href={quoteattr(hrefs.get(file, file))} ovf:id='file{number}' ovf:size='{size}'/>\n"
        for number, (file, size) in enumerate(files.items(), 1)
    )
    disks = "".join(
        f"    <Disk ovf:capacity='{capacity}' ovf:capacityAllocationUnits='byte' ovf:diskId='vmdisk{number}' "
        f"ovf:fileRef='file{number}' ovf:format='{VMDK}'/>\n"
        for number in range(1, len(files) + 1)
    )
    system = f"""  <VirtualSystem ovf:id={quoteattr(name)}>
    <Info>A virtual machine</Info>
    <Name>{quoteattr(name)[1:-1]}</Name>
    <OperatingSystemSection ovf:id="96" vmw:osType="debian12_64Guest">
      <Info>The kind of installed guest operating system</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware requirements</Info>
      <Item>
        <rasd:Description>Number of virtual CPUs</rasd:Description>
        <rasd:ElementName>1 virtual CPU(s)</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>1</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:ElementName>512MB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>512</rasd:VirtualQuantity>
      </Item>
    </VirtualHardwareSection>
  </VirtualSystem>
"""
    if vapp:
        system = f"  <VirtualSystemCollection ovf:id='vapp'>\n{system}  </VirtualSystemCollection>\n"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
    xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
{references}  </References>
  <DiskSection>
    <Info>Virtual disk information</Info>
{disks}  </DiskSection>
{system}</Envelope>
""".encode()


def manifest(folder: Path, names: Iterable[str], algorithm: str = "sha256") -> bytes:
    """An OVF manifest (.mf) of these files of a folder."""
    lines = []
    for name in names:
        with (folder / name).open("rb") as stream:
            lines.append(
                f"{algorithm.upper()}({name})= {hashlib.file_digest(stream, algorithm).hexdigest()}\n"
            )
    return "".join(lines).encode()


def fake_template(
    folder: Path,
    *,
    name: str | None = None,
    disk_bytes: int = 64 * 1024,
    disks: int = 1,
    revision: int = 0,
    algorithm: str | None = "sha256",
    vapp: bool = False,
) -> Path:
    """Write a tiny valid OVF item into ``folder`` (made if missing) and return its .ovf.

    Disks are incompressible bytes that depend on the name and ``revision`` only; a revision above 0 changes
    the middle of each. ``algorithm`` is the manifest's, None for no manifest. Files are replaced by rename,
    as an orderly publisher does.
    """
    name = name or folder.name
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, int] = {}
    for number in range(disks):
        disk = f"{name}-disk{number + 1}.vmdk"
        content = bytearray(random.Random(f"{name}/{number}").randbytes(disk_bytes))
        if revision:
            changed = random.Random(f"{name}/{number}/{revision}").randbytes(min(disk_bytes, 4096))
            start = (disk_bytes - len(changed)) // 2
            content[start : start + len(changed)] = changed
        replace(folder / disk, bytes(content))
        files[disk] = disk_bytes
    ovf = folder / f"{name}.ovf"
    replace(ovf, envelope(name, files, vapp=vapp))
    if algorithm:
        replace(folder / f"{name}.mf", manifest(folder, [ovf.name, *files], algorithm))
    return ovf


def replace(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it there."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.replace(path)
