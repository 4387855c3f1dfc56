"""The body of a host's answer, read within limits (preflight; worker process, the engine's loop).

A few bytes of a compressed answer can become gigabytes, and an answer need never end: nothing here
holds more of one than it is told to.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator

import httpx

from gpupool.engines.saas_errors import HostGarbled

PIECE_BYTES = 1 << 16
MAX_EVENT_BYTES = 16 << 20
PLAIN, GZIP = ("", "identity"), ("gzip", "x-gzip")
ENCODING = {"Accept-Encoding": "identity"}
"""What hosts are asked for; some compress nevertheless."""


async def pieces_of(response: httpx.Response) -> AsyncGenerator[bytes]:
    """The body as it comes, decompressed a little at a time, which httpx does not."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in (*PLAIN, *GZIP):
        raise HostGarbled(f"an answer that is compressed as {encoding[:40]!r}")
    decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
    async for piece in response.aiter_raw():
        if encoding in PLAIN:
            yield piece
            continue
        try:
            while True:
                plain = decoder.decompress(piece, PIECE_BYTES)
                yield plain
                piece = decoder.unconsumed_tail
                if not piece and len(plain) < PIECE_BYTES:
                    break
        except zlib.error:
            raise HostGarbled("an answer that is no gzip, which it says it is") from None


async def whole_of(response: httpx.Response, max_bytes: int) -> bytes:
    """All of it; HostGarbled if there is more than that."""
    raw = bytearray()
    async for piece in pieces_of(response):
        raw += piece
        if len(raw) > max_bytes:
            raise HostGarbled(f"an answer of more than {max_bytes} bytes")
    return bytes(raw)


async def lines_of(response: httpx.Response) -> AsyncGenerator[bytes]:
    """Split at line feeds alone: a text may have other characters that Python ends lines at."""
    pending: list[bytes] = []
    num_pending = 0
    async for piece in pieces_of(response):
        *whole, rest = piece.split(b"\n")
        if whole:
            yield b"".join((*pending, whole[0]))
            for line in whole[1:]:
                yield line
            pending, num_pending = [], 0
        pending.append(rest)
        num_pending += len(rest)
        if num_pending > MAX_EVENT_BYTES:
            raise HostGarbled(f"an event of more than {MAX_EVENT_BYTES} bytes")
    if num_pending:
        yield b"".join(pending)
