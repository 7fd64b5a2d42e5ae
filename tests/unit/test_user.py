"""HOME, LOGNAME, USER and SHELL of the user that --user names, and what an operator has set for that user."""

from __future__ import annotations

import pwd

import pytest

from reuseport.ipc import user

ACCOUNTS = {
    "root": ("root", "x", 0, 0, "", "/root", "/bin/bash"),
    "alice": ("alice", "x", 1000, 1000, "", "/home/alice", "/bin/zsh"),
    "www": ("www", "x", 33, 33, "", "/var/www", "/usr/sbin/nologin"),
    "shop": ("shop", "x", 600, 600, "", "/srv/shop", "/bin/sh"),
    "old": ("old", "x", 601, 601, "", "", "/bin/false"),
}
OF_ROOT = {"HOME": "/root", "LOGNAME": "root", "USER": "root", "SHELL": "/bin/bash"}
OF_SHOP = {"HOME": "/srv/shop", "LOGNAME": "shop", "USER": "shop", "SHELL": "/bin/sh"}
SUDO = {**OF_ROOT, "SUDO_USER": "alice"}
SU = {"HOME": "/root", "LOGNAME": "alice", "USER": "alice", "SHELL": "/bin/zsh"}


@pytest.fixture(autouse=True)
def accounts(monkeypatch):
    def find(key):
        for account in map(pwd.struct_passwd, ACCOUNTS.values()):
            if key in (account.pw_name, account.pw_uid):
                return account
        raise KeyError(key)

    monkeypatch.setattr(pwd, "getpwnam", find)
    monkeypatch.setattr(pwd, "getpwuid", find)


def renamed(before: dict, uid: int, said: tuple = ()) -> dict:
    environment = {"PATH": "/bin", **before}
    user.rename(environment, uid, said)
    assert environment.pop("PATH") == "/bin"
    return {name: value for name, value in environment.items() if not name.startswith(("SUDO", "DOAS"))}


@pytest.mark.parametrize(
    "before",
    [
        OF_ROOT,
        {},
        {"HOME": "/"},
        SUDO,
        {**SUDO, "HOME": "/home/alice", "SHELL": "/bin/zsh"},
        {**OF_ROOT, "DOAS_USER": "alice", "HOME": "/home/alice"},
        SU,
        {"HOME": "/root"},
        OF_SHOP,
    ],
)
def test_what_names_root_or_who_has_started_the_server_names_the_user(before):
    assert renamed(before, 600) == OF_SHOP


def test_what_the_operator_has_set_for_the_user_stays():
    assert renamed({**OF_ROOT, "HOME": "/var/lib/shop"}, 600) == {**OF_SHOP, "HOME": "/var/lib/shop"}
    assert renamed({**OF_ROOT, "USER": "tenant-7"}, 600) == {**OF_SHOP, "USER": "tenant-7"}
    assert renamed(OF_ROOT, 600, ("HOME", "SHELL")) == {**OF_SHOP, "HOME": "/root", "SHELL": "/bin/bash"}


def test_a_user_that_cannot_log_in_has_no_shell():
    assert renamed(OF_ROOT, 33) == {"HOME": "/var/www", "LOGNAME": "www", "USER": "www"}
    assert renamed({**OF_ROOT, "SHELL": "/bin/dash"}, 33)["SHELL"] == "/bin/dash"


def test_an_account_without_a_home_or_without_a_name_has_none():
    assert renamed(OF_ROOT, 601) == {"LOGNAME": "old", "USER": "old"}
    assert renamed(OF_ROOT, 4711) == {}
    assert renamed({**OF_ROOT, "HOME": "/data"}, 4711) == {"HOME": "/data"}
