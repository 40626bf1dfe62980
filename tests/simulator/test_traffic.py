"""The traffic is the same for the same seed, and comes in volleys."""

from __future__ import annotations

from random import Random

from serverless_pg_kit.simulator.traffic import SPREAD, volleys


def test_same_seed_same_arrivals() -> None:
    """Both contestants meet the same requests at the same times; another seed gives others."""
    first, again, other = (volleys(Random(seed), "shop", 20, 3, 1.0) for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_volleys() -> None:
    """Each volley comes at once, one every beat, and all handlers are asked."""
    arrivals = volleys(Random(1), "shop", 50, 2, 4.0)

    assert [int(arrival.at) for arrival in arrivals] == [0] * 50 + [4] * 50
    assert all(arrival.at % 4 <= SPREAD for arrival in arrivals)
    assert {arrival.handler for arrival in arrivals} == {
        "list_sales",
        "list_inventory",
        "create_fulfilment",
        "get_fulfilment",
    }
