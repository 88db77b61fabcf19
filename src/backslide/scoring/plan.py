"""Requests to prefix trees, packed into rows. Pure Python: no model and no torch.

Requests that begin alike share the tokens of their common beginning: the system prompt of a chat template, a
few-shot prefix, the question in front of its choices. A row is a small forest of such trees, laid out so that
every token stands behind its parent; a mask then lets each token see its ancestors alone. The plan depends on
the requests and the row length alone, so base and candidate are scored in the very same company.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backslide.scoring.requests import Request, Tokens


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
    """Place of the token before; -1 where a sequence begins."""
    depths: Tokens
    """Position of the token in its own sequence, from 0."""
    reads: tuple[Read, ...]

    @property
    def linear(self) -> bool:
        """Whether the row is a single sequence without branches."""
        return all(parent == place - 1 for place, parent in enumerate(self.parents))


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows in batches; a batch is one forward pass."""

    batches: tuple[tuple[Row, ...], ...]
    tree: bool
    """Whether rows have branches, so that the model must take a mask of its own."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding not counted."""
        return sum(len(row.tokens) for batch in self.batches for row in batch)


def plan(requests: Sequence[Request], *, row_tokens: int, batch_tokens: int, tree: bool = True) -> Plan:
    """Pack `requests` into rows of about `row_tokens` and batches of about `batch_tokens`, padding included.

    A request longer than `row_tokens` has a row of its own. With `tree=False` every row is one plain sequence,
    which serves the requests that are its prefix: the layout for models that cannot take a mask.
    """
    order = sorted(range(len(requests)), key=lambda i: (requests[i].fed, requests[i].targets, i))
    rows = _tree_rows(requests, order, row_tokens) if tree else _flat_rows(requests, order)
    if not tree:
        rows.sort(key=lambda row: len(row.tokens))
    batches: list[tuple[Row, ...]] = []
    batch: list[Row] = []
    longest = 0
    for row in rows:
        longest_with = max(longest, len(row.tokens))
        if batch and longest_with * (len(batch) + 1) > batch_tokens:
            batches.append(tuple(batch))
            batch, longest_with = [], len(row.tokens)
        batch.append(row)
        longest = longest_with
    if batch:
        batches.append(tuple(batch))
    return Plan(tuple(batches), tree)


def _tree_rows(requests: Sequence[Request], order: Sequence[int], row_tokens: int) -> list[Row]:
    rows: list[Row] = []
    builder = _Builder()
    previous: Tokens = ()
    for index in order:
        fed = requests[index].fed
        shared = _common(previous, fed)
        if builder.tokens and len(builder.tokens) + len(fed) - shared > row_tokens:
            rows.append(builder.row())
            builder, shared = _Builder(), 0
        builder.add(index, requests[index], shared)
        previous = fed
    if builder.tokens:
        rows.append(builder.row())
    return rows


def _flat_rows(requests: Sequence[Request], order: Sequence[int]) -> list[Row]:
    rows: list[Row] = []
    builder = _Builder()
    # From the longest of those that begin alike to the shortest, so that the prefixes of a row come after it.
    previous: Tokens | None = None
    for index in reversed(order):
        fed = requests[index].fed
        if previous is None or previous[: len(fed)] != fed:
            if builder.tokens:
                rows.append(builder.row())
            builder, previous = _Builder(), fed
        builder.add(index, requests[index], _common(previous, fed) if builder.tokens else 0)
    if builder.tokens:
        rows.append(builder.row())
    return rows


class _Builder:
    """A row in the making; requests arrive in an order in which common beginnings are neighbours."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.path: list[int] = []
        """The places of the current sequence, from its beginning."""
        self.reads: list[Read] = []

    def add(self, index: int, request: Request, shared: int) -> None:
        """Append what `request` does not share with the current sequence, and note where it is read."""
        fed = request.fed
        if shared < len(fed):
            del self.path[shared:]
            for depth in range(shared, len(fed)):
                place = len(self.tokens)
                self.tokens.append(fed[depth])
                self.parents.append(self.path[-1] if self.path else -1)
                self.depths.append(depth)
                self.path.append(place)
        first = len(fed) - len(request.targets)
        self.reads.append(Read(index, tuple(self.path[first : len(fed)])))

    def row(self) -> Row:
        return Row(tuple(self.tokens), tuple(self.parents), tuple(self.depths), tuple(self.reads))


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
