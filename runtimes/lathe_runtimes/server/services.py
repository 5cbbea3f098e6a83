"""What the two protocols share."""

from dataclasses import dataclass, field

from lathe_runtimes.server.access import Access
from lathe_runtimes.server.control import ModelControl
from lathe_runtimes.server.registry import Registry
from lathe_runtimes.server.settings import LogSettings, TraceSettings
from lathe_runtimes.server.shared_memory import Regions


@dataclass
class Services:
    """State of one server."""

    registry: Registry
    control: ModelControl
    access: Access
    regions: Regions = field(default_factory=Regions)
    trace: TraceSettings = field(default_factory=TraceSettings)
    log: LogSettings = field(default_factory=LogSettings)
    ready: bool = True
    """False while the server stops: no new work should be sent."""
