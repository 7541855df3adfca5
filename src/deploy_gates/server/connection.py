"""A connection that takes neither endless headers nor endless time to send them.

uvicorn bounds neither: without this, anybody who can connect may fill its memory, or all its places.
"""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEADERS_MAX_BYTES = 64 << 10
HEADERS_S = 5.0
"""How long a client may take from connecting, or from a request's first byte, to the end of its headers."""


class Connection(HttpToolsProtocol):
    """uvicorn's own, ended with a 431 or a 408 where the headers are too long or too slow."""

    _timer: asyncio.TimerHandle | None = None
    _is_in_headers = True
    _received = 0
    """Bytes of headers that have not ended yet."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._is_in_headers:
            self._received += len(data)
        super().data_received(data)
        if not self._is_in_headers:
            self._received = 0
        if self._received > HEADERS_MAX_BYTES:
            self._end(431, f"the headers are longer than {HEADERS_MAX_BYTES:,} bytes")
        elif not self._is_waiting():
            self._stop()
        elif self._timer is None:
            self._start()

    def _is_waiting(self) -> bool:
        """Whether headers are owed; also after an answer, once anything else than a request has come."""
        is_answered = self.cycle is not None and self.cycle.response_complete
        return self._is_in_headers or (is_answered and self.timeout_keep_alive_task is None)

    def on_message_begin(self) -> None:
        self._is_in_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        super().on_headers_complete()

    def _start(self) -> None:
        self._timer = self.loop.call_later(HEADERS_S, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self._end(408, f"the headers took longer than {HEADERS_S:.0f} s")

    def _end(self, status: int, message: str) -> None:
        self._stop()
        if self.transport.is_closing():
            return
        is_free = self.cycle is None or self.cycle.response_complete
        if is_free:  # otherwise this would stand in the middle of another answer
            content = json.dumps({"error": message, "hint": ""}).encode()
            self.transport.write(
                b"%bcontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b" % (STATUS_LINE[status], len(content), content)
            )
        self.transport.close()
