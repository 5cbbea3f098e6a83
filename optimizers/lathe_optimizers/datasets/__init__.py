"""Data sets of a document: opened by format, split by seed, checked before any work."""

from lathe_optimizers.datasets.checks import check_against_model, check_data
from lathe_optimizers.datasets.opening import open_datasets

__all__ = ["check_against_model", "check_data", "open_datasets"]
