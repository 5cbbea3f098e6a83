"""One JSON object per line, with the key of the object that it is about."""

import json
import logging
import sys
from datetime import UTC, datetime

from typing_extensions import override


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time, level, logger, message, key, error."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        key = getattr(record, "key", None)
        if key is not None:
            found["key"] = key
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)


def configure(level: int = logging.INFO) -> None:
    """Everything of this process goes to standard error in this format; kopf tells only what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
