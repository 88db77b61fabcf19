"""The KL of what two records keep is never above that of the whole distributions, whatever these are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp, rel_entr
from scipy.stats import entropy

from backslide.record import LEAST_LOG
from backslide.stats.divergence import coarse_kl

Floats = NDArray[np.float64]


@st.composite
def distributions(draw: st.DrawFn) -> tuple[Floats, Floats, list[int]]:
    """Two of them at each of some places, (T, V) logarithms, and a token of each place that both keep."""
    places, size = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    logits = st.lists(st.floats(-30, 30), min_size=size, max_size=size)
    rows = [draw(st.lists(logits, min_size=places, max_size=places)) for _ in range(2)]
    p, q = (log_softmax(np.array(of), axis=1) for of in rows)
    return p, q, draw(st.lists(st.integers(0, size - 1), min_size=places, max_size=places))


def kept(logs: Floats, own: list[int], size: int) -> tuple[Any, Floats]:
    """From the definition: the own token, the likeliest others, and what remains."""
    ids, found = [], []
    for row, token in zip(logs, own, strict=True):
        others = sorted((i for i in range(len(row)) if i != token), key=lambda i: (-row[i], i))
        chosen, rest = [token, *others[:size]], others[size:]
        ids.append(chosen)
        found.append([*row[chosen], *([logsumexp(row[rest])] if rest else [])])
    return np.array(ids), np.array(found)


@settings(deadline=None)
@given(distributions(), st.integers(1, 12))
def test_it_is_a_lower_bound_of_the_whole(drawn: tuple[Floats, Floats, list[int]], size: int) -> None:
    p, q, own = drawn
    whole = rel_entr(np.exp(p), np.exp(q)).sum(axis=1)
    one, other = kept(p, own, size), kept(q, own, size)
    found = coarse_kl(*one, *other)
    assert found.shape == whole.shape and (found >= 0).all()
    assert (found <= whole + 1e-9 * (1 + whole)).all()
    if size >= p.shape[1] - 1:
        np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-9)
    # From its definition: the tokens in both lists one by one, all others as one.
    for place, (left, right) in enumerate(zip(one[0], other[0], strict=True)):
        both = sorted({*left} & {*right})
        cells = [np.append(np.exp(of[place][both]), np.exp(np.delete(of[place], both)).sum()) for of in (p, q)]
        assert found[place] == pytest.approx(entropy(*cells), rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(distributions(), st.integers(1, 12), st.randoms(use_true_random=False))
def test_equal_sides_are_at_zero_whatever_their_order(
    drawn: tuple[Floats, Floats, list[int]], size: int, dice: Any
) -> None:
    p, _, own = drawn
    ids, logs = kept(p, own, size)
    assert (coarse_kl(ids, logs.round(4), ids, logs.round(4)) == 0).all()
    order = dice.sample(range(ids.shape[1]), ids.shape[1])
    rest = logs[:, ids.shape[1] :]
    turned = coarse_kl(ids, logs, ids[:, order], np.hstack([logs[:, order], rest]))
    np.testing.assert_allclose(turned, 0.0, atol=1e-12)


@settings(deadline=None)
@given(distributions(), st.integers(1, 12))
def test_four_digits_are_enough(drawn: tuple[Floats, Floats, list[int]], size: int) -> None:
    p, q, own = drawn
    (p_ids, p_logs), (q_ids, q_logs) = kept(p, own, size), kept(q, own, size)
    exact = coarse_kl(p_ids, p_logs, q_ids, q_logs)
    rounded = coarse_kl(p_ids, p_logs.round(4), q_ids, q_logs.round(4))
    # Each logarithm is off by up to 5e-5, those of the sums too; so is each weight, in proportion.
    size_of = np.abs(np.exp(p) * (p - q)).sum(axis=1)
    assert (np.abs(rounded - exact) <= 2e-4 * (1 + size_of)).all()


@settings(deadline=None)
@given(st.lists(st.sampled_from([LEAST_LOG, -700.0, -1.0, -1e-4, 0.0]), min_size=8, max_size=8))
def test_no_numbers_of_a_record_overflow(logs: list[float]) -> None:
    ids = np.array([[0, 1, 2]])
    p, q = np.array([logs[:4]]), np.array([logs[4:]])
    found = coarse_kl(ids, p, np.array([[0, 2, 7]]), q)
    assert np.isfinite(found).all() and (found >= 0).all()
