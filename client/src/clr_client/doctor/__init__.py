"""`clr doctor`: everything that goes wrong at set-up, checked in order, each with its remedy."""

from clr_client.doctor.checks import CHECKS
from clr_client.doctor.examination import examine
from clr_client.doctor.finding import Check, Finding, Result

__all__ = ["CHECKS", "Check", "Finding", "Result", "examine"]
