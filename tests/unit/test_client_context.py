"""The user's state directory and the names of Realms."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vambrace.client.context import Context, DomainState, HostEntry
from vambrace.errors import ConfigError, NotFound, UsageError

A, B = "11111111-2222-3333-4444-555555555555", "11111111-aaaa-3333-4444-555555555555"


def entry(url: str = "https://h:1") -> HostEntry:
    return HostEntry(url, "/c.pem", "/c.key", "/ca.pem", 'with "quotes" \\ and é', "")


def realm(uuid: str = A, name: str = "patients") -> DomainState:
    return DomainState(uuid, name, "https://h:1", "00" * 32, "11" * 32, "22" * 32)


def test_hosts(own_state: Path) -> None:
    context = Context()
    with pytest.raises(UsageError, match="no host is set up"):
        context.host()
    context.add_host("one", entry())
    context.add_host("two", entry("https://h:2"), current=False)
    assert context.host() == ("one", entry())
    assert Context().host("two")[1].url == "https://h:2"
    with pytest.raises(UsageError, match="three"):
        context.host("three")
    assert stat.S_IMODE((own_state / "hosts.toml").stat().st_mode) == 0o600


def test_the_environment_chooses_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context()
    context.add_host("one", entry())
    context.add_host("two", entry("https://h:2"))
    monkeypatch.setenv("VAMBRACE_HOST", "one")
    assert context.host()[0] == "one"


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", 'x"]\n', "x" * 64])
def test_names_of_hosts(name: str) -> None:
    with pytest.raises(UsageError):
        Context().add_host(name, entry())


def test_a_url_with_control_characters() -> None:
    with pytest.raises(UsageError):
        Context().add_host("x", entry('https://h"\ncurrent = "y'))


@pytest.mark.parametrize(
    "text", ["[", '[hosts.x]\nurl = "u"', "[hosts.x]\nurl = 7", '[hosts.x]\nother = "u"', "hosts = { x = 1 }"]
)
def test_damaged_hosts(own_state: Path, text: str) -> None:
    (own_state / "hosts.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Context().hosts()
    assert caught.value.hint


def test_realms() -> None:
    context = Context()
    context.save_domain(realm(), config=b"{}", token=b"t")
    assert context.domain(A) == realm()
    assert context.domain_file(A, "token.cbor") == b"t"
    assert context.all_domains() == [realm()]
    with pytest.raises(NotFound):
        context.domain(B)
    with pytest.raises(UsageError):
        context.domain("../../x")
    context.forget_domain(A)
    assert context.all_domains() == []


def test_a_damaged_realm(own_state: Path) -> None:
    context = Context()
    context.save_domain(realm())
    (own_state / "domains" / A / "state.json").write_text('{"uuid": 1}')
    with pytest.raises(ConfigError):
        context.all_domains()


def test_counters_rise_even_if_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context()
    first = context.next_counter(A)
    monkeypatch.setattr("vambrace.client.context.time.time_ns", lambda: 5)
    assert [context.next_counter(A), Context().next_counter(A)] == [first + 1, first + 2]


def test_where_the_state_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VAMBRACE_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Context().home == tmp_path / "vambrace"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert Context().home == Path.home() / ".local/state/vambrace"


def test_importing_the_package_is_light() -> None:
    """The VMM's process imports it, and must not be made to carry these."""
    code = (
        "import sys, vambrace; from vambrace.errors import VambraceError\n"
        "heavy = {'ssl', 'asyncio', 'cryptography', 'urllib3', 'websockets', 'cbor2', 'aiohttp', 'yaml', 'argparse'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import vambrace.cli.main\n"
        "heavy -= {'argparse'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from vambrace import Bundle, Host, Owner, Realm, Trust\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
