"""What a run is doing: one state, and what else is true of it.

| state | the target | the original abilities |
|---|---|---|
| `diverged` | its loss is not finite, or well above its start | whatever they do |
| `broken` | – | the model's scores are not finite, or the run ended without a comparison |
| `learning and forgetting` | learnt | a loss is proven: the regression of this project |
| `not learning but forgetting` | not learnt | a loss is proven |
| `forgetting, learning unknown` | too little is known | a loss is proven |
| `overfitting` | held-out loss rises while the training loss falls | no loss is proven |
| `converged` | learnt, and flat since: during a run only | no loss is proven |
| `learning and keeping` | learnt | all proven to be kept |
| `learning, retention undecided` | learnt | neither is proven |
| `not learning` | not learnt | no loss is proven |
| `keeping, learning unknown` | too little is known | all proven to be kept |
| `undecided` | too little is known | neither is proven |

The table is in the order of precedence. A run whose training diverged is named so, whatever it forgot: what is mended
first is the training. Then comes forgetting, which is what this project is for: a run that overfits or has converged
*and* forgets is named by the forgetting. At the end of a run `converged` is no news (every schedule that ends at 0
flattens the loss), so the run is named by what it kept. What does not name the state stands in `also`.
"""

from __future__ import annotations

from dataclasses import dataclass

from backslide.diagnosis.curves import Losses, converged, diverged, learned, turned_at
from backslide.verdict import Verdict, Zone

DIVERGED = "diverged"
BROKEN = "broken"
FORGETTING = "learning and forgetting"
FOR_NOTHING = "not learning but forgetting"
FORGETTING_ONLY = "forgetting, learning unknown"
OVERFITTING = "overfitting"
CONVERGED = "converged"
KEEPING = "learning and keeping"
UNDECIDED = "learning, retention undecided"
NOT_LEARNING = "not learning"
KEEPING_ONLY = "keeping, learning unknown"
NOTHING_KNOWN = "undecided"

STATES = (
    DIVERGED, BROKEN, FORGETTING, FOR_NOTHING, FORGETTING_ONLY, OVERFITTING, CONVERGED, KEEPING, UNDECIDED,
    NOT_LEARNING, KEEPING_ONLY, NOTHING_KNOWN,
)  # fmt: skip
"""All states, in the order of precedence."""


@dataclass(frozen=True)
class Facts:
    """What is true of a run, each by itself."""

    learned: bool | None
    """None: too little is known."""
    turned_at: int | None
    """Step from which it overfits."""
    converged: bool | None
    diverged: bool
    zone: Zone
    broken: bool

    @classmethod
    def of(cls, losses: Losses, verdict: Verdict) -> Facts:
        """Read the curves and the verdict."""
        return cls(
            learned=learned(losses),
            turned_at=turned_at(losses),
            converged=converged(losses),
            diverged=diverged(losses),
            zone=verdict.zone,
            broken=is_broken(verdict),
        )

    @property
    def forgets(self) -> bool:
        """Whether the loss of an original ability is proven."""
        return self.zone is Zone.REGRESSED and not self.broken


def is_broken(verdict: Verdict) -> bool:
    """Whether a verdict says that the model or the run broke, and not that something was lost."""
    if verdict.zone is not Zone.REGRESSED:
        return False
    rows = [*verdict.capabilities, *([verdict.pooled] if verdict.pooled is not None else [])]
    if verdict.beside is not None:
        rows += [*verdict.beside.capabilities, *([verdict.beside.pooled] if verdict.beside.pooled is not None else [])]
    failed = [row for row in rows if row.zone is Zone.REGRESSED]
    # A row that failed without a measure failed by a score that is not finite.
    return not verdict.capabilities or any(row.decided_by is None for row in failed)


def state_of(facts: Facts, *, final: bool = False) -> tuple[str, tuple[str, ...]]:
    """The state, and the others of `STATES` that are true as well, in their order."""
    kept = facts.zone is Zone.RETAINED
    true = {
        DIVERGED: facts.diverged,
        BROKEN: facts.broken,
        FORGETTING: facts.forgets and facts.learned is True,
        FOR_NOTHING: facts.forgets and facts.learned is False,
        FORGETTING_ONLY: facts.forgets and facts.learned is None,
        OVERFITTING: facts.turned_at is not None,
        CONVERGED: facts.converged is True,
        KEEPING: kept and facts.learned is True,
        UNDECIDED: facts.zone is Zone.UNDECIDED and facts.learned is True,
        NOT_LEARNING: facts.zone is not Zone.REGRESSED and facts.learned is False,
        KEEPING_ONLY: kept and facts.learned is None,
        NOTHING_KNOWN: facts.zone is Zone.UNDECIDED and facts.learned is None,
    }
    named = [state for state in STATES if true[state]]
    names = [state for state in named if not (final and state == CONVERGED)] or [NOTHING_KNOWN]
    return names[0], tuple(state for state in named if state != names[0])
