"""Who may exchange messages: Realms that name each other, and nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from messages_world import (
    Realm,
    Two,
    World,
    connect,
    dial,
    echo,
    endpoints,
    free_port,
    offer,
    read_all,
    reset,
    serving,
)

from vambrace.host.lifecycle import Lifecycle, State
from vambrace.host.messages import agreed


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


OFFER = offer("records", 8000, "alice", "ward")
CONNECT = connect("records", 9000, "bob", "registry")
MEASURED = f"{4:064x}"  # of the offerer, in ``agreement``
OTHER = "ab" * 32


@pytest.mark.parametrize(
    ("changes", "agree"),
    [
        ({}, True),
        ({"connect": {"realm": ""}, "offer": {"realm": ""}}, True),  # any of the owner's
        ({"connect": {"measurement": MEASURED}}, True),
        ({"connect": {"measurement": OTHER}}, False),
        ({"connect": {"measurement": OTHER, "realm": ""}}, False),
        ({"offer": {"measurement": OTHER}}, False),
        ({"connect": {"name": "other"}}, False),
        ({"connect": {"realm": "other"}}, False),
        ({"offer": {"realm": "other"}}, False),
        # One-sided: the other side offers, or asks for, something else, or nothing.
        ({"offer": None}, False),
        ({"offer": {"role": "connect"}}, False),
        # Another owner's Realm that bears the right name, on either side, or that does not even claim it.
        ({"offerer": "mallory"}, False),
        ({"caller": "mallory"}, False),
        ({"caller": "mallory", "offer": {"realm": ""}}, False),
        ({"offerer": "mallory", "connect": {"realm": ""}}, False),
        # What the operator calls a Realm is nothing.
        ({"offerer name": "other"}, False),
        ({"caller name": "other"}, False),
    ],
)
def test_both_must_name_each_other(world: World, changes: dict[str, object], agree: bool) -> None:
    def changed(endpoint: object, what: str) -> list[object]:
        change = changes.get(what, {})
        return [] if change is None else [endpoint.replace(**change)]  # type: ignore[attr-defined]

    def realm(what: str, owner: str, name: str, wanted: list[object]) -> Realm:
        owner, measured = str(changes.get(what, owner)), str(changes.get(f"{what} name", name))
        made = world.realm(owner, measured, *wanted, agent=False)  # type: ignore[arg-type]
        made.record.name = name  # as an operator may call any of them
        return made

    caller = realm("caller", "alice", "ward", changed(CONNECT, "connect"))
    offerer = realm("offerer", "bob", "registry", changed(OFFER, "offer"))
    assert offerer.record.measurement == MEASURED
    assert agreed(caller, 0, offerer) == (0 if agree else None)


def test_debug_realms_among_themselves(world: World) -> None:
    two = Two(world, caller=False, offerer=False)
    configs = [(realm.config, realm.config.replace(debug=True)) for realm in (two.caller, two.offerer)]
    for caller, two.caller.config in enumerate(configs[0]):
        for offerer, two.offerer.config in enumerate(configs[1]):
            assert agreed(two.caller, 0, two.offerer) == (0 if caller == offerer else None)


def test_denied_by_default(world: World) -> None:
    """A program that nobody agreed with has its connection reset, no agent is troubled, and both counts are right."""
    two = Two(world)
    stranger_port = free_port()
    stranger = world.realm("mallory", "ward", connect("records", stranger_port, "bob", "registry"))
    with serving(two.far, echo):
        assert reset(stranger_port)
        with dial(two.near) as program:
            program.sendall(b"known")
            assert program.recv(100) == b"known"
    (denied,) = world.counts(stranger)
    assert (denied["refused"], denied["connections"], denied["peer"], denied["sent"]) == (1, 0, None, 0)
    none, pair = world.counts(two.offerer)
    assert none["refused"] == pair["refused"] == 0
    assert (pair["peer"], pair["connections"], pair["received"], pair["sent"]) == ("ward", 1, 5, 5)


@pytest.mark.parametrize("state", [state for state in State if state is not State.RUNNING])
@pytest.mark.parametrize("which", ["caller", "offerer"])
def test_only_between_running_realms(world: World, state: State, which: str) -> None:
    """Before its owner's yes, and from its end on, no Realm is anybody's peer: images are anyone's to send."""
    two = Two(world)
    getattr(two, which).lifecycle = Lifecycle(state)
    with serving(two.far, echo):
        assert reset(two.near)
    assert world.counts(two.caller)[0]["refused"] == 1


def test_the_oldest_of_several(world: World) -> None:
    near, ports = free_port(), (free_port(), free_port())
    first, second = (world.realm("bob", "registry", offer("records", port, "alice")) for port in ports)
    world.realm("alice", "ward", connect("records", near, "bob"))
    with (
        serving(ports[0], lambda stream: stream.sendall(b"first")),
        serving(ports[1], lambda stream: stream.sendall(b"second")),
    ):
        assert read_all(dial(near)) == b"first"
        world.leave(first)
        assert read_all(dial(near)) == b"second"
    assert world.counts(second)[1]["connections"] == 1


def test_what_an_agent_may_ask_for(world: World) -> None:
    two = Two(world)
    for realm, index in ((two.caller, 1), (two.caller, -1), (two.offerer, 0)):
        with pytest.raises(endpoints.AgentError, match="no such endpoint"):
            world.ask(realm, index, 1)
