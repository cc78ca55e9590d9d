"""``python -m clr_client`` is ``clr``."""

from clr_client.cli import main

main()
