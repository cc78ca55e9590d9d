"""ssh and rsync: what the server has, and how it comes here."""

from clr_client.transport.allowance import limited
from clr_client.transport.batches import Batch
from clr_client.transport.leftovers import partials, rescue, strays
from clr_client.transport.listing import Listing
from clr_client.transport.progress import Progress
from clr_client.transport.rsync import PARTIAL_DIR
from clr_client.transport.ssh import Link, pin, remembered_fingerprints
from clr_client.transport.transfer import Transfer, fetch, list_source
from clr_client.transport.versions import rsync_warning, versions
from clr_client.transport.workers import fetch_all

__all__ = [
    "PARTIAL_DIR",
    "Batch",
    "Link",
    "Listing",
    "Progress",
    "Transfer",
    "fetch",
    "fetch_all",
    "limited",
    "list_source",
    "partials",
    "pin",
    "remembered_fingerprints",
    "rescue",
    "rsync_warning",
    "strays",
    "versions",
]
