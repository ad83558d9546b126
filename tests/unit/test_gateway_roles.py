"""Roles, the rules for members of a workspace, and client addresses behind proxies."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.http.client_address import UNKNOWN, address_behind_proxies, came_by_https, parse_networks
from services.gateway.identity.caller import NeedsRole, Role
from services.gateway.identity.memberships import (
    MAX_MEMBERS,
    Members,
    Membership,
    NoSuchMember,
    WorkspaceRefused,
    with_member,
    with_role,
    without_member,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def members(**roles: Role) -> Members:
    return {name: Membership(name, name, role, NOW) for name, role in roles.items()}


def test_a_role_includes_the_lower_ones() -> None:
    ladder = [Role.VIEWER, Role.MEMBER, Role.ADMIN, Role.OWNER]
    for place, role in enumerate(ladder):
        assert [role.allows(needed) for needed in ladder] == [place >= other for other in range(4)]
        assert role.at_most(Role.MEMBER) is ladder[min(place, 1)]


def test_an_admin_adds_members_but_no_owners() -> None:
    start = members(ann=Role.OWNER)
    for role in (Role.VIEWER, Role.MEMBER, Role.ADMIN):
        assert with_member(start, Membership("bob", "bob", role, NOW), Role.ADMIN)["bob"].role is role
    with pytest.raises(NeedsRole) as needed:
        with_member(start, Membership("bob", "bob", Role.OWNER, NOW), Role.ADMIN)
    assert needed.value.role is Role.OWNER
    assert with_member(start, Membership("bob", "bob", Role.OWNER, NOW), Role.OWNER)["bob"].role is Role.OWNER
    with pytest.raises(WorkspaceRefused):
        with_member(start, Membership("ann", "ann", Role.VIEWER, NOW), Role.OWNER)


def test_a_workspace_has_a_member_limit() -> None:
    full = members(**{f"m{number}": Role.OWNER for number in range(MAX_MEMBERS)})
    with pytest.raises(WorkspaceRefused):
        with_member(full, Membership("bob", "bob", Role.VIEWER, NOW), Role.OWNER)


def test_only_an_owner_changes_owners() -> None:
    two = members(ann=Role.OWNER, bob=Role.OWNER, cid=Role.MEMBER)
    changes: list[Callable[[Role], Members]] = [
        lambda by: with_role(two, "bob", Role.VIEWER, by, home_of=None),
        lambda by: with_role(two, "cid", Role.OWNER, by, home_of=None),
        lambda by: without_member(two, "bob", by, home_of=None),
    ]
    for change in changes:
        with pytest.raises(NeedsRole):
            change(Role.ADMIN)
        assert change(Role.OWNER)


def test_the_last_owner_stays() -> None:
    one = members(ann=Role.OWNER, bob=Role.ADMIN)
    with pytest.raises(WorkspaceRefused):
        without_member(one, "ann", Role.OWNER, home_of=None)
    with pytest.raises(WorkspaceRefused):
        with_role(one, "ann", Role.ADMIN, Role.OWNER, home_of=None)
    assert with_role(one, "ann", Role.OWNER, Role.OWNER, home_of=None) == one


def test_a_personal_workspace_keeps_its_owner() -> None:
    two = members(ann=Role.OWNER, bob=Role.OWNER)
    with pytest.raises(WorkspaceRefused):
        without_member(two, "ann", Role.OWNER, home_of="ann")
    with pytest.raises(WorkspaceRefused):
        with_role(two, "ann", Role.VIEWER, Role.OWNER, home_of="ann")
    assert "bob" not in without_member(two, "bob", Role.OWNER, home_of="ann")


def test_an_unknown_member_cannot_be_changed() -> None:
    with pytest.raises(NoSuchMember):
        with_role(members(ann=Role.OWNER), "bob", Role.ADMIN, Role.OWNER, home_of=None)
    with pytest.raises(NoSuchMember):
        without_member(members(ann=Role.OWNER), "bob", Role.OWNER, home_of=None)


names = st.sampled_from(["ann", "bob", "cid"])
roles = st.sampled_from(list(Role))
steps = st.lists(st.tuples(st.sampled_from(["add", "change", "remove"]), names, names, roles), max_size=30)


@given(steps)
def test_changes_keep_an_owner_and_respect_the_callers_role(
    todo: list[tuple[str, str, str, Role]],
) -> None:
    now = members(ann=Role.OWNER)
    for step, actor, target, role in todo:
        if actor not in now or not now[actor].role.allows(Role.ADMIN):
            continue
        by, before = now[actor].role, now
        try:
            if step == "add":
                now = with_member(now, Membership(target, target, role, NOW), by)
            elif step == "change":
                now = with_role(now, target, role, by, home_of=None)
            else:
                now = without_member(now, target, by, home_of=None)
        except (WorkspaceRefused, NeedsRole, NoSuchMember):
            continue
        assert any(member.role is Role.OWNER for member in now.values())
        lifted = now.get(target)
        assert lifted is None or by.allows(lifted.role) or before[target].role is lifted.role


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "expected"),
    [
        ("198.51.100.7", [], "", "198.51.100.7"),
        ("198.51.100.7", ["203.0.113.9"], "", "198.51.100.7"),
        ("198.51.100.7", ["203.0.113.9"], "10.0.0.0/8", "198.51.100.7"),
        ("10.1.2.3", ["203.0.113.9"], "10.0.0.0/8", "203.0.113.9"),
        ("10.1.2.3", ["6.6.6.6, 203.0.113.9"], "10.0.0.0/8", "203.0.113.9"),
        ("10.1.2.3", ["6.6.6.6, 203.0.113.9, 10.9.9.9"], "10.0.0.0/8", "203.0.113.9"),
        ("10.1.2.3", ["6.6.6.6", "203.0.113.9"], "10.0.0.0/8", "203.0.113.9"),
        ("10.1.2.3", ["203.0.113.9, rubbish"], "10.0.0.0/8", "10.1.2.3"),
        ("10.1.2.3", [""], "10.0.0.0/8", "10.1.2.3"),
        ("10.1.2.3", ["10.1.1.1"], "10.0.0.0/8", "10.1.1.1"),
        ("10.1.2.3", ["203.0.113.9:4711"], "10.0.0.0/8", "203.0.113.9"),
        ("10.1.2.3", ["[2001:db8::1]:4711"], "10.0.0.0/8", "2001:db8::1"),
        ("::ffff:10.1.2.3", ["2001:db8::1"], "10.0.0.0/8", "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "fd00::/8,10.0.0.1", "2001:db8::1"),
        ("", ["203.0.113.9"], "10.0.0.0/8", UNKNOWN),
        ("testclient", ["203.0.113.9"], "10.0.0.0/8", UNKNOWN),
    ],
)
def test_client_addresses(peer: str, forwarded: list[str], trusted: str, expected: str) -> None:
    assert address_behind_proxies(peer, forwarded, parse_networks(trusted)) == expected


@pytest.mark.parametrize(
    ("scheme", "peer", "said", "expected"),
    [
        ("https", "203.0.113.9", None, True),
        ("http", "203.0.113.9", "https", False),
        ("http", "10.0.0.2", "https", True),
        ("http", "10.0.0.2", "http", False),
        ("http", "10.0.0.2", None, False),
    ],
)
def test_https_detection(scheme: str, peer: str, said: str | None, expected: bool) -> None:
    headers = [(b"x-forwarded-proto", said.encode())] if said else []
    scope = {"type": "http", "scheme": scheme, "client": (peer, 4000), "headers": headers}
    assert came_by_https(scope, parse_networks("10.0.0.0/8")) is expected
