"""Values that somebody will send one day: every field of every body and query is tried with all of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


TYPES = [None, True, False, 0, -1, 1, 1.5, "", " ", [], {}, nested(40), [None], {"a": {"b": [1]}}, "null", "true"]
NUMBERS = [2**31 - 1, 2**31, -(2**31), 2**63, 2**64, 10**30, 1e300, -1e300, 1e-300, 0.0001, 0.00049, -0.01, 10**9]
NUMBERS += [8, 101, 255, 256, 501, 1000.5, 100_000, 100_001, Decimal("0." + "1" * 60), "5", "٣", "1e3", "0x10"]
NUMBERS += ["Infinity"]
TEXTS = ["\x00", "a\x00b", "\x1b[31mred", "\x08", "\r\nBcc: x@example.com", "\u202egnp.exe", "\u2028", "\ufeff"]
TEXTS += ["\ufffe", "%", "_"]
TEXTS += ["'", '"', "\\", "'; DROP TABLE users; --", "{{7*7}}", "${7*7}", "=cmd|' /C calc'!A0"]
TEXTS += ["<svg onload=alert(1)>", "%s%n"]
TEXTS += ["../../etc/passwd", "#GGGGGG", "#12345", "#1122334455", "#112233\n", "\U0001f9ff" * 3, "x" * 255, "x" * 256]
TEXTS += ["é" * 2001]
TEXTS += ["x" * 40_000, "EUR\n", "12\n", "eur", "ＥＵＲ", "123", "1" * 21]
TIMES = ["2026-11-21", "2026-11-21T09:30:00", "2026-11-21 09:30:00Z", "2026-11-21T09:30:00+14:00"]
TIMES += ["0001-01-01T00:00:00+14:00"]
TIMES += ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00", "2026-12-31T23:59:60Z"]
TIMES += ["2026-13-01T00:00:00Z"]
TIMES += ["2026-03-29T02:30:00+01:00", "2026-10-25T02:30:00", "2026-11-21T24:00:00Z", "2026-11-21T09:30:00+25:00"]
TIMES += ["-2026-11-21T09:30:00Z"]
TIMES += ["2026-11-21T09:30:00.1234567890Z", "2026-11-21T09:30:00Z\n", "٢٠٢٦-11-21T09:30:00Z", "2026-W47-6", "now"]
TIMES += ["1795251000"]
ADDRESSES = ["localhost", "127.0.0.1", "0.0.0.0", "::1", "[::1]", "169.254.169.254", "192.168.1.5", "a..b", "-a"]
ADDRESSES += ["a" * 254, "1.2.3"]
ADDRESSES += ["http://127.0.0.1/", "http://user:pw@example.com/", "ftp://example.com", "javascript:alert(1)"]
ADDRESSES += ["http://", "//x", "http://[", "HTTP://X"]
CORPUS = [*TYPES, *NUMBERS, *TEXTS, *TIMES, *ADDRESSES]

EXTRAS = {
    "user_id": 1,
    "id": 1,
    "created_at": "2026-11-21T09:00:00Z",
    "no_such_field": None,
    "": 1,
    "__proto__": {},
    "a.b": 1,
}

UNREADABLE = {
    "nothing in it": b"",
    "cut off": b'{"name": "x"',
    "two documents": b'{"name": "x"}{"name": "y"}',
    "text after it": b'{"name": "x"} x',
    "duplicate keys": b'{"name": "x", "name": "y"}',
    "duplicate keys, spelled apart": b'{"name": "x", "n\\u0061me": "y"}',
    "duplicate keys inside": b'{"name": {"a": 1, "a": 1}}',
    "byte order mark": b'\xef\xbb\xbf{"name": "x"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "Latin-1": '{"name": "é"}'.encode("latin-1"),
    "overlong UTF-8": b'{"name": "\xc0\xaf"}',
    "surrogate in UTF-8": b'{"name": "\xed\xa0\x80"}',
    "lone surrogate": b'{"name": "\\ud800"}',
    "lone surrogate as a key": b'{"\\uDC00": 1}',
    "surrogates the wrong way round": b'{"name": ["\\ude00\\ud83d"]}',
    "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": Infinity}',
    "-Infinity": b'{"name": -Infinity}',
    "1e309": b'{"name": 1e309}',
    "1e-999999": b'{"name": 1e-999999}',
    "an exponent beyond all bounds": b'{"name": 1e99999999999999999999999}',
    "a number of 5000 digits": b'{"name": ' + b"1" * 5000 + b"}",
    "a fraction of 5000 digits": b'{"name": 0.' + b"1" * 5000 + b"}",
    "leading zero": b'{"name": 01}',
    "plus sign": b'{"name": +1}',
    "single quotes": b"{'name': 'x'}",
    "comment": b'{"name": "x"} // y',
    "trailing comma": b'{"name": "x",}',
    "control character": b'{"name": "\n"}',
    "bad escape": b'{"name": "\\x41"}',
    "100,000 levels of lists": b"[" * 100_000 + b"]" * 100_000,
    "100,000 levels of objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100,000 levels in a field": b'{"name": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a text without end": b"[" * 65 + b'"' + b'\\"' * 400_000,
}
