"""`clr fleet`: all sites at a glance, each read from the status that it serves itself."""
