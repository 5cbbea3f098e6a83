"""The HTML report of a run."""

import html
from collections.abc import Mapping

from lathe_api.manifest import StageRecord
from lathe_api.summary import Summary


def render(
    summary: Summary, records: Mapping[str, StageRecord], *, confusion: Mapping[str, list[list[int]] | None]
) -> str:
    """One self-contained page."""
    del records, confusion
    text = html.escape(summary.model_dump_json(by_alias=True, indent=2))
    return f"<!doctype html><html lang=en><title>{html.escape(summary.name)}</title><pre>{text}</pre></html>"
