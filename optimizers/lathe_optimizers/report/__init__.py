"""The HTML report of a run: one page for people, beside `summary.json` for machines."""

from lathe_optimizers.report.page import render

__all__ = ["render"]
