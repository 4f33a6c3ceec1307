"""Addresses of storages: which are refused, how they are reached, and that no password is shown."""

from pathlib import Path

import pytest

from velodrome.errors import ConfigError
from velodrome.run.environment import command_line, without_passwords
from velodrome.sweeps import address
from velodrome.sweeps.address import check_address, check_optuna, engine_options, shown, sqlite_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/study.db", "--storage is not the address of a database."),
        ("post gres://u:secret@h/d", "--storage is not the address of a database."),
        ("redis://:secret@h", "--storage is a Redis server, which does not tell whether a worker is still"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("postgresql://u:sec@ret@h/d", "--storage has more than one @. In a password write %40 for it."),
    ],
)
def test_what_is_no_storage(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(text)
    assert expected in str(error.value)
    assert "secret" not in str(error.value)
    assert "sec@ret" not in str(error.value)


def test_the_driver_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address.importlib.util, "find_spec", lambda name: name == "psycopg")
    assert check_address("postgres://u:p@h/d") == "postgresql+psycopg://u:p@h/d"
    monkeypatch.setattr(address.importlib.util, "find_spec", lambda name: None)
    assert check_address("postgresql://u:p@h/d") == "postgresql+psycopg2://u:p@h/d"
    assert check_address("postgresql+psycopg://h/d") == "postgresql+psycopg://h/d"
    assert check_address("mysql+pymysql://u:p@h/d") == "mysql+pymysql://u:p@h/d"


def test_nothing_waits_for_a_server_that_has_gone() -> None:
    assert engine_options("sqlite:////a.db") == {"connect_args": {"timeout": address.BUSY_S}}
    assert engine_options("mysql://h/d")["connect_args"] == {"connect_timeout": address.CONNECT_S}
    found = engine_options("postgresql+psycopg://h/d")["connect_args"]
    assert found["connect_timeout"] == address.CONNECT_S
    assert found["tcp_user_timeout"] == 20_000


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text, expected in {
        "postgresql+psycopg://user:secret@host:5/d": "postgresql://user:***@host:5/d",
        "postgresql://user:sec/ret@x@host/d": "postgresql://user:***@host/d",
        "postgresql://host/d?user=u&password=secret&x=1": "postgresql://host/d?user=u&password=***&x=1",
        "postgresql://host/d?PassFile=secret": "postgresql://host/d?PassFile=***",
        "postgresql://user@host/d": "postgresql://user@host/d",
        sqlite_address(tmp_path / "a.db"): f"sqlite:///{tmp_path}/a.db",
    }.items():
        assert shown(text) == expected
    assert without_passwords("photos/a:b@c.png") == "photos/a:b@c.png"
    monkeypatch.setattr(
        "sys.argv", ["velodrome", "sweep", "--storage", "mysql://u:my secret@h/d", "--epochs=2"]
    )
    assert command_line() == "velodrome sweep --storage 'mysql://u:***@h/d' --epochs=2"


def test_without_optuna_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    check_optuna()
    monkeypatch.setattr(address.importlib.metadata, "version", lambda name: "4.8.0")
    with pytest.raises(ConfigError, match=r"optuna is version 4\.8\.0, but must be at least 4\.9"):
        check_optuna()
    monkeypatch.setattr(address.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package optuna.*pip install 'velodrome\[sweep\]'"):
        check_optuna()
