from __future__ import annotations

import pytest

from serverless_pg_kit.sqlstate import codes_in


def message(kind: bytes, body: bytes) -> bytes:
    """Return one message of the protocol."""
    return kind + (4 + len(body)).to_bytes(4, "big") + body


REFUSED = message(b"E", b"SFATAL\0VFATAL\0C53300\0Mtut mir leid\0\0")


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        (REFUSED, ["53300"]),
        (message(b"R", (0).to_bytes(4, "big")) + REFUSED, ["53300"]),
        (message(b"N", b"SNOTICE\0C00000\0\0") + REFUSED, ["53300"]),
        (message(b"S", b"TimeZone\0UTC\0"), []),
        (REFUSED[:7], []),
        (b"N", []),
        (b"", []),
        (b"\x16\x03\x01\x02\x00\x01E", []),
    ],
)
def test_codes_are_found_in_whole_messages(data: bytes, codes: list[str]) -> None:
    """Errors are found behind other messages; what is cut off or encrypted is no error."""
    assert codes_in(data) == codes
