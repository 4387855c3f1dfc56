"""Who may ask: the API keys, compared in constant time (worker process, any thread)."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from gpupool.errors import ConfigError, Unauthorized

log = logging.getLogger(__name__)

ID_DIGITS = 8
HASHED = re.compile(r"sha256:([0-9a-f]{64})")


class KeyRing:
    """The keys of one pool; without any, everybody may ask.

    Those of the file are read again whenever it changes, so that a key is given or taken away
    without a restart. A file that cannot be read any more changes nothing: the log says so.
    """

    def __init__(self, keys: Iterable[str], file: Path | None = None) -> None:
        self._fixed = [sha256(key.encode()).digest() for key in keys]
        self._file = file
        self._seen = _stamp(file)
        self._digests = self._fixed + (read_key_file(file) if file is not None else [])

    def fits(self, authorization: str, x_api_key: str = "") -> bool:
        """Whether one of the headers Authorization and X-Api-Key holds one of the keys."""
        if self._file is not None and _stamp(self._file) != self._seen:
            self._read_again(self._file)
        if not self._digests:
            return True
        digest = _digest_of(authorization, x_api_key)
        # Every key is compared, so that the time tells nothing about any.
        matches = [hmac.compare_digest(digest, other) for other in self._digests]
        return any(matches)

    def require(self, authorization: str, x_api_key: str = "") -> None:
        """Unauthorized unless `fits`."""
        if self.fits(authorization, x_api_key):
            return
        if _given_in(authorization, x_api_key):
            raise Unauthorized("the API key that was sent is not known to this pool")
        raise Unauthorized("this route needs an API key; send it as 'Authorization: Bearer KEY'")

    def fit(self, headers: Iterable[tuple[str, str]]) -> bool:
        """The same for the headers of a request that gunicorn parsed (names in upper case)."""
        return self.fits(*_headers_of_key(headers))

    def word_of(self, headers: Iterable[tuple[str, str]]) -> int:
        """64 bits of the digest of the key in such headers, never 0; to tell keys that fit from
        each other."""
        return int.from_bytes(_digest_of(*_headers_of_key(headers))[:8]) or 1

    def id_of(self, headers: Iterable[tuple[str, str]]) -> str:
        """Which of the keys it is, for the log: the first 8 digits of its SHA-256, by which its
        line in a file of hashes is found and no key is; "" where there are none."""
        return _digest_of(*_headers_of_key(headers)).hex()[:ID_DIGITS] if self._digests else ""

    def _read_again(self, file: Path) -> None:
        self._seen = _stamp(file)
        try:
            self._digests = self._fixed + read_key_file(file)
        except ConfigError as error:
            log.error("the API keys stay as they were: %s", error)
        else:
            log.info("the API keys were read again num_keys=%d", len(self._digests))


def _headers_of_key(headers: Iterable[tuple[str, str]]) -> tuple[str, str]:
    given = {"AUTHORIZATION": "", "X-API-KEY": ""}
    for name, value in headers:
        if name in given:
            given[name] = value
    return given["AUTHORIZATION"], given["X-API-KEY"]


def _digest_of(authorization: str, x_api_key: str) -> bytes:
    return sha256(_given_in(authorization, x_api_key).encode("utf-8", "replace")).digest()


def _given_in(authorization: str, x_api_key: str) -> str:
    """The key that the headers hold."""
    scheme, _, given = authorization.partition(" ")
    return (given if scheme.lower() == "bearer" else x_api_key).strip()


def read_key_file(path: Path) -> list[bytes]:
    """Digests of the keys in a file; see `key_lines`."""
    return [_digest(key) for key in key_lines(path)]


def key_lines(path: Path, flag: str = "--api_key_file") -> list[str]:
    """The keys in a file: one a line, plain or as sha256:HEX; lines that begin with # are for
    people. ConfigError, by the flag that names the file, where there is none: it would open the
    pool to everybody."""
    try:
        lines = path.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII text"
        raise ConfigError(f"{flag} {str(path)!r} cannot be read: {reason}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{flag} {str(path)!r} has no key; write one on a line")
    return keys


def _digest(key: str) -> bytes:
    hashed = HASHED.fullmatch(key)
    return bytes.fromhex(hashed[1]) if hashed else sha256(key.encode()).digest()


def _stamp(path: Path | None) -> tuple[int, ...] | None:
    """Changes when the file does."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
