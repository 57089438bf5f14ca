"""How log records are written: to stderr, one line a record, as text or as JSON.

Fields given by `extra=` appear in both formats. Only our own packages log at the chosen level;
libraries speak from warning upwards. Tracebacks follow their line in text, and are a field in JSON.
"""

import json
import logging
import sys
import time

from kersey_control.options import LogFormat, LogLevel

_OWN = ("kersey_control", "kersey_loader")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure_logging(form: LogFormat, level: LogLevel) -> None:
    """Write this process's log to stderr in `form`, from `level` upwards. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _OWN:
        logging.getLogger(name).setLevel(level.upper())


class TextFormatter(logging.Formatter):
    """Write `time level where message key=value ...`; times are UTC."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback behind it if there is one."""
        where = record.name.rpartition(".")[2]
        head = f"{_time(record)} {record.levelname.lower()} {where} {record.getMessage()}"
        pairs = (f"{name}={_quoted(value)}" for name, value in _fields(record).items())
        # Control characters in a field are escaped by its quotes; here those of a message.
        line = " ".join((head, *pairs)).replace("\n", "\\n")
        trace = _traceback(self, record)
        return f"{line}\n{trace}" if trace else line


class JsonFormatter(logging.Formatter):
    """Write one JSON object; a field never replaces time, level, logger or message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts: dict[str, object] = {"time": _time(record), "level": record.levelname.lower()}
        facts |= {"logger": record.name, "message": record.getMessage()}
        trace = _traceback(self, record)
        facts |= {"exception": trace} if trace else {}
        return json.dumps(facts | _fields(record) | facts, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _quoted(value: object) -> str:
    """Return the value so that the line still splits at blanks: JSON text where it must be."""
    text = str(value)
    plain = text.isascii() and text.isprintable() and text and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)
