"""A server for tests of clients: it serves the files of a client, and forwards everything else to the API.

So a page and the API have one origin. A request may ask for a fault by the header `x-fault`, a JSON object:
`forward` (the API gets the request), then `cut` (no answer), `half` (half of one), or `status`, `headers` and
`body` (this answer instead). With `hang`, the connection stays open until the client closes it.
"""

import http.client
import http.server
import json
import mimetypes
import socket
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

FILES = "/client/"
"""The path below which the files of the client are."""
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Site:
    """The server. Entered, it serves at `url`."""

    def __init__(self, api: str, files: Path) -> None:
        """`api` is the address of the service."""
        self.api = urlsplit(api)
        self.files = files
        self.requests: list[tuple[str, str]] = []
        """The method and the path of each request that was forwarded."""
        self.results: dict[str, Any] | None = None
        """What a page has posted to `FILES`/test/results."""
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if path == f"{FILES}test/results":
                    site.results = json.loads(body)
                    self._send(204, {}, b"")
                elif path.startswith(FILES):
                    file = site.files / path.removeprefix(FILES)
                    content = file.read_bytes() if file.is_file() else b""
                    content_type = mimetypes.guess_type(path)[0] or ""
                    self._send(200 if file.is_file() else 404, {"Content-Type": content_type}, content)
                else:
                    self._serve(json.loads(self.headers.get("x-fault", '{"forward": true}')), body)

            do_DELETE = do_PATCH = do_POST = do_PUT = do_GET  # noqa: N815

            def _serve(self, fault: Mapping[str, Any], body: bytes) -> None:
                status, headers, content = self._forward(body) if fault.get("forward") else (0, {}, b"")
                if fault.get("half"):
                    self._send(status, headers, content, content[: len(content) // 2])
                elif "status" in fault:
                    self._send(fault["status"], fault.get("headers", {}), fault["body"].encode())
                elif not (fault.get("cut") or fault.get("hang")):
                    self._send(status, headers, content)
                if fault.get("hang"):
                    self.connection.recv(1)
                if fault.get("hang") or fault.get("cut"):
                    # A reset, because a browser may take an orderly end for an empty answer.
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

            def _forward(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
                site.requests.append((self.command, urlsplit(self.path).path))
                connection = http.client.HTTPConnection(str(site.api.hostname), site.api.port)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
                connection.request(self.command, self.path, body or None, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                return answer.status, dict(answer.getheaders()), content

            def _send(
                self, status: int, headers: Mapping[str, str], content: bytes, sent: bytes | None = None
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content if sent is None else sent)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
