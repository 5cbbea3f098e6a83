"""Trace and log settings, kept and answered as Triton does."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from lathe_runtimes.server.errors import Kind, RequestError

_TRACE: Final[Mapping[str, Any]] = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
_LOG: Final[Mapping[str, Any]] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


class TraceSettings:
    """Settings of the server, and of models where they differ. This server writes no traces: the level stays OFF."""

    def __init__(self) -> None:
        self._server: dict[str, Any] = dict(_TRACE)
        self._models: dict[str, dict[str, Any]] = {}

    def of(self, model: str = "") -> dict[str, Any]:
        """Settings in force."""
        return self._server | self._models.get(model, {})

    def update(self, changes: Mapping[str, Any], model: str = "") -> dict[str, Any]:
        """Change settings of the server or of one model; None goes back to what lies above. Gives those in force.

        Raises:
            RequestError: a value cannot be used; nothing is changed.
        """
        checked = {name: _trace_value(name, value) for name, value in changes.items() if name in _TRACE}
        own = self._models.setdefault(model, {}) if model else self._server
        for name, value in checked.items():
            if value is not None:
                own[name] = value
            elif model:
                own.pop(name, None)
            else:
                own[name] = _TRACE[name]
        return self.of(model)


def _trace_value(name: str, value: Any) -> Any:
    if name == "trace_file":
        raise RequestError("trace file location can not be updated through network protocol", Kind.UNSUPPORTED)
    if value is None:
        return None
    if name == "trace_mode":
        raise RequestError("trace mode can not be updated through network protocol", Kind.UNSUPPORTED)
    if name == "trace_level":
        levels = [value] if isinstance(value, str) else value
        if levels != ["OFF"]:
            raise RequestError("this server writes no traces: trace_level must be OFF")
        return levels
    text = str(value)
    if not text.removeprefix("-").isdigit() or not text.isascii():
        raise RequestError(f"Unable to parse {name!r}, got: {text[:80]}")
    return text


class LogSettings:
    """What the server logs; takes effect at once."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = dict(_LOG)

    def all(self) -> dict[str, Any]:
        """Settings in force."""
        return dict(self._values)

    def update(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change settings; gives those in force.

        Raises:
            RequestError: a value cannot be used; nothing is changed.
        """
        for name, value in changes.items():
            _check_log(name, value)
        self._values |= {name: value for name, value in changes.items() if name in _LOG}
        logging.getLogger("lathe_runtimes").setLevel(self._level())
        return self.all()

    def _level(self) -> int:
        values = self._values
        levels = {
            logging.DEBUG: values["log_verbose_level"] > 0,
            logging.INFO: values["log_info"],
            logging.WARNING: values["log_warning"],
            logging.ERROR: values["log_error"],
        }
        return min((level for level, wanted in levels.items() if wanted), default=logging.CRITICAL)


def _check_log(name: str, value: Any) -> None:
    if name == "log_file":
        raise RequestError("log file location can not be updated through network protocol", Kind.UNSUPPORTED)
    if name == "log_format" and value != "default":
        raise RequestError(f"invalid argument for log_format, got: {value!s:.80}: this server writes 'default'")
    if name == "log_verbose_level" and (type(value) is not int or value < 0):
        raise RequestError(f"{name}: write a whole number; found {value!r:.80}")
    if name in {"log_info", "log_warning", "log_error"} and not isinstance(value, bool):
        raise RequestError(f"{name}: write true or false; found {value!r:.80}")
