"""Settings for all tests."""

from hypothesis import settings

# How long one example takes says something about the machine, not about the code.
settings.register_profile("clr", deadline=None)
settings.load_profile("clr")
