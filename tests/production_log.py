"""What is logged, as it is logged in production."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

import structlog

from app import configure_logging


@contextlib.contextmanager
def production_log() -> Iterator[io.StringIO]:
    """Everything that is logged inside, by us and by the libraries."""
    said, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with contextlib.redirect_stderr(said):
        configure_logging()
        root.addHandler(logging.StreamHandler())
    try:
        yield said
    finally:
        root.handlers[:], root.level = handlers, level
        structlog.reset_defaults()
