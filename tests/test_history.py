"""What a process remembers of its server, on clocks that the test moves."""

from __future__ import annotations

import pytest

from serverless_pg_kit.clock import Clock
from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit.decisions.lease import CHEAPEST_CONNECT, REFUSAL_MEMORY
from serverless_pg_kit.history import PAUSES, USUAL_CONNECT, History
from serverless_pg_kit.settings import Settings

LONGEST = 300.0
MIDDLE = 0.5  # the dice that spread nothing
ROOM = Census(100, None, None, 50, 50, 50, 50, 10)
AMPLE = ROOM._replace(used=40)
TIGHT = ROOM._replace(used=90)
FULL = ROOM._replace(used=100)


class Hands:
    """Two clocks that stand still until they are moved."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.monotonic = 50.0

    def clock(self) -> Clock:
        """Return them as the engine sees them."""
        return Clock(monotonic=lambda: self.monotonic, wall=lambda: self.wall)

    def move(self, seconds: float, *, frozen: float = 0.0) -> None:
        """Let time pass, and then `frozen` seconds in which the process stands still."""
        self.monotonic += seconds
        self.wall += seconds + frozen


@pytest.fixture
def hands() -> Hands:
    """Clocks that stand still."""
    return Hands()


@pytest.fixture
def history(hands: Hands) -> History:
    """A history at the settings' defaults, in which nothing has happened."""
    return History(hands.clock(), Settings())


def serve(history: History, hands: Hands, pause: float) -> None:
    """Let a request come after `pause` seconds, and end at once."""
    hands.move(pause)
    history.note_request(hands.wall)
    history.released_at = hands.wall


def seconds(history: History, hands: Hands, age: float = 0.0, waited: float = 0.0) -> float:
    """Return the lease of a connection of that `age`."""
    return history.lease(hands.wall - age, waited).seconds


def intervals(history: History, hands: Hands, *censuses: Census) -> list[float]:
    """Take `censuses`, each when it is due, and return the seconds after each until the next."""
    found = []
    for census in censuses:
        hands.move(max(0.0, history.census_at - hands.wall))
        history.note_census(census, MIDDLE)
        found.append(history.census_at - hands.wall)
    return found


def test_lease_is_long_until_something_is_known(history: History, hands: Hands) -> None:
    """A container that has seen nothing takes it that there is room."""
    assert seconds(history, hands) == LONGEST


def test_census_with_room_keeps_the_lease_long(history: History, hands: Hands) -> None:
    """However old the connection, and however long the census is past: the next one will tell."""
    history.note_census(ROOM, MIDDLE)
    hands.move(60.0)
    assert seconds(history, hands, age=3600.0) == LONGEST


def test_latest_census_counts(history: History, hands: Hands) -> None:
    """The lease shortens when the room shrinks, and is long again when there is room."""
    history.note_census(ROOM, MIDDLE)
    assert seconds(history, hands) == LONGEST
    history.note_census(TIGHT, MIDDLE)
    assert seconds(history, hands) == pytest.approx(5.0)
    history.note_census(FULL, MIDDLE)
    assert seconds(history, hands) == USUAL_CONNECT
    history.note_census(ROOM, MIDDLE)
    assert seconds(history, hands) == LONGEST


@pytest.mark.parametrize("lease", [0.0, 7.0])
def test_setting_is_the_longest_lease(hands: Hands, lease: float) -> None:
    """With room or not yet counted, a connection idles for as long as the setting allows."""
    history = History(hands.clock(), Settings(lease=lease))
    assert seconds(history, hands) == lease
    history.note_census(ROOM, MIDDLE)
    assert seconds(history, hands) == lease


@pytest.mark.parametrize(("conn_utilization", "lease"), [(0.5, USUAL_CONNECT), (0.8, 5.0), (0.9, LONGEST)])
def test_setting_says_what_is_room(hands: Hands, conn_utilization: float, lease: float) -> None:
    """The same census is peace, tightness or pressure, as `conn_utilization` has it."""
    history = History(hands.clock(), Settings(conn_utilization=conn_utilization))
    history.note_census(TIGHT, MIDDLE)
    assert seconds(history, hands) == pytest.approx(lease)


def test_first_census_is_due_at_once(history: History, hands: Hands) -> None:
    """The first census waits for nothing."""
    assert history.census_at < hands.wall


def test_calm_censuses_double_the_interval(history: History, hands: Hands) -> None:
    """The longer there was room, the later it is checked again, up to `census_ttl`."""
    assert intervals(history, hands, *[ROOM] * 5) == pytest.approx([1.0, 2.0, 4.0, 6.0, 6.0])


@pytest.mark.parametrize("census", [TIGHT, FULL])
def test_census_without_room_is_soon_followed_and_ends_the_calm(history: History, hands: Hands, census: Census) -> None:
    """While room is short it is checked every second, and the first census that sees room again is checked as soon."""
    found = intervals(history, hands, ROOM, ROOM, ROOM, census, census, ROOM, ROOM)
    assert found == pytest.approx([1.0, 2.0, 4.0, 1.0, 1.0, 1.0, 2.0])


def test_full_server_is_no_calm_even_if_it_may_be_full(hands: Hands) -> None:
    """With a `conn_utilization` of 1, peace has to last anew after a census that saw no slot free."""
    history = History(hands.clock(), Settings(conn_utilization=1.0))
    assert intervals(history, hands, ROOM, ROOM, FULL, ROOM, ROOM)[3:] == pytest.approx([1.0, 2.0])


def test_refusal_ends_the_calm(history: History, hands: Hands) -> None:
    """Who was refused checks every second, whatever it counts, until the refusal is forgotten."""
    assert intervals(history, hands, ROOM, ROOM)[-1] == pytest.approx(2.0)
    history.note_refusal()
    assert intervals(history, hands, AMPLE, AMPLE) == pytest.approx([1.0, 1.0])
    hands.move(REFUSAL_MEMORY)
    assert intervals(history, hands, AMPLE, AMPLE) == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize(("dice", "interval"), [(0.0, 0.75), (0.5, 1.0), (0.9, 1.2)])
def test_dice_spread_the_censuses(history: History, hands: Hands, dice: float, interval: float) -> None:
    """Containers that started together do not ask together."""
    history.note_census(ROOM, dice)
    assert history.census_at - hands.wall == pytest.approx(interval)


def test_census_ttl_of_zero_counts_every_time(hands: Hands) -> None:
    """The setting bounds the interval from the first census on."""
    history = History(hands.clock(), Settings(census_ttl=0.0))
    assert intervals(history, hands, ROOM, TIGHT, ROOM) == [0.0, 0.0, 0.0]


def test_refusal_outdates_a_census(history: History, hands: Hands) -> None:
    """A server that refuses has no room, whatever was counted before; after a while that is forgotten."""
    history.note_census(AMPLE, MIDDLE)
    hands.move(1.0)
    history.note_refusal()
    assert seconds(history, hands) == USUAL_CONNECT
    hands.move(REFUSAL_MEMORY * 0.99)
    assert seconds(history, hands) == USUAL_CONNECT
    hands.move(REFUSAL_MEMORY * 0.02)
    assert seconds(history, hands) == LONGEST


@pytest.mark.parametrize("pause", [0.0, 1.0])
def test_census_with_ample_room_outdates_a_refusal(history: History, hands: Hands, pause: float) -> None:
    """Also one that was taken in the same moment: it came with the connection that was had in the end."""
    history.note_refusal()
    hands.move(pause)
    history.note_census(AMPLE, MIDDLE)
    assert seconds(history, hands) == LONGEST


@pytest.mark.parametrize(("census", "later"), [(ROOM, LONGEST), (TIGHT, 5.0), (FULL, USUAL_CONNECT)])
def test_census_without_ample_room_does_not_outdate_a_refusal(
    history: History, hands: Hands, census: Census, later: float
) -> None:
    """Little room that is contended is none, and a moment's dip is not peace; what was counted holds afterwards."""
    history.note_refusal()
    hands.move(1.0)
    history.note_census(census, MIDDLE)
    assert seconds(history, hands) == USUAL_CONNECT
    hands.move(REFUSAL_MEMORY)
    assert seconds(history, hands) == pytest.approx(later)


@pytest.mark.parametrize(("census", "lease"), [(AMPLE, LONGEST), (ROOM, USUAL_CONNECT)])
def test_long_wait_is_remembered_in_calm(history: History, hands: Hands, census: Census, lease: float) -> None:
    """A connection that was hard to get is not held on the word of a census that saw some room, but of ample room."""
    history.note_census(census, MIDDLE)
    assert seconds(history, hands, waited=0.5) == LONGEST
    assert seconds(history, hands, waited=0.6) == lease


def test_pauses_decide_on_a_full_server(history: History, hands: Hands) -> None:
    """Who is called all the time keeps its connection between requests, who is called seldom closes at once."""
    history.note_census(FULL, MIDDLE)
    for _ in range(PAUSES):
        serve(history, hands, pause=USUAL_CONNECT / 2)
    assert seconds(history, hands) == USUAL_CONNECT
    for _ in range(PAUSES):
        serve(history, hands, pause=USUAL_CONNECT * 2)
    assert seconds(history, hands) == 0


def test_only_the_latest_pauses_count(history: History, hands: Hands) -> None:
    """A container that becomes busy is known as busy as soon as most of its latest pauses were short."""
    history.note_census(FULL, MIDDLE)
    for _ in range(1000):
        serve(history, hands, pause=5.0)
    for _ in range(PAUSES // 2):
        serve(history, hands, pause=0.001)
        assert seconds(history, hands) == 0
    serve(history, hands, pause=0.001)
    assert seconds(history, hands) > 0


def test_pause_ends_where_the_request_begins(history: History, hands: Hands) -> None:
    """A request that takes long is no pause."""
    history.note_census(FULL, MIDDLE)
    for _ in range(PAUSES):
        hands.move(0.001)
        history.note_request(hands.wall)
        hands.move(60.0)
        history.released_at = hands.wall
    assert seconds(history, hands) == USUAL_CONNECT


def test_first_request_has_no_pause_before_it(history: History, hands: Hands) -> None:
    """A container's start is not taken for a long pause."""
    history.note_census(FULL, MIDDLE)
    serve(history, hands, pause=0.0)
    assert seconds(history, hands) == USUAL_CONNECT


def test_age_of_the_connection_ends_its_turn(history: History, hands: Hands) -> None:
    """Of two connections of one busy container, the older one is given up first."""
    history.note_census(FULL, MIDDLE)
    for _ in range(PAUSES):
        serve(history, hands, pause=0.001)
    assert seconds(history, hands, age=0.09) == USUAL_CONNECT
    assert seconds(history, hands, age=0.11) == 0


def test_long_wait_shortens_the_turn(history: History, hands: Hands) -> None:
    """Of two connections of the same age, the one that had to be waited for is given up first."""
    history.note_census(FULL, MIDDLE)
    assert seconds(history, hands, age=0.05, waited=0.0) == USUAL_CONNECT
    assert seconds(history, hands, age=0.05, waited=5.0) == 0


def test_measured_connects_replace_the_guess(history: History, hands: Hands) -> None:
    """What a reconnect costs is learned, and a single slow one does not decide."""
    history.note_census(FULL, MIDDLE)
    history.note_connect(0.05)
    assert USUAL_CONNECT < seconds(history, hands) < 0.03
    for _ in range(50):
        history.note_connect(0.0)
    assert seconds(history, hands) == CHEAPEST_CONNECT


def test_freeze_is_a_pause(history: History, hands: Hands) -> None:
    """A container that was frozen between its requests was not called in that time."""
    history.note_census(FULL, MIDDLE)
    serve(history, hands, pause=0.0)
    hands.move(0.0, frozen=60.0)
    serve(history, hands, pause=0.0)
    assert seconds(history, hands) == 0


def test_server_is_down_for_as_long_as_told(history: History, hands: Hands) -> None:
    """Measured by the time of day: a container that was frozen meanwhile waits for the server again."""
    assert not history.is_down
    history.note_down(1.0)
    assert history.is_down
    hands.move(0.0, frozen=1.0)
    assert not history.is_down


def test_down_for_no_time_is_not_down(history: History) -> None:
    """0 switches it off."""
    history.note_down(0.0)
    assert not history.is_down


def test_election_may_be_asked_for_again_after_its_interval(history: History, hands: Hands) -> None:
    """A process asks for the election of a cleaner at once, and then not before its interval is over."""
    assert history.may_reap
    history.note_reap(2.0)
    assert not history.may_reap
    hands.move(1.9)
    assert not history.may_reap
    hands.move(0.1, frozen=0.1)
    assert history.may_reap


def test_full_server_is_pressure_even_if_it_may_be_full(hands: Hands) -> None:
    """With a `conn_utilization` of 1 there is no line to stay below, but turns end all the same."""
    history = History(hands.clock(), Settings(conn_utilization=1.0))
    history.note_census(FULL, MIDDLE)
    assert seconds(history, hands) == USUAL_CONNECT
    hands.move(1.0)
    assert seconds(history, hands, age=1.0) == 0


def test_who_gave_up_what_took_long_lets_others_pass(history: History, hands: Hands) -> None:
    """Once, and only who gave its connection up after a slow connect of a moment ago."""
    history.note_connect(0.45)
    assert history.first_delay(10.0) == 0.0
    history.note_yield()
    assert 0.3 <= history.first_delay(10.0) <= 0.9
    history.note_connect(0.45)
    assert history.first_delay(10.0) == 0.0
    history.note_yield()
    hands.move(0.0, frozen=60.0)
    assert history.first_delay(10.0) == 0.0


def test_slow_connect_before_the_latest_tells_nothing(history: History) -> None:
    """The line has gone: whoever comes back need not keep away from it."""
    history.note_connect(30.0)
    history.note_connect(0.25)
    history.note_yield()
    assert history.first_delay(10.0) == 0.0


def test_census_of_a_new_connection_is_put_off_under_pressure(history: History, hands: Hands) -> None:
    """The one that it would take otherwise, in its first message or in the one that ends its request."""
    history.note_refusal()
    assert not history.put_census_off(0.0)
    history.note_census(FULL, MIDDLE)
    hands.move(3.0)
    assert history.put_census_off(0.0)
    assert history.census_at - hands.wall == pytest.approx(9.0)
    hands.move(3.0)
    assert not history.put_census_off(0.0)  # the refusal is forgotten
    assert history.put_census_off(0.6)
    hands.move(6.0)
    assert not history.put_census_off(0.6)


def test_census_that_is_due_every_time_is_never_put_off(hands: Hands) -> None:
    """With `census_ttl=0` nothing is known for any time."""
    history = History(hands.clock(), Settings(census_ttl=0.0))
    history.note_refusal()
    history.note_census(FULL, MIDDLE)
    assert not history.put_census_off(60.0)
