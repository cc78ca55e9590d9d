"""What `clr check` says: the library as a subscriber finds it, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clr_client.text import printable, size

if TYPE_CHECKING:
    from clr_client.vcsp.checking import CheckReport


def text(report: CheckReport) -> str:
    """Return the whole report for people, the verdict last."""
    lines = [f"{printable(report.url)}: {report.probe}"]
    if report.id:
        lines.append(
            f"{printable(report.library)}, version {report.version}: {report.items} items, {report.files} files,"
            f" {size(report.bytes)}"
        )
    lines += [printable(str(problem)) for problem in report.problems]
    if report.thumbprints:
        lines.append(thumbprints(report))
    lines.append(f"subscribe: {printable(report.govc)}")
    lines.append("vSphere can subscribe to it" if report.ok else "vSphere would refuse it or stop updating from it")
    return "\n".join(lines)


def thumbprints(report: CheckReport) -> str:
    """Return the certificate's thumbprints, one to a line."""
    if report.thumbprints is None:
        return "no certificate: the library is served over HTTP"
    return f"SHA-256 thumbprint: {report.thumbprints.sha256}\nSHA-1 thumbprint: {report.thumbprints.sha1}"
