"""The responses to reads of a board: with an ETag, and 304 for a client that has this answer already.

A read is always done, as if there were no If-None-Match: 304 spares the sending only. So it never hides a change.

The ETag of a top or a page is a cryptographic hash of the body, so all processes give the same answer the same
one. For each context that would take 4 % more of a core, and few clients ever send an ETag. So the first ETag of
an answer about users is Python's own hash, whose key is random and known to this process only; it names the
process, too. A client that sends any ETag gets the cryptographic hash.

A stale answer has no ETag and may not be stored: a cache would show its Age with later answers.
"""

import math
import secrets
from typing import Any

from leaderboard.http import paging, security
from leaderboard.http.asgi import AsgiScope
from leaderboard.http.response import Headers, NoContent, Response
from leaderboard.model import EncodedTop, Page, encode_json, etag_of
from leaderboard.service.cache_reads import Reply

_NOT_MODIFIED = 304
_STALE = security.encode_headers("application/json")


class ReadResponses:
    """Makes the responses to reads of a board."""

    def __init__(self, *, storable: bool) -> None:
        """With `storable`, browsers and proxies may store a response, but must ask before they use it."""
        headers = security.STORABLE if storable else security.DATA
        self._headers = security.encode_headers("application/json", headers)
        self._not_modified_headers = security.encode_headers(None, headers)
        self._process = b'"%b.' % secrets.token_urlsafe(12).encode()

    def of(self, scope: AsgiScope, reply: Reply[Any]) -> Response:
        """Returns the response with the result of `reply`, encoded once."""
        response: Response | None = reply.response
        if response is None:
            response = reply.response = self._first(reply)
        return self._unless_known(scope, response)

    def page(self, scope: AsgiScope, page: Page) -> Response:
        """Returns the response with a page."""
        body = encode_json(paging.page_answer(page))
        return self._unless_known(scope, Response(200, self._headers, body, etag=etag_of(body)))

    def _first(self, reply: Reply[Any]) -> Response:
        """Returns the response for clients without an ETag."""
        answer = reply.result
        if isinstance(answer, EncodedTop):
            body, etag = answer.body, answer.etag
        else:
            body, etag = encode_json(answer), b""
        if reply.age_s is not None:
            return Response(200, (*_STALE, *age_header(reply)), body)
        return Response(200, self._headers, body, etag=etag or self._own_etag(body))

    def _unless_known(self, scope: AsgiScope, response: Response) -> Response:
        """Returns the response, or 304 if the client has it."""
        for name, _ in scope["headers"]:
            if name == b"if-none-match" and response.etag:
                return self._conditional(scope, response)
        return response

    def _conditional(self, scope: AsgiScope, response: Response) -> Response:
        """Returns the response to a request with If-None-Match: 304, or 200 with the cryptographic hash."""
        # The list may have it as W/"…", because a proxy that compresses makes it weak.
        asked = b", ".join(value for name, value in scope["headers"] if name == b"if-none-match")
        if response.etag in asked or asked.strip() == b"*":
            return self._not_modified(response.etag)
        if not response.etag.startswith(self._process):
            return response
        etag = etag_of(response.body)
        if etag in asked:
            return self._not_modified(etag)
        return Response(200, self._headers, response.body, etag=etag)

    def _not_modified(self, etag: bytes) -> Response:
        return NoContent((*self._not_modified_headers, (b"etag", etag)), _NOT_MODIFIED)

    def _own_etag(self, body: bytes) -> bytes:
        return b'%b%x"' % (self._process, hash(body))


def age(reply: Reply[Any]) -> int | None:
    """Returns the age of a stale answer in seconds, None if it is not stale."""
    return None if reply.age_s is None else math.ceil(reply.age_s)


def age_header(reply: Reply[Any]) -> Headers:
    """Returns the header Age of a stale answer."""
    seconds = age(reply)
    return () if seconds is None else ((b"age", str(seconds).encode()),)
