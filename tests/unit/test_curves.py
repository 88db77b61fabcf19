"""What the target's curves show: with noise, with outliers, near zero and below it, and with next to nothing in them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from backslide.diagnosis import Losses, losses_of
from backslide.diagnosis.curves import (
    Way,
    clean,
    converged,
    diverged,
    learned,
    noise,
    slope,
    turned_at,
    way,
    way_held_out,
)

Points = tuple[tuple[int, float], ...]


def curve(values: Sequence[float], every: int = 1) -> Points:
    return tuple((every * (k + 1), float(v)) for k, v in enumerate(values))


def noisy(shape: Callable[[np.ndarray], np.ndarray], n: int, sigma: float, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    return curve(shape(np.arange(n) / n) + rng.normal(0, sigma, n))


def decay(x: np.ndarray) -> np.ndarray:
    return 1 + 2 * np.exp(-6 * x)


def settled(x: np.ndarray) -> np.ndarray:
    return 1 + 2 * np.exp(-15 * x)


def flat(x: np.ndarray) -> np.ndarray:
    return np.full_like(x, 2.5)


def line(x: np.ndarray) -> np.ndarray:
    return 3 - x


@pytest.mark.parametrize("n", [6, 8, 12, 20, 50, 200])
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.2])
def test_a_loss_that_falls_is_seen_in_noise(n: int, sigma: float) -> None:
    for seed in range(20):
        assert way(noisy(decay, n, sigma, seed)) is Way.FELL or (n < 12 and sigma > 0.01) or sigma > 0.1, seed
    assert way(curve([-v for _, v in noisy(decay, n, sigma)])) is not Way.FELL


@pytest.mark.parametrize("n", [6, 8, 12, 20, 50, 200])
def test_noise_alone_is_hardly_ever_a_fall_or_a_rise(n: int) -> None:
    ways = [way(noisy(flat, n, 0.4, seed)) for seed in range(400)]
    # Expected: below 1%; 12 of 400 have probability 0.0006 then.
    assert sum(w is not Way.FLAT for w in ways) < 12
    assert sum(diverged(Losses(noisy(flat, n, 0.4, seed))) for seed in range(400)) < 12


def test_a_slow_fall_in_much_noise_is_seen_by_a_longer_beginning() -> None:
    found = [way(noisy(lambda x: 3 - 0.6 * x, 300, 0.5, seed)) for seed in range(20)]
    assert found.count(Way.FELL) >= 18 and Way.ROSE not in found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("place", [0, 1, 10, 28, 29])
@pytest.mark.parametrize("outlier", [50.0, -50.0])
@pytest.mark.parametrize("shape", [settled, flat, line])
def test_no_rule_turns_on_one_outlier(shape: Any, seed: int, place: int, outlier: float) -> None:
    points = noisy(shape, 30, 0.01, seed)
    spoilt = (*points[:place], (points[place][0], outlier), *points[place + 1 :])
    assert way(spoilt) is way(points)
    assert diverged(Losses(spoilt)) is diverged(Losses(points)) is False
    assert converged(Losses(spoilt)) is converged(Losses(points))


@pytest.mark.parametrize("place", range(1, 7))
@pytest.mark.parametrize("outlier", [9.0, 0.1])
def test_no_rule_for_held_out_losses_turns_on_one_outlier(place: int, outlier: float) -> None:
    train = curve([3, 2.5, 2.2, 2.0, 1.8, 1.6, 1.4, 1.2])
    for held in ([3.0, 2.5, 2.2, 2.0, 1.9, 1.85, 1.8], [3.0, 2.3, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7]):
        points = tuple(enumerate(held))
        spoilt = (*points[:place], (place, outlier), *points[place + 1 :])
        assert way_held_out(spoilt) is way_held_out(points)
        whole, other = turned_at(Losses(train, points)), turned_at(Losses(train, spoilt))
        # A low outlier near the turn may hide overfitting; none makes it up.
        assert whole is not None or other is None


def test_two_batches_that_differ_little_say_nothing() -> None:
    assert way(curve([3.0, 2.9])) is way(curve([3.0, 3.1])) is way(curve([2.0, 2.0])) is Way.UNKNOWN
    assert way(curve([3.0, 1.0])) is Way.FELL and way(curve([1.0, 3.0])) is Way.ROSE
    assert way_held_out(((0, 3.0), (9, 2.9))) is Way.FELL, "a loss on a fixed set is not noisy"
    assert way_held_out(((0, 3.0), (9, 2.99))) is Way.FLAT and way_held_out(((0, 3.0), (9, 3.1))) is Way.ROSE


@pytest.mark.parametrize("points", [(), ((3, 2.0),), ((3, math.nan), (4, 1.0)), ((1, math.inf), (1, 2.0))])
def test_next_to_nothing_is_unknown(points: Points) -> None:
    losses = Losses(points, points)
    assert way(points) is way_held_out(points) is Way.UNKNOWN
    assert learned(losses) is None and turned_at(losses) is None and converged(losses) is None


def test_losses_near_zero_and_below_it_have_sizes_too() -> None:
    # A preference loss from 0.69 through 0 to below; a relative fall from its first value would be meaningless.
    down = noisy(lambda x: 0.3 - 0.8 * x, 40, 0.05)
    assert way(down) is Way.FELL and way(tuple((s, -v) for s, v in down)) is Way.ROSE
    assert way(curve([-0.5, -1.5])) is Way.FELL and way(curve([-1.5, -0.5])) is Way.ROSE
    assert way(curve([0.0] * 20)) is Way.FLAT and not diverged(Losses(curve([0.0] * 20)))
    # Near zero by construction: noise of both signs is no fall.
    around = noisy(lambda x: 0 * x, 40, 1e-3)
    assert way(around) is Way.FLAT and not diverged(Losses(around)) and not converged(Losses(around))


def test_rewards_tell_learning_where_the_loss_does_not() -> None:
    loss = noisy(lambda x: 0.02 * x, 40, 1e-3)  # the KL term of a policy method
    assert way(loss) is Way.ROSE and diverged(Losses(loss))
    up, level = noisy(lambda x: 0.2 + 0.5 * x, 40, 0.05), noisy(flat, 40, 0.05)
    assert learned(Losses(loss, rewards=up)) is True and learned(Losses(loss, rewards=level)) is False
    assert not diverged(Losses(loss, rewards=up))
    assert diverged(Losses((*loss, (41, math.nan)), rewards=up))
    assert converged(Losses(loss, rewards=noisy(lambda x: 1 - np.exp(-9 * x), 60, 0.01)))


def test_held_out_decides_what_was_learnt() -> None:
    fell, rose = curve([3, 2.5, 2, 1.5, 1, 0.5]), ((0, 3.0), (6, 3.5))
    assert learned(Losses(fell)) is True and learned(Losses(fell, rose)) is False
    assert learned(Losses(fell, rose[:1])) is True


def test_overfitting_is_a_held_out_loss_that_turned_while_the_training_loss_fell() -> None:
    train = noisy(decay, 60, 0.05)
    looks = (0, 10, 20, 30, 40, 50, 60)
    held = tuple(zip(looks, (3.0, 2.2, 1.9, 2.0, 2.2, 2.5, 2.9), strict=True))
    assert turned_at(Losses(train, held)) == 20
    assert turned_at(Losses(train, held[:4])) is None, "one point above the lowest, which may be an outlier"
    assert turned_at(Losses(train, held[:5])) == 20
    assert turned_at(Losses(noisy(flat, 60, 0.05), held)) is None, "the training loss did not fall"
    assert turned_at(Losses((), held)) is None and turned_at(Losses(train, ())) is None
    assert turned_at(Losses(train, ((0, 3.0), (60, 3.5)))) == 0, "learnt by heart from the start"
    up = tuple((s, v if s < 30 else 3 + s / 10) for s, v in train)
    assert turned_at(Losses(up, held)) is None, "both rise: that is no overfitting"


def test_jitter_of_a_flat_held_out_loss_is_no_overfitting() -> None:
    train = noisy(decay, 60, 0.05)
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        held = tuple((5 * k, 2.0 + rng.normal(0, 0.03)) for k in range(12))
        found.append(turned_at(Losses(train, ((0, 3.0), *held[1:]))))
    # Expected: about 1 in 100.
    assert sum(turn is not None for turn in found) <= 6


def test_converged_is_flat_over_the_last_third() -> None:
    found = [converged(Losses(noisy(settled, 60, 0.05, seed))) for seed in range(40)]
    assert found.count(True) >= 37, "its noise is an estimate, too"
    for seed in range(20):
        assert not converged(Losses(noisy(line, 60, 0.05, seed))), seed
        assert not converged(Losses(noisy(flat, 60, 0.05, seed))), "nothing was learnt"
    assert converged(Losses(curve([3.0, 2.0, 1.0]))) is None, "too few to tell"
    assert converged(Losses(noisy(lambda x: 3 - 0.3 * x, 30, 0.5))) is not True, "the noise hides the fall"


def test_a_held_out_loss_that_still_moves_is_not_converged() -> None:
    train = noisy(settled, 60, 0.02)
    still = ((0, 3.0), (20, 2.5), (40, 2.2), (50, 2.0), (60, 1.8))
    assert converged(Losses(train)) is True
    assert converged(Losses(train, still)) is False
    assert converged(Losses(train, (*still[:2], (40, 2.0), (50, 1.99), (60, 1.99)))) is True
    assert converged(Losses(train, still[:2])) is True, "two points say nothing of the end"


def test_diverged_is_not_finite_or_well_above_the_start() -> None:
    assert diverged(Losses(not_finite=(3,)))
    assert diverged(Losses(curve([2.0, math.inf]))) and diverged(Losses((), ((0, math.nan),)))
    assert diverged(Losses(curve([2.0, 1e300])))
    assert diverged(Losses(noisy(lambda x: 2 + 3 * x, 30, 0.2)))
    assert diverged(Losses(curve([2.5, 2.4, 9.0, 11.2])))
    assert not diverged(Losses(curve([2.5, 2.4, 11.2]))), "one of three points may be a batch"
    assert not diverged(Losses(curve([2.0, 2.0, 9.0, 9.0, 2.0, 1.9, 1.8, 1.7]))), "it recovered"
    assert not diverged(Losses(curve([2.5, 3.0]))) and not diverged(Losses())


def test_noise_is_that_of_a_smooth_curve() -> None:
    x = np.linspace(0, 1, 2000)
    values = 3 + 2 * np.exp(-3 * x) + np.random.default_rng(0).normal(0, 0.2, 2000)
    assert noise(values.tolist()) == pytest.approx(0.2, rel=0.1)
    values[::50] += 100
    assert noise(values.tolist()) == pytest.approx(0.2, rel=0.15), "outliers do not count"
    assert noise([1, 2, 3, 4, 5]) == 0 and noise([1.0, 9.0]) == 0


def test_slope_is_theil_and_sens() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    points = tuple((int(s), float(v)) for s, v in zip(range(0, 60, 4), rng.normal(0, 1, 15), strict=True))
    steps, values = zip(*points, strict=True)
    assert slope(points) == pytest.approx(stats.theilslopes(values, steps)[0])


def test_long_curves_are_quick() -> None:
    points = noisy(lambda x: 1 + 2 * np.exp(-15 * x), 100_000, 0.3)
    held = tuple((1000 * k, 3 - k / 60) for k in range(101))
    losses = Losses(points, held)
    begin = time.perf_counter()
    assert way(points) is Way.FELL and learned(losses) and not diverged(losses) and turned_at(losses) is None
    assert converged(Losses(points)) is True
    assert time.perf_counter() - begin < 5, "all pairs of points would be 5 billion"


def test_points_are_cleaned() -> None:
    assert clean([(3, 1.0), (1, math.nan), (2, True), (3, 2.0), (0, 10**400), (4, np.float32(1.5))]) == (
        (3, 2.0),
        (4, 1.5),
    )


def test_losses_are_read_from_events() -> None:
    events: list[dict[str, Any]] = [
        {"event": "baseline", "step": 0, "loss": 9.0},
        {"event": "loss", "step": 1, "eval_loss": 3.0},
        {"event": "loss", "step": 2, "loss": 2.5, "grad_norm": 1.0},
        {"event": "loss", "step": 3, "loss": None},
        {"event": "loss", "step": 4, "loss": 2, "eval_loss": 2.75, "reward": -0.5},
        {"event": "loss", "loss": 1.0},
    ]
    losses = losses_of(events)
    assert losses == Losses(((2, 2.5), (4, 2.0)), ((1, 3.0), (4, 2.75)), ((4, -0.5),), (3,))
    assert losses.best is losses.held_out and losses_of([]) == Losses()


def test_what_was_logged_after_the_checkpoint_of_a_resumed_run_is_left_out() -> None:
    events = [
        {"event": "loss", "step": 10, "loss": 2.0},
        {"event": "loss", "step": 20, "loss": None},
        {"event": "loss", "step": 30, "loss": 7.0},
        {"event": "resumed", "step": 10},
        {"event": "loss", "step": 20, "loss": 1.5},
    ]
    assert losses_of(events) == Losses(((10, 2.0), (20, 1.5)))
