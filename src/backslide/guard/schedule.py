"""When to look. Planned before training, since the statistics need the number of looks."""

from __future__ import annotations

from backslide.errors import ConfigError

LOOKS = 6
"""Looks of a run where the user names neither their number nor their distance."""


def plan_looks(max_steps: int, *, every: int | None = None, looks: int | None = None) -> tuple[int, ...]:
    """The steps after which to look, the last step always among them.

    With `every`, each multiple of it. Otherwise `looks` of them, denser at the beginning, because most damage
    comes early: look i of K is at step max_steps · (i/K)^1.5.

    Raises `ConfigError` for numbers below 1, or when both are given.
    """
    if max_steps < 1:
        raise ConfigError(f"the run has {max_steps} steps, at least 1 is needed; set max_steps or more data")
    if every is not None and looks is not None:
        raise ConfigError(f"every = {every} and looks = {looks} are both given; one of them decides")
    for name, value in (("every", every), ("looks", looks)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{name} is {value!r}, a whole number from 1 is needed")
    if every is not None:
        steps = {*range(every, max_steps + 1, every), max_steps}
    else:
        count = LOOKS if looks is None else looks
        steps = {max(1, round(max_steps * (i / count) ** 1.5)) for i in range(1, count + 1)}
    return tuple(sorted(steps))
