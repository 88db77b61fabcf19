"""Requests to prefix trees, packed into rows. Pure Python: no model and no torch.

Requests that begin alike share the tokens of their common beginning: the question in front of its choices, a
document that several questions are about, the few-shot examples or the system prompt in front of everything. A row
is a small forest of such trees, laid out so that every token stands behind its parent; a mask then lets each token
see its ancestors alone. A beginning that would be repeated in many rows becomes a batch's *prefix*, which is
computed once, and whose keys and values the rows attend to.

The plan depends on the requests and the sizes alone, so base and candidate are scored in the very same company. An
item's requests stay in one row, and items come into rows in an order that has nothing to do with what they ask, so
a batch is a fair sample of the suite.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from backslide.scoring.requests import Request, Tokens

SHARED = 16
"""Tokens in common from which it pays to keep items together, or to compute their beginning once."""
SAVED = 64
"""Tokens that a prefix has to save before it is worth a forward pass of its own."""
READS = 1024
"""Places of a batch that are read, at most (unless a single row has more): each costs a row of the vocabulary."""
OPEN_ROWS = 16
"""Rows that are kept open while packing."""


@dataclass(frozen=True, slots=True)
class Read:
    """Where a request's log-likelihoods are read in a row."""

    request: int
    """Index of the request in the list that was planned."""
    nodes: tuple[int, ...]
    """For each token of the continuation the place in the row at which it is predicted."""


@dataclass(frozen=True, slots=True)
class Row:
    """Some requests' tokens in one sequence; place k holds `tokens[k]`, a child of place `parents[k]`."""

    tokens: Tokens
    parents: Tokens
    """Place of the token before; -1 where a sequence begins (behind the batch's prefix, where it has one)."""
    depths: Tokens
    """Position of the token in its own sequence, from 0, the prefix counted."""
    reads: tuple[Read, ...]

    @property
    def linear(self) -> bool:
        """Whether the row is a single sequence without branches."""
        return all(parent == place - 1 for place, parent in enumerate(self.parents))

    @property
    def places(self) -> int:
        """Number of distinct places that are read."""
        return len({node for read in self.reads for node in read.nodes})


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one forward pass."""

    rows: tuple[Row, ...]
    prefix: Tokens = ()
    """What stands before every sequence of every row, and is in no row."""

    @property
    def length(self) -> int:
        """Length of the longest row."""
        return max(len(row.tokens) for row in self.rows)

    @property
    def divisible(self) -> bool:
        """Whether it holds more than one request."""
        return len(self.rows) > 1 or len(self.rows[0].reads) > 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows in batches; neighbouring batches share a prefix where they can."""

    batches: tuple[Batch, ...]
    tree: bool
    """Whether rows have branches, so that the model must take a mask of its own."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding not counted and each prefix once."""
        prefixes = {batch.prefix for batch in self.batches}
        return sum(map(len, prefixes)) + sum(len(row.tokens) for batch in self.batches for row in batch.rows)

    def packs(self, requests: Sequence[Request]) -> tuple[tuple[int, ...], ...]:
        """Batches that stand for themselves: no item has requests in two of the packs.

        What is looked at in part is looked at in whole packs, so that an item is always in the same company.

        Returns:
            For each pack the indices of its batches, in ascending order.
        """
        pack = list(range(len(self.batches)))
        home: dict[str, int] = {}

        def root(batch: int) -> int:
            while pack[batch] != batch:
                batch = pack[batch]
            return batch

        for number, batch in enumerate(self.batches):
            for item in {requests[read.request].item for row in batch.rows for read in row.reads}:
                first, second = sorted((root(home.setdefault(item, number)), root(number)))
                pack[second] = first
        together: dict[int, list[int]] = {}
        for number in range(len(self.batches)):
            together.setdefault(root(number), []).append(number)
        return tuple(tuple(batches) for batches in together.values())


def plan(
    requests: Sequence[Request],
    *,
    row_tokens: int,
    batch_tokens: int,
    tree: bool = True,
    shared: int = SHARED,
    saved: int | None = SAVED,
) -> Plan:
    """Pack `requests` into rows of about `row_tokens` and batches of about `batch_tokens`, padding included.

    An item longer than `row_tokens` has a row of its own, or several where its requests have less in common than
    not.

    Args:
        requests: what is asked.
        row_tokens: the most tokens of a row that holds more than one item; what all of it begins with is not
            counted, since it is computed once however many items follow.
        batch_tokens: the most tokens of a batch, where it holds more than one row.
        tree: False makes every row one plain sequence, which serves the requests that are its beginning: the layout
            for models that cannot take a mask.
        shared: see `SHARED`.
        saved: see `SAVED`; None computes no prefix apart, for models that cannot continue from one.
    """
    units = _units(requests)
    if not tree:
        return Plan(tuple(_flat_batches(requests, units, batch_tokens)), tree)
    batches: list[Batch] = []
    for pool in _pools(requests, units, row_tokens, shared):
        rows = _rows(requests, pool, row_tokens, shared)
        worth = saved is not None and (len(rows) - 1) * len(pool.prefix) >= saved
        prefix = pool.prefix if worth else ()
        built = [_build(requests, row, len(prefix)) for row in rows]
        # Rows of one length need no padding; the stable sort keeps equal ones in their order.
        built.sort(key=lambda row: len(row.tokens))
        batches += (Batch(tuple(group), prefix) for group in _batched(built, batch_tokens))
    return Plan(tuple(batches), tree)


def halves(batch: Batch, requests: Sequence[Request]) -> tuple[Batch, Batch] | None:
    """Two batches that ask the same with less memory each; None for a batch of a single request."""
    if len(batch.rows) > 1:
        middle = len(batch.rows) // 2
        return Batch(batch.rows[:middle], batch.prefix), Batch(batch.rows[middle:], batch.prefix)
    if not batch.divisible:
        return None
    # Reads are in the order of their tokens, so each half keeps what its requests have in common.
    members = [read.request for read in batch.rows[0].reads]
    middle, prefix = len(members) // 2, len(batch.prefix)
    first, second = (_build(requests, part, prefix) for part in (members[:middle], members[middle:]))
    return Batch((first,), batch.prefix), Batch((second,), batch.prefix)


@dataclass(slots=True)
class _Unit:
    """The requests of one item."""

    requests: list[int]
    """In the order of their tokens."""
    own: int
    """Tokens of their tree."""
    limit: int
    """Tokens before the first place that is read: no prefix may reach further."""
    order: int
    """A number drawn from the item's id, by which items are put in order."""


@dataclass(slots=True)
class _Pool:
    """Items that are packed together, behind a common prefix."""

    prefix: Tokens
    units: list[_Unit]
    common: list[int]
    """Tokens that each unit has in common with the one before; 0 for the first."""


def _units(requests: Sequence[Request]) -> list[_Unit]:
    """Requests by item, in the order of their tokens."""
    by_item: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        by_item.setdefault(request.item, []).append(index)
    units = []
    for item, indices in by_item.items():
        indices.sort(key=lambda i: (requests[i].fed, requests[i].targets))
        feds = [requests[i].fed for i in indices]
        own = len(feds[0]) + sum(len(b) - _common(a, b) for a, b in pairwise(feds))
        limit = min(len(requests[i].fed) - len(requests[i].targets) for i in indices)
        for a, b in pairwise(feds):
            limit = min(limit, _common(a, b))
        units.append(_Unit(indices, own, limit, zlib.crc32(item.encode())))
    # The requests' own order must not matter: items with the very same tokens are told apart by their number.
    units.sort(key=lambda unit: (requests[unit.requests[0]].fed, unit.order))
    return units


def _pools(requests: Sequence[Request], units: list[_Unit], row_tokens: int, shared: int) -> list[_Pool]:
    """Cut the items, in the order of their tokens, into pools that are packed apart, each behind its own prefix.

    Nested prefixes (a system prompt before several few-shot prompts) make a pool for each that fills rows enough,
    and one for the rest.
    """
    first = [requests[unit.requests[0]].fed for unit in units]
    common = [0, *(_common(a, b) for a, b in pairwise(first))]
    pools: list[_Pool] = []
    # Spans (begin, end) of `units`, each with the tokens that its surroundings have in common.
    waiting = [(0, len(units), 0)] if units else []
    while waiting:
        begin, end, known = waiting.pop()
        level = _prefix(units, common, begin, end)
        if level < known + shared:
            level = known
        rest: list[_Unit] = []
        among: list[int] = []
        for a, b in _runs(common, begin, end, level + shared):
            # A run of items with much more in common than all have is packed apart where that saves tokens.
            more = _prefix(units, common, a, b) - level
            beyond = sum(unit.own for unit in units[a:b]) - sum(common[a + 1 : b]) - level
            apart = b - a < end - begin and more >= shared and _saves(b - a, more, beyond, row_tokens)
            if apart:
                waiting.append((a, b, level))
            else:
                rest += units[a:b]
                among += [level, *common[a + 1 : b]]
        if rest:
            pools.append(_Pool(first[begin][:level], rest, among))
    return pools


def _prefix(units: Sequence[_Unit], common: Sequence[int], begin: int, end: int) -> int:
    """Tokens that the items of a span have in common and none of which is read."""
    return min([*(units[k].limit for k in range(begin, end)), *common[begin + 1 : end]])


def _saves(items: int, prefix: int, beyond: int, row_tokens: int) -> bool:
    """Whether items with `prefix` more tokens in common, `beyond` tokens in all, are better packed apart."""
    own = beyond - prefix
    room = row_tokens - prefix
    together = min(items, -(-own // room)) if room > 0 else items
    return (together - 1) * prefix >= row_tokens


def _runs(common: Sequence[int], begin: int, end: int, level: int) -> Iterable[tuple[int, int]]:
    """The longest spans within [begin, end) whose neighbours have at least `level` tokens in common."""
    start = begin
    for k in range(begin + 1, end):
        if common[k] < level:
            yield start, k
            start = k
    yield start, end


def _rows(requests: Sequence[Request], pool: _Pool, row_tokens: int, shared: int) -> list[list[int]]:
    """The requests of each row of a pool."""
    base = len(pool.prefix)
    families: list[tuple[int, int, list[int]]] = []
    for a, b in _runs(pool.common, 0, len(pool.units), base + shared):
        size, members = 0, list[int]()
        for k in range(a, b):
            unit = pool.units[k]
            more = unit.own - (pool.common[k] if members else base)
            if members and size + more > row_tokens:
                families.append((pool.units[k - 1].order, size, members))
                size, members, more = 0, [], unit.own - base
            size += more
            members.extend(unit.requests)
        families.append((pool.units[b - 1].order, size, members))
    families.sort(key=lambda family: (family[0], requests[family[2][0]].fed))

    done: list[list[int]] = []
    open_rows: list[tuple[int, list[int]]] = []
    for _, size, members in families:
        if size > row_tokens:
            done += _split(requests, members, row_tokens)
            continue
        # Best fit: the fullest row that still has room.
        fits = [k for k, (used, _) in enumerate(open_rows) if used + size <= row_tokens]
        if fits:
            best = max(fits, key=lambda k: open_rows[k][0])
            used, row = open_rows[best]
            open_rows[best] = (used + size, row + members)
            continue
        if len(open_rows) == OPEN_ROWS:
            fullest = max(range(len(open_rows)), key=lambda k: open_rows[k][0])
            done.append(open_rows.pop(fullest)[1])
        open_rows.append((size, list(members)))
    return done + [row for _, row in open_rows]


def _split(requests: Sequence[Request], members: list[int], row_tokens: int) -> list[list[int]]:
    """Rows of an item that is longer than a row: cut only where its requests have less in common than not."""
    rows: list[list[int]] = []
    size = 0
    previous: Tokens = ()
    for index in sorted(members, key=lambda i: (requests[i].fed, requests[i].targets)):
        fed = requests[index].fed
        shared = _common(previous, fed)
        if rows and (size + len(fed) - shared <= row_tokens or shared >= len(fed) - shared):
            rows[-1].append(index)
            size += len(fed) - shared
        else:
            rows.append([index])
            size = len(fed)
        previous = fed
    return rows


def _build(requests: Sequence[Request], members: list[int], prefix: int) -> Row:
    """Lay out the trees of some requests, without the first `prefix` tokens, which they have in common."""
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    path: list[int] = []  # places of the current sequence, from behind the prefix
    reads: list[Read] = []
    previous: Tokens = ()
    for index in sorted(members, key=lambda i: (requests[i].fed, requests[i].targets, i)):
        request = requests[index]
        fed = request.fed
        shared = max(_common(previous, fed), prefix)
        if shared < len(fed):
            place, more = len(tokens), len(fed) - shared
            del path[shared - prefix :]
            parents.append(path[-1] if path else -1)
            parents.extend(range(place, place + more - 1))
            tokens.extend(fed[shared:])
            depths.extend(range(shared, len(fed)))
            path.extend(range(place, place + more))
        first = len(fed) - len(request.targets)
        reads.append(Read(index, tuple(path[first - prefix : len(fed) - prefix])))
        previous = fed
    return Row(tuple(tokens), tuple(parents), tuple(depths), tuple(reads))


def _batched(rows: Iterable[Row], batch_tokens: int) -> Iterable[list[Row]]:
    batch: list[Row] = []
    longest = places = 0
    for row in rows:
        longest, places = max(longest, len(row.tokens)), places + row.places
        if batch and (longest * (len(batch) + 1) > batch_tokens or places > READS):
            yield batch
            batch, longest, places = [], len(row.tokens), row.places
        batch.append(row)
    if batch:
        yield batch


def _flat_batches(requests: Sequence[Request], units: list[_Unit], batch_tokens: int) -> Iterable[Batch]:
    """Plain rows: items by length, so that little padding is needed, and an item's rows side by side."""
    rows: list[Row] = []
    for unit in sorted(units, key=lambda unit: (max(len(requests[i].fed) for i in unit.requests), unit.order)):
        members: list[int] = []
        # From the longest of those that begin alike to the shortest, so that the beginnings of a row come after it.
        for index in reversed(unit.requests):
            fed = requests[index].fed
            if members and requests[members[0]].fed[: len(fed)] != fed:
                rows.append(_build(requests, members, 0))
                members = []
            members.append(index)
        rows.append(_build(requests, members, 0))
    for group in _batched(rows, batch_tokens):
        yield Batch(tuple(group))


def _common(one: Tokens, other: Tokens) -> int:
    """Length of the common beginning."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    low, high = 0, limit
    # Halving with slices compares in C, several times faster than a loop over tokens.
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
