"""Why, ranked, and what to set next. Each cause comes with the numbers that speak for it; without them there is none.

Weights are rules of thumb in [0, 1] that order the causes, no probabilities. The learning rate comes first wherever it
is suspect: it is what moves forgetting most (arXiv 2509.20758).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backslide.diagnosis.curves import is_number

FIRST_SUSPECT_RATE = 1e-4
"""Learning rate above which it is a suspect whatever the method, and the first where it is above the usual, too."""
ADAPTER_FACTOR = 10
"""An adapter bears about ten times the rate of all weights, nearly independent of its rank (arXiv 2509.20758; Schulman
et al., LoRA Without Regret, 2025)."""
SUSPECT = 0.8
"""Least weight of a learning rate that is the first suspect."""
SCALING = 2.0
"""Usual factor α / r on an adapter's update."""
RANK = 32
"""Rank of an adapter above which it is named; the evidence is weak (`docs/diagnosis.md`)."""
PASSES = 3.0
"""Passes over the training data above which they are named."""
SMALL = 1000
"""Examples below which a data set is small."""
REPLAY = 0.05
"""Share of original-domain data to mix in; 1 to 5% bring most of what replay brings (arXiv 2403.08763)."""
SHARE = 0.5
"""Share of the weights from which on "most are trained"."""

PROBLEMS = ("forgetting", "overfitting", "diverged", "not learning")
"""What causes are sought for."""

Setup = Mapping[str, Any]


@dataclass(frozen=True)
class Cause:
    """Something that may have led to what is seen."""

    name: str
    """`learning rate`, `adapter scaling`, `rank`, `passes over the data`, `no original-domain data`, `weights trained`,
    `no warm-up`, `constant schedule` or `few steps`."""
    evidence: str
    """The numbers that speak for it, in a sentence."""
    weight: float
    """In [0, 1]; orders causes, and is no probability."""

    def to_dict(self) -> dict[str, Any]:
        """The cause as JSON can hold it."""
        return dataclasses.asdict(self)


def usual_rate(method: str | None, parameters: float | None) -> float:
    """The learning rate that is usual for a method and a size.

    Of all weights: a tenth of the rates at which models of that size are pre-trained (Brown et al., arXiv 2005.14165,
    table 2.1: 6e-4 at 125M, 2e-4 at 1.3B, 1.2e-4 at 6.7B, as a power law with exponent -0.4), within 5e-6 and 1e-4;
    the tenth is our rule of thumb, and gives the usual 1e-5 to 2e-5 between 1B and 10B. 2e-5 where the size is not
    known. Of adapters `ADAPTER_FACTOR` times that.
    """
    full = 2e-5
    if parameters is not None and parameters > 0:
        full = min(max(6e-5 * (parameters / 125e6) ** -0.4, 5e-6), 1e-4)
    return full if method == "full" else ADAPTER_FACTOR * full


def causes(problem: str, setup: Setup) -> tuple[Cause, ...]:
    """The causes of a problem that the setup of a run has evidence for, the likeliest first.

    Args:
        problem: one of `PROBLEMS`.
        setup: of the run, from `run.json`: `method` (`full` or a PEFT method), `learning_rate`, `parameters`,
            `trainable`, `rank`, `lora_alpha`, `steps`, `max_steps`, `epochs`, `batch_size`, `examples`,
            `warmup_steps`, `scheduler`, `replay` (share of original-domain data), `anchor` (weight of the KL to the
            base); any may be absent or unusable.
    """
    if problem not in PROBLEMS:
        raise ValueError(f"problem is {problem!r}, one of {', '.join(PROBLEMS)} is needed")
    found = [cause for rule in _RULES[problem] if (cause := rule(problem, setup)) is not None]
    if found and found[0].name == "learning rate" and found[0].weight >= SUSPECT:
        # Many passes add to what a rate that is too high does, and never come before it.
        found = [found[0], *(dataclasses.replace(c, weight=min(c.weight, SUSPECT - 0.01)) for c in found[1:])]
    # Ties in the order of the rules: sorted() is stable.
    return tuple(sorted(found, key=lambda cause: -cause.weight))


def next_setting(problem: str, setup: Setup, found: tuple[Cause, ...]) -> dict[str, Any]:
    """Values to type in for the next run: the smallest change that meets the causes. Empty where nothing is known.

    Keys: `learning_rate`, `method`, `lora_r`, `lora_alpha`, `replay`, `epochs`, `warmup_steps`, `scheduler`.
    """
    names = {cause.name for cause in found}
    rate, method = number(setup, "learning_rate"), setup.get("method")
    usual = usual_rate(_text(method), number(setup, "parameters"))
    adapter = isinstance(method, str) and method != "full"
    values: dict[str, Any] = {}
    if problem == "not learning":
        if "learning rate" in names:
            values["learning_rate"] = _round(usual)
        if "few steps" in names:
            values["epochs"] = PASSES
        return values
    if problem in ("forgetting", "diverged") and rate is not None and rate > 0:
        # A third is the step to try first; what is far above the usual goes there at once.
        values["learning_rate"] = _round(min(rate / 3, usual))
    if "adapter scaling" in names or ("rank" in names and problem == "forgetting"):
        rank = number(setup, "rank")
        new = 8 if "rank" in names or rank is None else int(rank)
        values.update(lora_r=new, lora_alpha=int(SCALING * new))
    if problem == "forgetting":
        replay = number(setup, "replay")
        if replay is None or replay < REPLAY:
            values["replay"] = REPLAY
        if method == "full" and rate is not None and rate <= usual:
            # The rate is not what is wrong: fewer weights are the next thing to try, at what they bear.
            values.update(method="lora", lora_r=8, lora_alpha=16, learning_rate=_round(rate))
    if "passes over the data" in names and problem in ("forgetting", "overfitting"):
        values["epochs"] = PASSES if problem == "forgetting" else _fewer(setup)
    if "rank" in names and problem == "overfitting" and adapter:
        values.update(lora_r=8, lora_alpha=16)
    if problem == "diverged" and "no warm-up" in names:
        steps = number(setup, "max_steps") or number(setup, "steps")
        values["warmup_steps"] = max(1, round(0.1 * steps)) if steps else 10
    if "constant schedule" in names:
        values["scheduler"] = "linear"
    return values


def say_setting(values: Mapping[str, Any]) -> str:
    """The next setting in one line."""
    return ", ".join(f"{name} = {_shown(value)}" for name, value in values.items())


def number(setup: Setup, key: str) -> float | None:
    """A finite number of the setup; None where there is none."""
    value = setup.get(key)
    return float(value) if is_number(value) else None  # type: ignore[arg-type]


def passes(setup: Setup) -> float | None:
    """How often the training data was seen: as recorded, else steps × batch / examples."""
    known = number(setup, "epochs")
    if known is not None:
        return known
    steps, batch, examples = (number(setup, key) for key in ("steps", "batch_size", "examples"))
    steps = number(setup, "max_steps") if steps is None else steps
    if steps is None or batch is None or examples is None or examples <= 0:
        return None
    return steps * batch / examples


def _rate(problem: str, setup: Setup) -> Cause | None:
    rate, method = number(setup, "learning_rate"), _text(setup.get("method"))
    if rate is None or rate <= 0:
        return None
    parameters = number(setup, "parameters")
    usual = usual_rate(method, parameters)
    ratio = rate / usual
    size = f" with {_count(parameters)} parameters" if parameters is not None and parameters > 0 else ""
    what = "full fine-tuning of a model" if method == "full" else f"an adapter ({method or 'at most'}) on a model"
    compared = f"it was {rate:g}, {_times(ratio)} the {_round(usual):g} that is usual for {what}{size}"
    if problem == "not learning":
        return Cause("learning rate", compared, _weight(0.5, 0.35, 1 / ratio)) if ratio < 0.3 else None
    if ratio <= 1 and rate <= FIRST_SUSPECT_RATE:
        return None
    if problem == "overfitting" and ratio < 2:
        return None
    weight = _weight(0.2 if problem == "overfitting" else 0.5, 0.35, ratio)
    if rate > FIRST_SUSPECT_RATE and ratio > 1 and problem == "forgetting":
        weight = max(weight, SUSPECT)
        compared += f"; above {FIRST_SUSPECT_RATE:g} it is the first suspect"
    return Cause("learning rate", compared, weight)


def _scaling(problem: str, setup: Setup) -> Cause | None:
    rank, alpha = number(setup, "rank"), number(setup, "lora_alpha")
    if rank is None or alpha is None or rank <= 0:
        return None
    rooted = setup.get("rslora") is True
    factor = alpha / (math.sqrt(rank) if rooted else rank)
    if factor <= SCALING:
        return None
    evidence = (
        f"alpha {alpha:g} over {'the root of ' if rooted else ''}rank {rank:g} multiplies the adapter's update by "
        f"{factor:.3g}; {SCALING:g} is usual"
    )
    return Cause("adapter scaling", evidence, _weight(0.45, 0.35, factor / SCALING))


def _rank(problem: str, setup: Setup) -> Cause | None:
    rank = number(setup, "rank")
    if rank is None or rank <= RANK:
        return None
    return Cause("rank", f"it was {rank:g}; 8 to {RANK} are usual", _weight(0.2, 0.1, rank / RANK))


def _passes(problem: str, setup: Setup) -> Cause | None:
    seen, examples = passes(setup), number(setup, "examples")
    if seen is None or seen <= PASSES:
        return None
    small = examples is not None and 0 < examples < SMALL
    data = f"{examples:,.0f} examples were" if examples is not None and examples > 0 else "the training data was"
    evidence = f"{data} seen {seen:.1f} times; 1 to {PASSES:g} passes are usual"
    base = (0.6 if problem == "overfitting" else 0.4) + (0.1 if small else 0.0)
    return Cause("passes over the data", evidence, _weight(base, 0.2, seen / PASSES))


def _replay(problem: str, setup: Setup) -> Cause | None:
    share = number(setup, "replay")
    if share is None or share >= 0.01:
        return None
    how = "none" if share <= 0 else f"only {share:.1%}"
    evidence = f"{how} of the training data was of the original domain; 1 to 5% keep most of what is else forgotten"
    return Cause("no original-domain data", evidence, 0.45)


def _share(problem: str, setup: Setup) -> Cause | None:
    trainable, total = number(setup, "trainable"), number(setup, "parameters")
    if trainable is None or total is None or total <= 0 or trainable / total < SHARE:
        return None
    which = f"all {_count(total)} weights" if trainable >= total else f"{trainable / total:.0%} of the weights"
    return Cause("weights trained", f"{which} were trained; an adapter trains 1% or less of them", 0.35)


def _warm_up(problem: str, setup: Setup) -> Cause | None:
    steps, rate = number(setup, "warmup_steps"), number(setup, "learning_rate")
    high = rate is not None and rate > usual_rate(_text(setup.get("method")), number(setup, "parameters"))
    if steps is None or steps > 0 or (problem == "forgetting" and not high):
        return None
    evidence = "the learning rate was at its full height from the first step (warmup_steps = 0)"
    return Cause("no warm-up", evidence, 0.5 if problem == "diverged" else 0.2)


def _constant(problem: str, setup: Setup) -> Cause | None:
    if "constant" not in str(setup.get("scheduler")).lower():
        return None
    return Cause("constant schedule", "the learning rate was kept up to the end instead of falling", 0.25)


def _few_steps(problem: str, setup: Setup) -> Cause | None:
    seen, steps = passes(setup), number(setup, "steps")
    if seen is None or seen >= 1:
        return None
    made = f" in {steps:.0f} steps" if steps is not None else ""
    return Cause("few steps", f"{seen:.0%} of the training data was seen{made}", _weight(0.4, 0.2, 1 / max(seen, 1e-6)))


_RULES: dict[str, tuple[Callable[[str, Setup], Cause | None], ...]] = {
    "forgetting": (_rate, _scaling, _passes, _replay, _share, _constant, _rank, _warm_up),
    "overfitting": (_passes, _rate, _scaling, _rank, _constant),
    "diverged": (_rate, _warm_up, _scaling, _constant),
    "not learning": (_rate, _few_steps),
}


def _weight(base: float, per_decade: float, ratio: float) -> float:
    return round(min(max(base + per_decade * math.log10(ratio), 0.05), 0.99), 3)


def _fewer(setup: Setup) -> float:
    seen = passes(setup)
    return round(max(1.0, min(PASSES, (seen or PASSES) / 2)), 1)


def _round(value: float) -> float:
    """To one digit, as a learning rate is written."""
    return float(f"{value:.0e}")


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 9.5 else f"{ratio:.2g} times"


def _count(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
