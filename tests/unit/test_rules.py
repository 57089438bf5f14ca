"""The rules as values and as text: rendering, and telling what differs from what is there."""

import json
from ipaddress import IPv4Network

import pytest
from kersey_control.rules import iptables, nftables
from kersey_control.rules.base import RuleSet, desired_rules

NETWORK = IPv4Network("10.5.0.0/16")
SUBNET = IPv4Network("10.5.1.0/24")

MASQ = '-m comment --comment "flanneld masq"'
POSTRTG = [
    f"-m mark --mark 0x4000/0x4000 {MASQ} -j RETURN",
    f"-s 10.5.1.0/24 -d 10.5.0.0/16 {MASQ} -j RETURN",
    f"-s 10.5.0.0/16 -d 10.5.1.0/24 {MASQ} -j RETURN",
    f"! -s 10.5.0.0/16 -d 10.5.1.0/24 {MASQ} -j RETURN",
    f"-s 10.5.0.0/16 ! -d 224.0.0.0/4 {MASQ} -j MASQUERADE --random-fully",
    f"! -s 10.5.0.0/16 -d 10.5.0.0/16 {MASQ} -j MASQUERADE --random-fully",
]
JUMP = f"{MASQ} -j FLANNEL-POSTRTG"


def rules(*, masquerade: bool = True, forward: bool = True, random_fully: bool = True) -> RuleSet:
    return desired_rules(
        network=NETWORK,
        subnet=SUBNET,
        masquerade=masquerade,
        forward=forward,
        random_fully=random_fully,
    )


def listing(
    *, jumps: tuple[str, ...] = (JUMP,), chain: list[str] | None = POSTRTG
) -> iptables.Listing:
    lines = ["-P POSTROUTING ACCEPT", *(f"-A POSTROUTING {jump}" for jump in jumps)]
    if chain is not None:
        lines += ["-N FLANNEL-POSTRTG", *(f"-A FLANNEL-POSTRTG {rule}" for rule in chain)]
    return iptables.parse_listing("\n".join(lines))


def differences(held: iptables.Listing) -> tuple[str, ...]:
    return iptables.differs(POSTRTG, place=iptables.MASQUERADE, listing=held)


def test_masquerade_chain_is_rendered_as_iptables_prints_it() -> None:
    rendered = iptables.render_chain(
        rules().masquerade, place=iptables.MASQUERADE, random_fully=True
    )
    assert rendered == POSTRTG


def test_random_fully_is_left_out_when_not_wanted() -> None:
    rendered = iptables.render_chain(
        rules().masquerade, place=iptables.MASQUERADE, random_fully=False
    )
    assert rendered == [rule.removesuffix(" --random-fully") for rule in POSTRTG]
    assert "fully-random" not in nftables.render(rules(random_fully=False))
    assert nftables.render(rules()).count("masquerade fully-random") == 2


def test_a_part_that_is_off_has_no_rules() -> None:
    assert rules(masquerade=False).masquerade == ()
    assert rules(forward=False).forward == ()
    assert "postrtg" not in nftables.render(rules(masquerade=False))
    assert "chain forward" not in nftables.render(rules(forward=False))


def test_equal_rules_do_not_differ() -> None:
    assert differences(listing()) == ()
    assert differences(listing(jumps=("-o eth0 -j OTHER", JUMP, "-j LAST"))) == ()


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        (listing(chain=None), "nat FLANNEL-POSTRTG: chain is missing"),
        (listing(chain=POSTRTG[1:]), "nat FLANNEL-POSTRTG: missing: -m mark"),
        (listing(chain=["-j RETURN", *POSTRTG]), "nat FLANNEL-POSTRTG: foreign: -j RETURN"),
        (listing(chain=POSTRTG[::-1]), "nat FLANNEL-POSTRTG: out of order"),
        (listing(chain=[*POSTRTG, POSTRTG[0]]), "nat FLANNEL-POSTRTG: out of order or doubled"),
        (listing(jumps=()), "nat POSTROUTING: missing: -m comment"),
        (listing(jumps=(JUMP, JUMP)), "nat POSTROUTING: out of order or doubled"),
        (listing(jumps=("-o x -j FLANNEL-POSTRTG", JUMP)), "nat POSTROUTING: foreign: -o x"),
    ],
)
def test_each_difference_is_named(held: iptables.Listing, reason: str) -> None:
    (found,) = differences(held)
    assert found.startswith(reason)


def test_nothing_wanted_and_nothing_there_do_not_differ() -> None:
    held = listing(jumps=("-j OTHER",), chain=None)
    assert iptables.differs((), place=iptables.MASQUERADE, listing=held) == ()


def test_nothing_wanted_names_chain_and_jump_that_are_left() -> None:
    found = iptables.differs((), place=iptables.MASQUERADE, listing=listing(chain=[]))
    assert found[0] == "nat FLANNEL-POSTRTG: chain must not exist"
    assert found[1].startswith("nat POSTROUTING: foreign: -m comment")


def test_a_good_jump_keeps_its_place_in_a_transaction() -> None:
    text = iptables.render_transaction(POSTRTG, place=iptables.MASQUERADE, listing=listing())
    assert text.splitlines() == [
        "*nat",
        ":FLANNEL-POSTRTG - [0:0]",
        "-F FLANNEL-POSTRTG",
        *(f"-A FLANNEL-POSTRTG {rule}" for rule in POSTRTG),
        "COMMIT",
    ]


def test_surplus_and_altered_jumps_are_deleted_and_a_missing_one_appended() -> None:
    altered = "-o x -j FLANNEL-POSTRTG"
    doubled = listing(jumps=(JUMP, altered, JUMP))
    text = iptables.render_transaction(POSTRTG, place=iptables.MASQUERADE, listing=doubled)
    assert text.splitlines()[-3:-1] == [f"-D POSTROUTING {altered}", f"-D POSTROUTING {JUMP}"]
    only_altered = listing(jumps=(altered,))
    text = iptables.render_transaction(POSTRTG, place=iptables.MASQUERADE, listing=only_altered)
    assert text.splitlines()[-3:-1] == [f"-D POSTROUTING {altered}", f"-A POSTROUTING {JUMP}"]


def test_removal_takes_jumps_out_of_every_chain_before_the_chain_goes() -> None:
    saved = iptables.parse_save(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n:MINE - [0:0]\n:FLANNEL-POSTRTG - [0:0]\n"
        f"-A POSTROUTING {JUMP}\n-A MINE -g FLANNEL-POSTRTG\n-A MINE -j RETURN\nCOMMIT\n"
    )
    text = iptables.render_transaction((), place=iptables.MASQUERADE, listing=saved["nat"])
    assert text.splitlines() == [
        "*nat",
        f"-D POSTROUTING {JUMP}",
        "-D MINE -g FLANNEL-POSTRTG",
        "-F FLANNEL-POSTRTG",
        "-X FLANNEL-POSTRTG",
        "COMMIT",
    ]


def test_saved_tables_are_kept_apart() -> None:
    saved = iptables.parse_save(
        "# made by\n*nat\n:A - [0:0]\nCOMMIT\n*filter\n:FORWARD DROP [3:180]\n-A FORWARD -j X\n"
        "COMMIT\n"
    )
    assert saved["nat"].chains == {"A": []}
    assert saved["filter"].chains == {"FORWARD": ["-j X"]}
    assert saved["filter"].policies == {"FORWARD": "DROP"}


@pytest.mark.parametrize(
    ("forward", "hazards"),
    [
        (["-j REJECT --reject-with icmp-port-unreachable", "-j FLANNEL-FWD"], 1),
        (['-m comment --comment "the end" -j DROP', "-j FLANNEL-FWD"], 1),
        (["-j FLANNEL-FWD", "-j REJECT"], 0),
        (["-i eth0 -j DROP", "-j FLANNEL-FWD"], 0),
        (["-j DOCKER-USER", "-j FLANNEL-FWD"], 0),
        (["-j DROP"], 2),
    ],
)
def test_only_an_unconditional_stop_before_our_jump_is_a_hazard(
    forward: list[str], hazards: int
) -> None:
    text = "\n".join(["-P FORWARD DROP", *(f"-A FORWARD {rule}" for rule in forward)])
    found = iptables.forward_hazards(iptables.parse_listing(text), where="iptables")
    assert len(found) == hazards


def nft_match(field: str) -> dict[str, object]:
    left = {"payload": {"protocol": "ip", "field": field}}
    right = {"prefix": {"addr": "10.5.0.0", "len": 16}}
    return {"match": {"op": "==", "left": left, "right": right}}


def nft_rule(*expr: dict[str, object]) -> dict[str, object]:
    where = {"family": "ip", "table": "flannel-ipv4", "chain": "forward"}
    return {"rule": {**where, "comment": "flanneld forward", "expr": list(expr)}}


def nft_chain(**changes: object) -> dict[str, object]:
    hook = {"type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}
    name = {"family": "ip", "table": "flannel-ipv4", "name": "forward"}
    return {"chain": {**name, **hook, **changes}}


META: dict[str, object] = {"metainfo": {"version": "1.0.6"}}
NFT_TABLE: dict[str, object] = {"table": {"family": "ip", "name": "flannel-ipv4", "handle": 3}}
DORMANT: dict[str, object] = {"table": {"name": "flannel-ipv4", "flags": "dormant"}}
SOURCE = nft_rule(nft_match("saddr"), {"accept": None})
DESTINATION = nft_rule(nft_match("daddr"), {"accept": None})
FOREIGN = nft_rule({"drop": None})


def nft_document(*objects: dict[str, object]) -> str:
    return json.dumps({"nftables": [META, *objects]})


def test_an_equal_nft_table_does_not_differ() -> None:
    document = nft_document(NFT_TABLE, nft_chain(), SOURCE, DESTINATION)
    assert nftables.differs(rules(masquerade=False), document) == ()


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ((NFT_TABLE, nft_chain(), DESTINATION), "chain forward: missing: "),
        ((NFT_TABLE, nft_chain(), DESTINATION, SOURCE), "chain forward: out of order"),
        ((NFT_TABLE, nft_chain(), FOREIGN, SOURCE, DESTINATION), "chain forward: foreign: "),
        ((DORMANT, nft_chain(), SOURCE, DESTINATION), "table flannel-ipv4: flags dormant"),
        (
            (NFT_TABLE, nft_chain(), {"set": {"name": "s"}}, SOURCE, DESTINATION),
            "table flannel-ipv4: foreign set",
        ),
    ],
)
def test_each_nft_difference_is_named(objects: tuple[dict[str, object], ...], reason: str) -> None:
    (found,) = nftables.differs(rules(masquerade=False), nft_document(*objects))
    assert found.startswith(reason)


@pytest.mark.parametrize("change", [{"policy": "drop"}, {"prio": 10}, {"hook": "input"}])
def test_an_nft_chain_hooked_otherwise_differs(change: dict[str, object]) -> None:
    document = nft_document(NFT_TABLE, nft_chain(**change), SOURCE, DESTINATION)
    missing, foreign = nftables.differs(rules(masquerade=False), document)
    assert missing == "missing: chain forward filter forward 0 accept"
    assert foreign.startswith("foreign: chain forward")


def test_an_absent_nft_table_differs_only_if_one_is_wanted() -> None:
    nothing = rules(masquerade=False, forward=False)
    assert nftables.differs(rules(), None) == ("table flannel-ipv4: missing",)
    assert nftables.differs(nothing, None) == ()
    assert nftables.differs(nothing, nft_document(NFT_TABLE)) == (
        "table flannel-ipv4: must not exist",
    )


@pytest.mark.parametrize("flags", ["fully-random", ["fully-random"]])
def test_both_json_forms_of_the_masquerade_flag_are_equal(flags: object) -> None:
    chain: dict[str, object] = {"name": "postrtg", "type": "nat", "hook": "postrouting"}
    chain |= {"prio": 100, "policy": "accept"}
    masquerade = {"chain": "postrtg", "expr": [{"masquerade": {"flags": flags}}]}
    document = nft_document(NFT_TABLE, {"chain": chain}, {"rule": masquerade})
    foreign = [text for text in nftables.differs(rules(), document) if "foreign" in text]
    assert foreign == ['chain postrtg: foreign: [{"masquerade": {"flags": ["fully-random"]}}]']


@pytest.mark.parametrize(
    ("policy", "expressions", "hazards"),
    [
        ("drop", [], ["nft ip filter FORWARD: policy drop"]),
        ("accept", [{"counter": None}, {"drop": None}], ["nft ip filter FORWARD: drop"]),
        ("accept", [{"reject": {"type": "icmpx"}}], ["nft ip filter FORWARD: reject"]),
        ("accept", [nft_match("saddr"), {"drop": None}], []),
        ("drop", [{"counter": None}, {"jump": {"target": "FLANNEL-FWD"}}], []),
    ],
)
def test_a_foreign_nft_chain_is_a_hazard_if_it_stops_everything(
    policy: str, expressions: list[dict[str, object]], hazards: list[str]
) -> None:
    chain = nft_chain(table="filter", name="FORWARD", policy=policy)
    document = nft_document(chain, {"rule": {"chain": "FORWARD", "expr": expressions}})
    assert [hazard.rule for hazard in nftables.chain_hazards(document)] == hazards


def test_only_foreign_ipv4_forward_chains_are_looked_at() -> None:
    document = nft_document(
        nft_chain(),
        nft_chain(table="fw", family="inet"),
        nft_chain(table="v6", family="ip6"),
        nft_chain(table="in", hook="input"),
        {"chain": {"family": "ip", "table": "plain", "name": "no-hook"}},
    )
    assert nftables.foreign_forward_chains(document) == [("inet", "fw", "forward")]
