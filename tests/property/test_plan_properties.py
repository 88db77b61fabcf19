"""Properties of packing that must hold for every set of requests; no model is needed."""

from __future__ import annotations

import random
from collections import Counter
from itertools import takewhile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backslide.scoring.plan import Batch, Plan, Row, halves, plan
from backslide.scoring.requests import Request, Tokens

MANY = settings(deadline=None, max_examples=150)

# Few different tokens, so that beginnings are shared by chance as well as on purpose.
token = st.integers(0, 2)
tokens = st.lists(token, max_size=12).map(tuple)
sizes = st.fixed_dictionaries(
    {
        "row_tokens": st.sampled_from([1, 8, 16, 40, 4096]),
        "batch_tokens": st.sampled_from([1, 30, 100, 65536]),
        "shared": st.sampled_from([1, 4, 16]),
        "saved": st.sampled_from([None, 0, 8, 64]),
    }
)


@st.composite
def asked(draw: st.DrawFn, most: int = 12) -> list[Request]:
    """Items with a common beginning, a document that some are about, a context of their own and several choices."""
    beginning = draw(tokens)
    documents = draw(st.lists(tokens, min_size=1, max_size=3))
    requests = []
    for item in range(draw(st.integers(1, most))):
        # One token at least: what is scored is conditioned on something.
        context = (*beginning, *draw(st.sampled_from(documents)), *draw(tokens), draw(token))
        for choice in range(draw(st.integers(1, 4))):
            targets = tuple(draw(st.lists(token, min_size=1, max_size=6)))
            requests.append(Request(f"item {item}", choice, (*context, *targets)[:-1], targets))
    return requests


def sequence(batch: Batch, row: Row, place: int) -> Tokens:
    """What the token at `place` sees, in order."""
    path: list[int] = []
    while place >= 0:
        assert row.parents[place] < place, "a token stands behind its parent"
        path.append(row.tokens[place])
        place = row.parents[place]
    return (*batch.prefix, *reversed(path))


def check(packed: Plan, requests: list[Request]) -> None:
    """Each request is read once, and each of its places sees the tokens before it and nothing else."""
    read: Counter[int] = Counter()
    for batch in packed.batches:
        assert batch.rows
        for row in batch.rows:
            assert len(row.tokens) == len(row.parents) == len(row.depths) > 0
            for place, depth in enumerate(row.depths):
                assert depth == len(sequence(batch, row, place)) - 1
            for one in row.reads:
                request = requests[one.request]
                read[one.request] += 1
                first = len(request.fed) - len(request.targets) + 1
                for k, place in enumerate(one.nodes):
                    assert sequence(batch, row, place) == request.fed[: first + k]
                assert len(one.nodes) == len(request.targets)
    assert read == Counter(range(len(requests)))


@MANY
@given(asked(), sizes, st.booleans())
def test_every_request_is_read_once_behind_its_own_tokens(requests: Any, size: Any, tree: bool) -> None:
    packed = plan(requests, tree=tree, **size)
    check(packed, requests)
    if not tree:
        assert all(row.linear and not batch.prefix for batch in packed.batches for row in batch.rows)
    # A row holds no token twice that it could share; a prefix is never more than it saves.
    assert packed.tokens <= sum(len(request.fed) for request in requests) or size["saved"] == 0


@MANY
@given(asked(), sizes, st.booleans())
def test_sizes_are_kept(requests: Any, size: Any, tree: bool) -> None:
    by_item = Counter(request.item for request in requests)
    for batch in plan(requests, tree=tree, **size).batches:
        assert len(batch.rows) == 1 or len(batch.rows) * batch.length <= size["batch_tokens"]
        for row in batch.rows:
            members = Counter(requests[read.request].item for read in row.reads)
            if tree:
                # What all of a row begins with is not counted, whether a prefix apart or a part of the row.
                feds = [requests[read.request].fed[len(batch.prefix) :] for read in row.reads]
                begins = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*feds, strict=False)))
                assert len(row.tokens) - begins <= size["row_tokens"] or len(members) == 1
                if len(members) > 1:
                    assert all(members[item] == by_item[item] for item in members), "an item that fits is in one row"


@MANY
@given(asked(), sizes, st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_requests_does_not_matter(requests: Any, size: Any, tree: bool, drawn: random.Random) -> None:
    shuffled = list(requests)
    drawn.shuffle(shuffled)

    def content(packed: Plan, of: list[Request]) -> list[Any]:
        return [
            (batch.prefix, [(row.tokens, row.parents, {of[read.request] for read in row.reads}) for row in batch.rows])
            for batch in packed.batches
        ]

    assert content(plan(requests, tree=tree, **size), requests) == content(plan(shuffled, tree=tree, **size), shuffled)


@MANY
@given(asked(), sizes, st.booleans())
def test_packs_share_no_item_and_are_everything(requests: Any, size: Any, tree: bool) -> None:
    packed = plan(requests, tree=tree, **size)
    packs = packed.packs(requests)
    assert sorted(number for pack in packs for number in pack) == list(range(len(packed.batches)))
    seen: set[str] = set()
    for pack in packs:
        assert list(pack) == sorted(pack)
        batches = [packed.batches[number] for number in pack]
        items = {requests[read.request].item for batch in batches for row in batch.rows for read in row.reads}
        assert not items & seen
        seen |= items


@MANY
@given(asked(), sizes, st.booleans())
def test_halving_comes_down_to_single_requests(requests: Any, size: Any, tree: bool) -> None:
    packed = plan(requests, tree=tree, **size)
    waiting, single = list(packed.batches), []
    while waiting:
        batch = waiting.pop()
        parts = halves(batch, requests)
        assert (parts is None) is (not batch.divisible)
        if parts is None:
            single.append(batch)
            continue
        for part in parts:
            assert part.prefix == batch.prefix
            assert len(part.rows) * part.length <= len(batch.rows) * batch.length
        waiting += parts
    assert all(len(batch.rows) == 1 and len(batch.rows[0].reads) == 1 for batch in single)
    check(Plan(tuple(single), tree), requests)


def test_a_few_shot_prefix_is_computed_once() -> None:
    shots = tuple(range(500))
    requests = [
        Request(f"item {item}", k, (*shots, 1000 + item, 2000 + item, 3000 + k), (3000 + k, 3100 + k))
        for item in range(200)
        for k in range(4)
    ]
    packed = plan(requests, row_tokens=256, batch_tokens=1024)
    check(packed, requests)
    assert {batch.prefix for batch in packed.batches} == {shots}
    assert packed.tokens == 500 + 200 * 6


def test_two_documents_with_questions_and_a_common_prompt() -> None:
    """Nested prefixes: the prompt of all, and a document before the questions on it."""
    prompt = tuple(range(100))
    requests = [
        Request(
            f"{d}/{q}", 0, (*prompt, *range(1000 * d, 1000 * d + 300), 100 * d + q, *range(5000 + q, 5040 + q)), (7,)
        )
        for d in (1, 2)
        for q in range(40)
    ]
    packed = plan(requests, row_tokens=256, batch_tokens=1024)
    check(packed, requests)
    assert {len(batch.prefix) for batch in packed.batches} == {400}
    assert packed.tokens == 2 * 400 + 80 * 41
