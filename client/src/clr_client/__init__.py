"""Content Library Rsync: pulls VM templates with rsync and publishes them as a subscribable content library."""

__version__ = "1.0.0"
