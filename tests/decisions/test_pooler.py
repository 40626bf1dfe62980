"""Poolers that are known by the names of their hosts."""

from __future__ import annotations

import pytest

from serverless_pg_kit.decisions.pooler import Pooler, could_be_pid, pooler_of

# Recorded from the providers' documentation.
RDS_PROXY = "my-proxy.proxy-abcdefghijkl.eu-central-1.rds.amazonaws.com"
NEON = "ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech"
SUPAVISOR = "aws-0-eu-central-1.pooler.supabase.com"


@pytest.mark.parametrize(
    ("host", "pooler"),
    [
        (RDS_PROXY, "rds-proxy"),
        ("my-proxy.endpoint.proxy-abc.cn-north-1.rds.amazonaws.com.cn", "rds-proxy"),
        (NEON, "neon"),
        (NEON.upper() + ".", "neon"),
        (SUPAVISOR, "supavisor"),
        ("database-1.abcdefghijkl.eu-central-1.rds.amazonaws.com", None),
        ("mycluster.cluster-abc.eu-central-1.rds.amazonaws.com", None),
        ("ep-cool-darkness-123456.us-east-2.aws.neon.tech", None),
        ("db.abcdefghijklm.supabase.co", None),
        ("proxy.example.com", None),
        ("/var/run/postgresql", None),
        ("", None),
    ],
)
def test_hosts_of_poolers_are_known(host: str, pooler: Pooler | None) -> None:
    """By the whole pattern of the provider's names, and not by a word in them."""
    assert pooler_of("auto", host) == pooler


@pytest.mark.parametrize("host", [RDS_PROXY, "127.0.0.1"])
def test_setting_overrules_the_name(host: str) -> None:
    """Whoever names a pooler, or denies one, is believed."""
    assert pooler_of("pgbouncer", host) == "pgbouncer"
    assert pooler_of("none", host) is None


@pytest.mark.parametrize("pid", [0, -511540371, 1647271266, 2**22 + 1])
def test_pid_that_no_server_has_is_a_poolers(pid: int) -> None:
    """PgBouncer's are of this kind; a proxy that gives none has 0."""
    assert not could_be_pid(pid)


@pytest.mark.parametrize("pid", [1, 28208, 2**22])
def test_pid_that_a_server_may_have_decides_nothing(pid: int) -> None:
    """Then the server is asked for its own."""
    assert could_be_pid(pid)
