"""Settings for all tests."""

import signal

from hypothesis import settings

# How long one example takes says something about the machine, not about the code.
settings.register_profile("clr", deadline=None)
settings.load_profile("clr")

# A shell's background job ignores Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
