"""Whether a response is finished."""

from __future__ import annotations

from flask import Response
from werkzeug.wsgi import ClosingIterator

SHORT = 1 << 16
"""Bytes of a body that may be held in memory."""


def is_streaming(response: Response, method: str, has_connection: bool) -> bool:
    """Tell whether the body of `response` may still use the connection of its request, if that `has_connection`.

    A file that is passed through was opened before: without a connection it will not need one.
    """
    if method == "HEAD" or response.status_code in (204, 304) or response.status_code < 200:
        return False
    if is_page(response):
        response.make_sequence()
    return response.is_streamed and (has_connection or not response.direct_passthrough)


def is_page(response: Response) -> bool:
    """Tell whether `response` only looks like a stream: Flask made it of a small WSGI application, as of each
    ``abort``."""
    length = response.content_length
    return isinstance(response.response, ClosingIterator) and length is not None and length <= SHORT
