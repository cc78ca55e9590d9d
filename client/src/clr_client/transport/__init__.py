"""ssh and rsync: what the server has, and how it comes here."""

from clr_client.transport.leftovers import partials, rescue, strays
from clr_client.transport.listing import Listing
from clr_client.transport.progress import Progress
from clr_client.transport.rsync import PARTIAL_DIR
from clr_client.transport.ssh import Link, pin, remembered_fingerprints
from clr_client.transport.transfer import Transfer, fetch, list_source
from clr_client.transport.versions import rsync_warning, versions

__all__ = [
    "PARTIAL_DIR",
    "Link",
    "Listing",
    "Progress",
    "Transfer",
    "fetch",
    "list_source",
    "partials",
    "pin",
    "remembered_fingerprints",
    "rescue",
    "rsync_warning",
    "strays",
    "versions",
]
