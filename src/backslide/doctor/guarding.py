"""What the suite could see of a loss, when it would be looked at, and what would be done then."""

from __future__ import annotations

import math
from collections.abc import Collection

from backslide.config import SELF, TuneConfig
from backslide.doctor.findings import Notebook
from backslide.errors import InputError
from backslide.guard.schedule import BUDGET, plan_looks
from backslide.planning import Reach, reach
from backslide.record import Record
from backslide.stats.power import items_to_decide
from backslide.suite.suite import Suite

COARSE = 0.10
"""Smallest provable drop of a capability above which it is said: losses below it go unseen."""


def look_at_guard(
    config: TuneConfig, suite: Suite, steps: int | None, leaked: Collection[str], notes: Notebook
) -> None:
    """Say what the guard would see and do."""
    baseline = _baseline(config, suite, notes)
    looks = plan_looks(steps, every=config.guard.every, looks=config.guard.looks) if steps is not None else (1,)
    count = len(looks)
    if steps is not None:
        free = config.guard.every is None and config.guard.looks is None
        share = config.guard.budget or (BUDGET if free else None)
        size = f"within {share:.0%} of the training's time" if share is not None else "each at the whole monitor half"
        notes.fact("looks", f"{count}: after step {', '.join(map(str, looks[:6]))}{', …' if count > 6 else ''}; {size}")
        if count == 1:
            notes.warning(
                "guard.every" if config.guard.every is not None else "guard.looks",
                f"the run of {steps} steps has one look, at its end: nothing could be stopped or cured on the way",
                "look at least four times",
            )
    _reach(config, suite, baseline, count, leaked, notes)
    _policy(config, notes)


def _baseline(config: TuneConfig, suite: Suite, notes: Notebook) -> Record | None:
    if config.guard.baseline is None:
        return None
    try:
        record = Record.load(config.guard.baseline)
    except InputError as bad:
        notes.error("guard.baseline", bad)
        return None
    if record.header.suite_hash != suite.hash:
        notes.error(
            "guard.baseline",
            f"{config.guard.baseline} is of the suite {record.header.suite} ({record.header.suite_hash[:12]}), the run "
            f"asks {suite.name} ({suite.hash[:12]})",
            "measure it again, or leave it out: the guard measures one",
        )
        return None
    return record


def _reach(
    config: TuneConfig,
    suite: Suite,
    baseline: Record | None,
    looks: int,
    leaked: Collection[str],
    notes: Notebook,
) -> None:
    judged = [item.capability for item in suite.items if item.judged]
    groups = "1 capability" if len(set(judged)) == 1 else f"{len(set(judged))} capabilities"
    notes.fact("suite", f"{suite.name}: {len(judged):,} items that are judged, {groups}")
    kept = Suite(suite.name, tuple(item for item in suite.items if item.id not in leaked)) if leaked else suite
    tolerance = config.guard.tolerance
    rows = reach(
        kept, None if leaked else baseline, looks=looks, alpha=config.guard.alpha, tolerance=max(tolerance, 1e-6)
    )
    if not rows:
        notes.note("guard.suite", "no item has a right answer: what is watched is change, not loss")
        return
    gate = {row.capability: _smallest(row.gate, row.gate_soft) for row in rows}
    seen = [drop for drop in gate.values() if math.isfinite(drop)]
    if seen:
        known = "with the baseline given" if baseline is not None and not leaked else "if 10% of the items flip"
        notes.fact("smallest drops", f"{min(seen) * 100:.1f} to {max(seen) * 100:.1f} points at the gate, {known}")
    coarse = [name for name, drop in gate.items() if drop > COARSE]
    if coarse:
        worst = max(coarse, key=lambda name: gate[name])
        most = "none can be proven" if math.isinf(gate[worst]) else f"{gate[worst] * 100:.0f} points in {worst}"
        notes.warning(
            "guard.suite",
            f"{_some(coarse)} can lose more than {COARSE * 100:.0f} points unseen: the smallest drop that would be "
            f"proven is {most}",
            "add items to them; `backslide power` says how many",
        )
    _retained(config, rows, notes)


def _retained(config: TuneConfig, rows: list[Reach], notes: Notebook) -> None:
    """Whether a model that lost nothing, and flips as many items either way as is expected, could be proven so."""
    tolerance, alpha = config.guard.tolerance, config.guard.alpha
    needed = {}
    for row in rows:
        flips = round(row.flip_rate * row.gate_items / 2)
        # Even where all of them are retained with this power each, all together are more seldom.
        needed[row.capability] = items_to_decide(
            row.gate_items, flips, flips, tolerance=tolerance, alpha_fail=alpha, alpha_pass=alpha
        )
    # As many as there are and one more is the least that it says.
    short = [row.capability for row in rows if needed[row.capability] > row.gate_items + 1]
    if short:
        most = max(needed[name] for name in short)
        notes.note(
            "guard.tolerance",
            f"do not expect `retained`: to rule out {tolerance * 100:g} points for a model that lost nothing, "
            f"{_some(short)} would need up to {most:,} items in the gate half; a good run ends `undecided`",
            "accept a larger tolerance, or add items, if a build is to demand exit code 0",
        )


def _policy(config: TuneConfig, notes: Notebook) -> None:
    policy = config.on_regression
    cured = config.cure.replay > 0 or config.cure.anchor > 0
    if policy == "warn":
        notes.note(
            "guard.on_regression",
            "warn: a regression is said and nothing is done",
            '"stop" saves the rest of the run, "rollback" and "auto" go back',
        )
    if not cured:
        notes.note(
            "cure",
            "no original data is mixed in and there is no anchor; 5% of replay costs next to nothing (docs/cures.md)",
            "replay = 0.05 under [cure]",
        )
    if (cured or policy in ("replay", "auto")) and config.cure.data == SELF:
        notes.note(
            "cure.data",
            "the base writes its own replies first, once: seconds on a GPU, ten minutes for a small model on a CPU",
            "give a file of original data if you have one, or fewer with prompts = 200",
        )


def _smallest(hard: float, soft: float | None) -> float:
    return hard if soft is None else min(hard, soft)


def _some(names: list[str]) -> str:
    if len(names) <= 3:
        return " and ".join(names) if len(names) < 3 else ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} more capabilities"
