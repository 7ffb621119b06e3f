"""HTTP connections with time limits, which also answer clients that have stopped sending."""

from __future__ import annotations

import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class TimeLimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with checks that it leaves to a proxy.

    Headers that do not arrive within `header_seconds` are answered with 408, an incomplete request with 400 if the
    client still listens; and a client that stops sending after a complete request gets its answer.
    """

    def __init__(self, *args, header_seconds: float, **settings):
        super().__init__(*args, **settings)
        self.header_seconds = header_seconds

    def connection_made(self, transport):
        super().connection_made(transport)
        self.header_timer = self.loop.call_later(self.header_seconds, self._tell_too_slow)
        self.received_anything = False

    def connection_lost(self, exc):
        self._stop_header_timer()
        super().connection_lost(exc)

    def data_received(self, data):
        self.received_anything = True
        if self.header_timer is None and self._waits_for_a_request():
            self.header_timer = self.loop.call_later(self.header_seconds, self._tell_too_slow)
        super().data_received(data)

    def on_headers_complete(self):
        self._stop_header_timer()
        super().on_headers_complete()

    def eof_received(self):
        if self._waits_for_a_request():
            if self.received_anything and self.header_timer is not None:
                self.send_400_response("The request ends within its headers.")
            return None
        if self.cycle.more_body:
            self.cycle.disconnected = True  # the handler waiting for the body ends without an answer
            self.cycle.message_event.set()
            self.send_400_response("The request ends before its body does. Is Content-Length right?")
            return None
        self.cycle.keep_alive = False
        return True  # keeps our side open for the answer

    def send_400_response(self, msg):
        self._refuse("400 Bad Request", msg)

    def _waits_for_a_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _tell_too_slow(self):
        self.header_timer = None
        if self.transport.is_closing():
            return
        if self.received_anything:
            self._refuse("408 Request Timeout", f"The headers did not arrive within {self.header_seconds:g} seconds.")
        else:
            self.transport.close()

    def _refuse(self, status: str, message: str):
        body = json.dumps({"error": message}).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _stop_header_timer(self):
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None
