from __future__ import annotations

import pytest

from serverless_pg_kit.sqlstate import TRACED_ATTEMPTS, TraceRation, codes_in


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


GERMAN = "FATAL:  die verbleibenden Verbindungen sind reserviert"
ENGLISH = "FATAL:  sorry, too many clients already"


def traced(ration: TraceRation, attempts: int, message: str, is_understood: bool) -> int:
    """Return how many of `attempts`, all refused with `message`, are traced."""
    count = 0
    for _ in range(attempts):
        count += ration.next()
        ration.learn(message, is_understood)
    return count


def test_traces_end_when_the_words_are_understood() -> None:
    """A trace leaks a little, so a server whose words can be read is traced once, however often it refuses."""
    assert traced(TraceRation(), 1000, ENGLISH, is_understood=True) == 1


def test_traces_go_on_while_nobody_understands() -> None:
    """A server that speaks another language is traced at every refusal, for the SQLSTATE is all there is."""
    assert traced(TraceRation(), 1000, GERMAN, is_understood=False) == 1000


def test_traces_begin_again_with_a_message_that_nobody_understands() -> None:
    """What was read before is no promise: the first strange answer brings the traces back."""
    ration = TraceRation()
    traced(ration, 5, ENGLISH, is_understood=True)
    assert not ration.next()
    ration.learn(GERMAN, is_understood=False)
    assert ration.next()


def test_network_errors_tell_nothing_about_the_servers_words() -> None:
    """A refused port neither ends the traces nor asks for more of them: they are rationed."""
    ration = TraceRation()
    assert traced(ration, 1000, "Connection refused", is_understood=True) == TRACED_ATTEMPTS
    assert traced(ration, 1000, "Connection refused", is_understood=False) == 0


def test_rules_by_sqlstate_trace_always() -> None:
    """A user whose rules name SQLSTATEs gets them at every attempt."""
    assert traced(TraceRation(always=True), 1000, ENGLISH, is_understood=True) == 1000
