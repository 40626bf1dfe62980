"""Leases: long with room, short without, and never worse than twice what a prophet would pay."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit.decisions.lease import (
    CHEAPEST_CONNECT,
    CONNECT_SHARE,
    DEAREST_CONNECT,
    LONGEST_TURN,
    NEW_SHARE,
    PATIENCE,
    REFUSAL_MEMORY,
    TIGHT_LEASE,
    Lease,
    Standing,
    choose_lease,
    is_pressed,
    may_skip_census,
    turn_seconds,
    usual_pause,
)

NEVER = math.inf

SECONDS = st.floats(0, 1) | st.floats(0, 1e6)
UTILIZATIONS = st.floats(0, 1)
CONNECTS = st.floats(0, 60) | st.floats(0, 0.05)
COSTS = st.floats(CHEAPEST_CONNECT, DEAREST_CONNECT)
PAUSES = st.lists(SECONDS, max_size=7)
LATELY = st.floats(0, REFUSAL_MEMORY, exclude_max=True)
PATIENTLY = st.floats(PATIENCE, 60, exclude_min=True)


@st.composite
def censuses(draw: st.DrawFn) -> Census:
    """Make a census as a server might answer it, also with limits of 0 and with reserves in use."""
    limits = st.integers(0, 2000)
    fleet = draw(limits)
    role, database = draw(st.integers(fleet, 2100)), draw(st.integers(fleet, 2100))
    used = draw(st.integers(max(role, database), 2200))
    new = draw(st.integers(0, fleet))
    return Census(
        draw(limits), draw(limits | st.none()), draw(limits | st.none()), used, role, database, fleet, fleet // 2, new
    )


STANDINGS = st.builds(
    Standing,
    census=st.none() | censuses(),
    refused_ago=SECONDS | st.just(NEVER),
    connect_seconds=CONNECTS,
    gaps=PAUSES,
    age=SECONDS,
    waited=SECONDS,
)


def server(used: int, limit: int = 100, fleet: int | None = None, new: int = 0) -> Census:
    """Return the census of a server with `limit` slots and `used` sessions, all of them the fleet's unless told."""
    return Census(limit, None, None, used, used, used, used if fleet is None else fleet, 0, new)


FULL = server(100)


def standing(
    census: Census | None = FULL,
    refused_ago: float = NEVER,
    connect_seconds: float = 0.005,
    gaps: tuple[float, ...] | list[float] = (),
    age: float = 0.0,
    waited: float = 0.0,
) -> Standing:
    """Return the standing of an engine, on a full server unless told otherwise."""
    return Standing(census, refused_ago, connect_seconds, gaps, age, waited)


def choose(known: Standing, longest: float = 300.0, conn_utilization: float = 0.8) -> Lease:
    """Return the lease with the settings' defaults."""
    return choose_lease(known, longest=longest, conn_utilization=conn_utilization)


def bounded(connect_seconds: float) -> float:
    """Return what a connect that was measured to take `connect_seconds` is taken to cost."""
    return min(max(connect_seconds, CHEAPEST_CONNECT), DEAREST_CONNECT)


@given(known=STANDINGS, longest=SECONDS, conn_utilization=UTILIZATIONS)
def test_lease_is_never_longer_than_the_setting(known: Standing, longest: float, conn_utilization: float) -> None:
    """Whatever is known, a connection stays between 0 seconds and the longest allowed, for a reason that is told."""
    lease = choose(known, longest, conn_utilization)
    assert 0 <= lease.seconds <= longest
    assert lease.reason


@given(known=STANDINGS, conn_utilization=UTILIZATIONS)
def test_lease_of_zero_keeps_nothing(known: Standing, conn_utilization: float) -> None:
    """Whoever wants no idle connections gets none, and that is the reason told, not the server's room."""
    assert choose(known, 0.0, conn_utilization) == Lease(0.0, "lease=0: no idle connection is kept")


@given(known=STANDINGS, refused_ago=st.floats(REFUSAL_MEMORY), waited=st.floats(0, PATIENCE), data=st.data())
def test_with_room_it_is_the_setting(known: Standing, refused_ago: float, waited: float, data: st.DataObject) -> None:
    """Up to the wanted utilization, however many sessions are new, who found its connection easily is in no hurry."""
    used, longest = data.draw(st.integers(0, 999)), data.draw(SECONDS)
    census = server(used, limit=1000, new=data.draw(st.integers(0, used)))
    known = known._replace(census=census, refused_ago=refused_ago, waited=waited)
    assert choose(known, longest, data.draw(st.floats(used / 1000, 1))).seconds == longest


@given(known=STANDINGS, longest=SECONDS, used=st.integers(0, 500), data=st.data())
def test_ample_room_ends_all_pressure(known: Standing, longest: float, used: int, data: st.DataObject) -> None:
    """Up to half of the wanted utilization nobody is in a hurry, whatever happened before."""
    known = known._replace(census=server(used, limit=1000, new=used))
    assert choose(known, longest, data.draw(st.floats(used / 500, 1))).seconds == longest


@pytest.mark.parametrize("refused_ago", [REFUSAL_MEMORY, 60.0, NEVER])
def test_without_a_census_it_is_the_setting(refused_ago: float) -> None:
    """A server that nobody counted, as with a role that may not, is taken to have room unless it refused lately."""
    assert choose(standing(None, refused_ago)) == Lease(300.0, "there is room")


@given(
    known=STANDINGS,
    limit=st.integers(2, 2000),
    fleet=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    used=st.tuples(st.integers(0, 2000), st.integers(0, 2000)),
    conn_utilization=UTILIZATIONS,
)
def test_less_room_never_makes_a_longer_lease(
    known: Standing, limit: int, fleet: tuple[int, int], used: tuple[int, int], conn_utilization: float
) -> None:
    """Each further session of somebody else shortens the lease or leaves it."""
    fewer, more = sorted(count % (limit + 2) for count in used)
    new, fleet_used = sorted(fleet)
    leases = [
        choose(known._replace(census=server(count, limit, fleet_used, new)), 300.0, conn_utilization)
        for count in (fewer, more)
    ]
    assert leases[1].seconds <= leases[0].seconds


@given(known=STANDINGS, limit=st.integers(2, 2000), conn_utilization=UTILIZATIONS)
def test_last_slot_never_makes_a_longer_lease(known: Standing, limit: int, conn_utilization: float) -> None:
    """Nor is a lease longer on a full server than it was when one slot was left."""
    leases = [
        choose(known._replace(census=server(used, limit)), 300.0, conn_utilization) for used in (limit - 1, limit)
    ]
    assert leases[1].seconds <= leases[0].seconds


@given(
    known=STANDINGS,
    census=st.sampled_from([None, server(30), server(60), server(85), server(85, new=40), server(95), FULL]),
    field=st.sampled_from(["age", "waited", "refused_ago"]),
    values=st.tuples(st.floats(0, 10), st.floats(0, 10)),
)
def test_more_pressure_never_makes_a_longer_lease(
    known: Standing, census: Census | None, field: str, values: tuple[float, float]
) -> None:
    """An older connection, a longer wait for it or a more recent refusal shortens the lease or leaves it."""
    better, worse = sorted(values, reverse=field == "refused_ago")
    changes: list[dict[str, Any]] = [{"census": census, field: value} for value in (better, worse)]
    leases = [choose(known._replace(**change)) for change in changes]
    assert leases[1].seconds <= leases[0].seconds


@pytest.mark.parametrize(("used", "seconds"), [(80, 300.0), (81, 9.5), (85, 7.5), (90, 5.0)])
def test_above_the_line_it_shrinks_with_the_room(used: int, seconds: float) -> None:
    """A fleet that freezes now frees the reserve by itself, the sooner the less of it is left."""
    assert choose(standing(server(used))).seconds == pytest.approx(seconds)


@given(used=st.integers(1601, 1800))
def test_above_the_line_it_is_tight(used: int) -> None:
    """Until half of the reserve is gone, a lease is at most `TIGHT_LEASE`, and still long enough to come back in."""
    seconds = choose(standing(server(used, limit=2000))).seconds
    assert TIGHT_LEASE / 2 * (1 - 1e-9) <= seconds < TIGHT_LEASE


@given(known=STANDINGS, used=st.integers(501, 999), data=st.data())
def test_half_of_the_reserve_gone_is_pressure(known: Standing, used: int, data: st.DataObject) -> None:
    """With less than half of the reserve left, an engine behaves as on a full server: not all sessions are seen."""
    conn_utilization = data.draw(st.floats(0, used / 500 - 1, exclude_max=True).filter(lambda u: (1 + u) / 2 < 1))
    if used / 1000 <= (1 + conn_utilization) / 2:
        return  # rounded to just half
    leases = [
        choose(known._replace(census=server(count, limit=1000)), 300.0, conn_utilization) for count in (used, 1000)
    ]
    assert leases[0] == leases[1]


@pytest.mark.parametrize(("used", "seconds"), [(900, 5.0), (901, 0.005)])
def test_pressure_begins_at_half_of_the_reserve(used: int, seconds: float) -> None:
    """By default that is above 90 % in use, and not before."""
    assert choose(standing(server(used, limit=1000))).seconds == pytest.approx(seconds)


@pytest.mark.parametrize("fleet", [850, 500, 40])
def test_many_new_sessions_above_the_line_are_pressure(fleet: int) -> None:
    """If more than `NEW_SHARE` of the fleet has just connected, its containers take turns, also if others' do not."""
    few = int(fleet * NEW_SHARE)
    leases = [choose(standing(server(850, limit=1000, fleet=fleet, new=new))).seconds for new in (few, few + 1)]
    assert leases == pytest.approx([7.5, 0.005])


@pytest.mark.parametrize(("used", "seconds"), [(800, 300.0), (801, 0.005)])
def test_new_sessions_below_the_line_are_a_start(used: int, seconds: float) -> None:
    """A fleet that starts on an empty server is not taken for one that takes turns."""
    assert choose(standing(server(used, limit=1000, new=used))).seconds == pytest.approx(seconds)


@given(known=STANDINGS, waited=PATIENTLY, used=st.integers(41, 99))
def test_long_wait_is_pressure(known: Standing, waited: float, used: int) -> None:
    """Who had to wait long for this connection behaves as on a full server, while there is no ample room."""
    known = known._replace(waited=waited)
    assert choose(known._replace(census=server(used))) == choose(known._replace(census=FULL))


def test_short_wait_is_no_pressure() -> None:
    """Who had to wait for `PATIENCE` and no longer is in no hurry while there is room."""
    assert choose(standing(server(80), waited=PATIENCE)).seconds == 300.0


@given(known=STANDINGS, refused_ago=LATELY, used=st.integers(41, 99))
def test_refusal_is_pressure(known: Standing, refused_ago: float, used: int) -> None:
    """Refused a moment ago, an engine behaves as on a full server, until a census sees ample room."""
    known = known._replace(refused_ago=refused_ago)
    on_a_full_server = choose(known._replace(census=FULL))
    for census in (None, server(used)):
        assert choose(known._replace(census=census)) == on_a_full_server


@pytest.mark.parametrize(("used", "seconds"), [(40, 300.0), (41, 0.005)])
@pytest.mark.parametrize(("refused_ago", "waited"), [(0.0, 0.0), (NEVER, 0.6)])
def test_ample_room_is_half_of_the_wanted(used: int, seconds: float, refused_ago: float, waited: float) -> None:
    """Who was refused or had to wait believes in peace again up to half of `conn_utilization`, and not above."""
    assert choose(standing(server(used), refused_ago, waited=waited)).seconds == seconds


@given(gaps=PAUSES, refused_ago=st.floats(REFUSAL_MEMORY, 1e6), used=st.integers(0, 99))
def test_refusal_is_forgotten(gaps: list[float], refused_ago: float, used: int) -> None:
    """A refusal of some time ago is as good as none."""
    for census in (None, server(used)):
        known = standing(census, gaps=gaps)
        assert choose(known._replace(refused_ago=refused_ago)) == choose(known)


@given(known=STANDINGS)
def test_full_server_is_pressure_even_if_it_may_be_full(known: Standing) -> None:
    """With a `conn_utilization` of 1 there is no line to stay below, but a full server is full all the same."""
    known = known._replace(census=FULL)
    assert choose(known, conn_utilization=1.0) == choose(known)


@given(known=STANDINGS, limit=st.integers(0, 2000), above=st.integers(0, 50), conn_utilization=UTILIZATIONS)
def test_without_room_it_is_a_reconnect_at_most(
    known: Standing, limit: int, above: int, conn_utilization: float
) -> None:
    """On a full server, or one that is fuller than this role may make it, nobody idles longer than a connect takes."""
    known = known._replace(census=server(limit + above, limit))
    assert choose(known, 300.0, conn_utilization).seconds <= bounded(known.connect_seconds)


@given(known=STANDINGS, over=st.floats(0, 1e6))
@example(standing(connect_seconds=60.0), 0.0)
def test_after_its_turn_it_closes(known: Standing, over: float) -> None:
    """However often it is called, a connection that had its turn on a full server is given up, for that reason."""
    age = turn_seconds(bounded(known.connect_seconds), known.waited) + over
    lease = choose(known._replace(census=FULL, age=age))
    assert lease.seconds == 0
    assert "is over" in lease.reason


@given(connect_seconds=CONNECTS, waited=st.floats(0, 60), share=st.floats(0, 0.999), data=st.data())
def test_container_that_mostly_pauses_for_longer_closes_at_once(
    connect_seconds: float, waited: float, share: float, data: st.DataObject
) -> None:
    """If most of its latest pauses were longer than it would hold, holding a slot would be for nothing."""
    known = standing(connect_seconds=connect_seconds, waited=waited)
    known = known._replace(age=turn_seconds(bounded(connect_seconds), waited) * share)
    hold = choose(known).seconds
    long = data.draw(st.lists(st.floats(hold, 1e6, exclude_min=True), min_size=1, max_size=7))
    short = data.draw(st.lists(st.floats(0, hold), max_size=len(long) - 1))
    gaps = data.draw(st.permutations([*long, *short]))
    assert hold > 0
    assert choose(known._replace(gaps=gaps)).seconds == 0


@given(connect_seconds=CONNECTS, waited=st.floats(0, 60), share=st.floats(0, 0.999), data=st.data())
def test_container_that_comes_back_keeps_its_connection(
    connect_seconds: float, waited: float, share: float, data: st.DataObject
) -> None:
    """If at least half of its pauses are no longer than it would hold without a history, the others change nothing."""
    known = standing(connect_seconds=connect_seconds, waited=waited)
    known = known._replace(age=turn_seconds(bounded(connect_seconds), waited) * share)
    hold = choose(known).seconds
    short = data.draw(st.lists(st.floats(0, hold), min_size=1, max_size=7))
    long = data.draw(st.lists(st.floats(hold, 1e6), max_size=len(short)))
    gaps = data.draw(st.permutations([*short, *long]))
    assert choose(known._replace(gaps=gaps)).seconds == hold


@given(gaps=st.lists(SECONDS, min_size=1, max_size=7))
def test_usual_pause_is_one_that_half_do_not_exceed(gaps: list[float]) -> None:
    """It is the shortest of the pauses that at least half of them do not exceed."""
    usual = usual_pause(gaps)
    assert usual in gaps
    assert sum(pause <= usual for pause in gaps) * 2 >= len(gaps)
    assert sum(pause < usual for pause in gaps) * 2 < len(gaps)


def paid(pauses: list[float], hold: float, connect_seconds: float) -> float:
    """Return what idle time and reconnects cost a container that holds its connection for `hold` seconds."""
    return sum(pause if pause <= hold else hold + connect_seconds for pause in pauses)


def prophet_pays(pauses: list[float], connect_seconds: float) -> float:
    """Return what they cost one who knows each pause: he holds the connection through it, or closes at its start."""
    return sum(min(pause, connect_seconds) for pause in pauses)


@given(pauses=st.lists(st.floats(0, 0.1) | SECONDS, max_size=50), connect_seconds=COSTS, waited=SECONDS, over=SECONDS)
def test_ski_rental(pauses: list[float], connect_seconds: float, waited: float, over: float) -> None:
    """Without a history, and with time left for it, holding costs at most twice what a prophet pays, come what may."""
    age = max(0.0, turn_seconds(connect_seconds, waited) - connect_seconds - over)
    hold = choose(standing(connect_seconds=connect_seconds, age=age, waited=waited)).seconds
    prophet = prophet_pays(pauses, connect_seconds)
    assert paid(pauses, hold, connect_seconds) <= 2 * prophet * (1 + 1e-9)


@given(pauses=st.lists(st.floats(DEAREST_CONNECT, 1e6, exclude_min=True), min_size=1, max_size=7), cost=COSTS)
def test_long_pauses_cost_no_more_than_a_prophet_pays(pauses: list[float], cost: float) -> None:
    """A container that goes on pausing for longer than a connect takes pays one connect a pause, and no slot."""
    hold = choose(standing(connect_seconds=cost, gaps=pauses)).seconds
    assert paid(pauses, hold, cost) == pytest.approx(prophet_pays(pauses, cost))


@pytest.mark.parametrize(("connect_seconds", "hold"), [(0.0, 0.002), (0.002, 0.002), (0.01, 0.01), (3.0, 0.03)])
def test_connect_that_is_cheap_or_dear_is_taken_for_less_so(connect_seconds: float, hold: float) -> None:
    """A client that waited for its CPU does not prolong the jam by what it measured."""
    assert choose(standing(connect_seconds=connect_seconds)).seconds == hold


@given(age=st.floats(0.095, 0.1, exclude_max=True))
def test_hold_ends_with_the_turn(age: float) -> None:
    """Towards the end of its turn a connection stays idle for no longer than what is left of it."""
    assert choose(standing(age=age)).seconds == pytest.approx(min(0.005, 0.1 - age))


@given(cost=COSTS, waited=SECONDS)
@example(LONGEST_TURN * CONNECT_SHARE, 0.0)
def test_turns_spend_little_on_connecting(cost: float, waited: float) -> None:
    """However long the line, connecting takes at most `CONNECT_SHARE` of a turn, which is no longer for nothing."""
    seconds = turn_seconds(cost, waited)
    assert cost <= seconds * CONNECT_SHARE * (1 + 1e-9)
    assert seconds <= max(LONGEST_TURN, cost / CONNECT_SHARE)


@pytest.mark.parametrize(
    ("cost", "waited", "seconds"),
    [
        (0.005, 0.0, 0.1),
        (0.005, 0.5, 0.1),
        (0.005, 1.0, 0.05),
        (0.005, 2.0, 0.025),
        (0.005, 60.0, 0.02),
        (0.002, 60.0, 0.008),
        (0.03, 0.0, 0.12),
    ],
)
def test_longer_line_makes_shorter_turns(cost: float, waited: float, seconds: float) -> None:
    """Who had to wait twice as long has half the turn, until connecting would take too much of it."""
    assert turn_seconds(cost, waited) == pytest.approx(seconds)


@pytest.mark.parametrize("waited", [0.0, 1.0, 60.0])
@pytest.mark.parametrize("connect_seconds", [0.0, 0.005, 0.02, 60.0])
def test_whole_turn_is_served_and_then_ends(connect_seconds: float, waited: float) -> None:
    """Called all the time, a container keeps its connection through its turn, and closes at the first end after it."""
    ages = [number / 1000 for number in range(200)]
    known = standing(connect_seconds=connect_seconds, gaps=[0.0] * 7, waited=waited)
    kept = [choose(known._replace(age=age)).seconds > 0 for age in ages]
    assert kept == [age < turn_seconds(bounded(connect_seconds), waited) for age in ages]


def skips(census: Census | None, counted_ago: float = 1.0, refused_ago: float = NEVER, waited: float = 0.0) -> bool:
    """Tell whether a new connection does without a census, at the settings' defaults."""
    return may_skip_census(census, counted_ago, refused_ago, waited, ttl=6.0, conn_utilization=0.8)


@pytest.mark.parametrize(("refused_ago", "waited"), [(0.0, 0.0), (NEVER, 0.6)])
def test_suspicion_that_a_census_did_not_allay_needs_no_other(refused_ago: float, waited: float) -> None:
    """Who was refused or had to wait, and has seen lately that there is no ample room, need not pay to see it again."""
    assert skips(FULL, 11.9, refused_ago, waited)
    assert skips(server(41), 0.0, refused_ago, waited)
    assert not skips(FULL, 12.0, refused_ago, waited)
    assert not skips(server(40), 0.0, refused_ago, waited)
    assert not skips(None, 0.0, refused_ago, waited)
    assert not skips(FULL, -1.0, refused_ago, waited)  # the clock was set back


def test_without_suspicion_a_new_connection_counts() -> None:
    """However full the server was a moment ago: a fleet never fills it unseen, nor goes on to believe it full."""
    assert not skips(FULL)


@given(known=STANDINGS, counted_ago=SECONDS, conn_utilization=UTILIZATIONS)
def test_census_is_skipped_only_under_pressure(known: Standing, counted_ago: float, conn_utilization: float) -> None:
    """What goes by the latest census goes by one that makes it give its connection up soon."""
    may_skip = may_skip_census(
        known.census, counted_ago, known.refused_ago, known.waited, ttl=6.0, conn_utilization=conn_utilization
    )
    assert not may_skip or is_pressed(known, conn_utilization)
