"""ssh and rsync: what the server has, and how it comes here."""

from clr_client.transport.allowance import limited
from clr_client.transport.batches import Batch
from clr_client.transport.leftovers import partials, rescue, strays
from clr_client.transport.listing import Listing
from clr_client.transport.probing import Login, log_in, rsync_protocol, unreadable
from clr_client.transport.progress import Progress
from clr_client.transport.rsync import PARTIAL_DIR
from clr_client.transport.ssh import Link, described, is_pinned, not_pinned, pin, remembered_fingerprints, shown_keys
from clr_client.transport.transfer import Transfer, fetch, list_source
from clr_client.transport.versions import rsync_warning, versions
from clr_client.transport.workers import fetch_all

__all__ = [
    "PARTIAL_DIR",
    "Batch",
    "Link",
    "Listing",
    "Login",
    "Progress",
    "Transfer",
    "described",
    "fetch",
    "fetch_all",
    "is_pinned",
    "limited",
    "list_source",
    "log_in",
    "not_pinned",
    "partials",
    "pin",
    "remembered_fingerprints",
    "rescue",
    "rsync_protocol",
    "rsync_warning",
    "shown_keys",
    "strays",
    "unreadable",
    "versions",
]
