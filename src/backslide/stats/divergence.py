"""How far one distribution over a vocabulary is from another of which only the likeliest tokens were kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def coarse_kl(p_ids: Ids, p_logs: Floats, q_ids: Ids, q_logs: Floats) -> Floats:
    """KL(p ‖ q) at each of T places, in nats, with all tokens that are not in both lists taken for one.

    Never more than the KL of the whole distributions: putting outcomes together cannot raise it (the log sum
    inequality: Cover and Thomas, Elements of Information Theory, 2nd edition, theorem 2.7.1). The logarithms may be
    rounded; each side is scaled to sum to 1, so the result is never below 0, and 0 for equal sides.

    Args:
        p_ids: (T, K) ids of the tokens that were kept of p, each once; K from 1.
        p_logs: (T, K + 1) logarithms of their probabilities, then of all other tokens together; (T, K) where there are
            no others. Finite.
        q_ids: (T, K), the same of q; its lists may hold other tokens.
        q_logs: as `p_logs`, of the same shape.

    Returns:
        Shape (T,), from 0.
    """
    kept = p_ids.shape[1]
    same = p_ids[:, :, None] == q_ids[:, None, :]  # (T, K, K)
    in_both, in_p = same.any(axis=2), same.any(axis=1)
    p_logs, q_logs = _scaled(p_logs), _scaled(q_logs)
    # Sums of what is there, and no 1 - sum: of a rest of 1e-6 nothing would be left after rounding.
    p_rest = _log_sum(p_logs, np.pad(~in_both, ((0, 0), (0, p_logs.shape[1] - kept)), constant_values=True))
    q_rest = _log_sum(q_logs, np.pad(~in_p, ((0, 0), (0, q_logs.shape[1] - kept)), constant_values=True))
    q_of_p = np.take_along_axis(q_logs, same.argmax(axis=2), axis=1)  # of no meaning outside of `in_both`
    cells = np.where(in_both, np.exp(p_logs[:, :kept]) * (p_logs[:, :kept] - q_of_p), 0.0).sum(axis=1)
    # Both lists are of one length, so one side has a rest exactly where the other has.
    some = np.isfinite(p_rest) & np.isfinite(q_rest)
    p_rest, q_rest = np.where(some, p_rest, 0.0), np.where(some, q_rest, 0.0)
    found: Floats = np.maximum(cells + np.exp(p_rest) * (p_rest - q_rest), 0.0)
    return found


def _scaled(logs: Floats) -> Floats:
    return logs - _log_sum(logs, np.ones_like(logs, dtype=bool))[:, None]


def _log_sum(logs: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """Logarithm of the sum of the chosen in each row, shape (T,); -inf where none is."""
    most = np.where(chosen, logs, -np.inf).max(axis=1)
    base = np.where(np.isfinite(most), most, 0.0)
    total = np.where(chosen, np.exp(np.minimum(logs - base[:, None], 0.0)), 0.0).sum(axis=1)
    return np.where(total > 0, base + np.log(np.where(total > 0, total, 1.0)), -np.inf)
