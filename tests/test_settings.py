from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from serverless_pg_kit import Engine, Settings, SettingsError
from serverless_pg_kit.settings import CHECKS


def test_every_setting_has_its_check() -> None:
    """No setting is taken unchecked, and no check outlives its setting."""
    assert [field.name for field in dataclasses.fields(Settings)] == list(CHECKS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_size", 0),
        ("max_size", 2.5),
        ("max_size", True),
        ("autocommit", 1),
        ("strategy", "ranked "),
        ("strategy", None),
        ("max_connections", 0),
        ("conn_utilization", 1.1),
        ("conn_utilization", -0.1),
        ("conn_utilization", "0.8"),
        ("min_idle_time", float("nan")),
        ("max_kills", -1),
        ("census_ttl", None),
        ("max_wait", -1),
        ("max_wait", float("inf")),
        ("max_wait", 10**400),
        ("max_retries", 1.5),
        ("backoff_base", 0),
        ("backoff_cap", 0),
        ("deadline_margin", -0.5),
        ("max_lifetime", 0),
        ("configure", "callable"),
        ("reset", None),
        ("connection_class", dict),
        ("connect_rules", ["x"]),
        ("statements", object()),
        ("on_event", [print, 3]),
        ("application_name", ""),
        ("application_name", "a:b"),
        ("application_name", "naïve"),
        ("application_name", "it's"),
        ("application_name", "x" * 64),
    ],
)
def test_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    """The error names the setting, the value and what is allowed, and is a ValueError."""
    with pytest.raises(SettingsError) as caught:
        Settings(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith(f"{name}={value!r} is not allowed: ")
    assert CHECKS[name][0] in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        {"max_wait": 0},
        {"max_retries": 0},
        {"max_kills": 0},
        {"census_ttl": 0},
        {"min_idle_time": 0},
        {"conn_utilization": 0},
        {"conn_utilization": 1},
        {"max_retries": None},
        {"max_kills": None},
        {"max_connections": None},
        {"max_lifetime": None},
        {"on_event": None},
    ],
)
def test_zero_and_none_mean_what_they_say(names: dict[str, Any]) -> None:
    """0 is never replaced by a default."""
    [(name, value)] = names.items()
    assert getattr(Settings(**names), name) == value


def test_unknown_name_is_refused_with_the_nearest() -> None:
    """A typing error in a name is found when the settings are made."""
    with pytest.raises(SettingsError, match=r"max_wiat=3: there is no such setting; did you mean max_wait\?"):
        Settings(max_wiat=3)  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="allowed are conninfo, credentials, application_name"):
        Engine(zzz=1)


def test_settings_cannot_be_changed_but_replaced() -> None:
    """Settings are a value: checked again in every copy."""
    settings = Settings(max_wait=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.max_wait = 4  # type: ignore[misc]
    assert dataclasses.replace(settings, max_wait=4).max_wait == 4
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(SettingsError):
        dataclasses.replace(settings, max_wait=-4)


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://app:hunter2@db.example/app",
        "host=db.example user=app password=hunter2 sslpassword=hunter2",
        "postgresql://app@db.example/app?password=hunter2",
    ],
)
def test_repr_masks_secrets(conninfo: str) -> None:
    """Settings and engines can be logged."""
    settings = Settings(conninfo=conninfo)
    assert "hunter2" not in repr(settings) + str(settings) + repr(Engine(settings))
    assert "db.example" in repr(settings)


@pytest.mark.parametrize(
    "conninfo",
    [
        "postgresql://app:hunter2@[x/app",
        "password=hunter2 hunter2",
        "password='hunter2",
        "postgresql://app:hunt@er2@db/app",
        "postgresql://app:x@hunter2:hunter2/app",
        b"password=hunter2",
    ],
)
def test_unreadable_conninfo_is_refused_without_showing_it(conninfo: Any) -> None:
    """A malformed connection string fails at once, and what may be its password is shown nowhere in the error."""
    with pytest.raises(SettingsError, match=r"^conninfo") as caught:
        Settings(conninfo=conninfo)
    error = caught.value
    assert "hunter2" not in str(error) + repr(error) + repr(error.__context__) + repr(error.__cause__)
    assert "er2" not in str(error)


@pytest.mark.parametrize(
    "names",
    [
        {"password": "hunter2"},
        {"dsn": "postgresql://app:hunter2@db/app"},
        {"conn_info": "postgresql://app:hunter2@db/app"},
        {"url": "hunter2"},
        {"application_name": "postgresql://app:hunter2@db/app"},
        {"conninfo": "application_name='a:b' password=hunter2"},
        {"conninfo": "postgresql://u:p@hunter2/w0rd@db.example/app"},
    ],
)
def test_secret_given_under_a_wrong_name_is_not_shown(names: dict[str, Any]) -> None:
    """Who takes conninfo parameters for settings, or forgets to encode them, finds no password in the log."""
    with pytest.raises(SettingsError) as caught:
        Settings(**names)
    assert "hunter2" not in str(caught.value)


def test_connection_string_is_passed_by_name() -> None:
    """A bare string is refused with the right way to write it."""
    with pytest.raises(TypeError, match=r"Engine\(conninfo=\.\.\.\)") as caught:
        Engine("postgresql://app:hunter2@db/app")  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


def test_from_env_reads_every_textual_kind() -> None:
    """Numbers, switches, names and none arrive with their types."""
    settings = Settings.from_env(
        {
            "SERVERLESS_PG_MAX_WAIT": "2.5",
            "SERVERLESS_PG_MAX_SIZE": "3",
            "SERVERLESS_PG_MAX_KILLS": "none",
            "SERVERLESS_PG_AUTOCOMMIT": "True",
            "SERVERLESS_PG_RESET": "off",
            "SERVERLESS_PG_STRATEGY": "ranked",
            "SERVERLESS_PG_CONNINFO": "host=db",
            "UNRELATED": "x",
        }
    )
    assert (settings.max_wait, settings.max_size, settings.max_kills) == (2.5, 3, None)
    assert (settings.autocommit, settings.reset) == (True, False)
    assert (settings.strategy, settings.conninfo) == ("ranked", "host=db")


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("SERVERLESS_PG_MAX_WIAT", "3", "did you mean SERVERLESS_PG_MAX_WAIT?"),
        ("SERVERLESS_PG_MAX_WAIT", "soon", "max_wait='soon' is not allowed: a number of seconds"),
        ("SERVERLESS_PG_MAX_WAIT", "", "max_wait='' is not allowed"),
        ("SERVERLESS_PG_MAX_SIZE", "2.5", "max_size='2.5' is not allowed"),
        ("SERVERLESS_PG_AUTOCOMMIT", "maybe", "autocommit='maybe' is not allowed: True or False"),
        ("SERVERLESS_PG_ON_EVENT", "print", "cannot be set by a variable"),
    ],
)
def test_bad_variable_is_refused_by_name(variable: str, text: str, said: str) -> None:
    """A bad variable fails when the engine is made, not in the first request."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({variable: text})
    assert said in str(caught.value)


def test_settings_are_equal_by_their_values() -> None:
    """Two objects that say the same are equal and serve as the same key; others are neither."""
    one, same, other = Settings(max_wait=1.0), Settings(max_wait=1.0), Settings(max_wait=2.0)
    assert (one == same, one == other, one == "max_wait=1.0") == (True, False, False)
    assert {one: 1}[same] == 1


def test_keywords_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Engine(name=...)` overrides the variable, and the other variables still count."""
    monkeypatch.setenv("SERVERLESS_PG_MAX_WAIT", "7")
    monkeypatch.setenv("SERVERLESS_PG_MAX_SIZE", "2")
    settings = Engine(max_wait=1).settings
    assert (settings.max_wait, settings.max_size) == (1, 2)


def test_a_configuration_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A framework's configuration holds values or texts under the names of the variables, which it overrides."""
    monkeypatch.setenv("SERVERLESS_PG_MAX_WAIT", "7")
    monkeypatch.setenv("SERVERLESS_PG_MAX_SIZE", "2")
    config = {"SERVERLESS_PG_MAX_WAIT": 1.5, "SERVERLESS_PG_LEASE": "20", "SERVERLESS_PG_ON_EVENT": print, "DEBUG": 1}
    settings = Settings.from_config(config)
    assert (settings.max_wait, settings.max_size, settings.lease) == (1.5, 2, 20.0)
    assert settings.listeners() == (print,)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("SERVERLESS_PG_MAX_WAITT", 1.0, "SERVERLESS_PG_MAX_WAITT=1.0: there is no such setting"),
        ("SERVERLESS_PG_MAX_SIZE", 0, "max_size=0 is not allowed"),
        ("SERVERLESS_PG_MAX_SIZE", "many", "max_size='many' is not allowed"),
        ("SERVERLESS_PG_ON_EVENT", "print", "on_event cannot be set by a variable"),
    ],
)
def test_bad_configuration_is_refused_by_name(key: str, value: object, said: str) -> None:
    """What a framework's configuration has wrong is told by its name when the settings are made."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_config({key: value})
    assert said in str(caught.value)


def test_bad_database_url_fails_when_the_engine_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's connection string is checked early as well, and not shown."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://app:hun@ter2@db/app")
    with pytest.raises(SettingsError, match=r"^DATABASE_URL has more than one '@'") as caught:
        Engine()
    assert "ter2" not in str(caught.value)


def test_settings_object_and_names_do_not_mix() -> None:
    """Which of the two would win is nobody's guess."""
    with pytest.raises(TypeError, match="not both"):
        Engine(Settings(), max_wait=3)
