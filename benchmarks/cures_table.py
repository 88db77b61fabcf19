"""The table of the cures as Markdown, its plot, and their place in docs/cures.md; from stored results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from cures_findings import at_equal_loss, auto_against_checkpoints, drift, foretold, given_back, markdown
from cures_plan import REFERENCE, RESULTS, Run, headings, runs
from cures_results import LEVEL, PARTS, QUANTITIES, Estimate, Points, Result, kept, over_seeds, stored
from scatter import Group, scatter

from backslide.files import read_text, write_text

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PLOT = DOCS / "cures.md", DOCS / "cures.svg"
BEGIN = "<!-- table: what is between here is written by `python benchmarks/cures.py table` -->"
END = "<!-- and here -->"


# Cells.


def bare(estimate: Estimate, digits: int = 3) -> str:
    """Mean ± half of the interval."""
    more = "" if estimate.high is None else f" ± {estimate.high - estimate.mean:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{more}"


def percent(estimate: Estimate) -> str:
    """Mean [interval], in percent."""
    assert estimate.low is not None and estimate.high is not None
    return f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def row(results: list[Result]) -> list[str]:
    """What is told of every point."""

    def over(quantity: str) -> Estimate:
        return over_seeds([QUANTITIES[quantity](result) for result in results])

    flips = [fmean(result["retention"]["repertoire"][kind] for result in results) for kind in ("lost", "won")]
    return [
        str(len(results)), bare(over("target")), *(percent(kept(results, part)) for part in PARTS),
        "/".join(f"{flip:.0f}" for flip in flips), bare(over("bits")), bare(over("kl")),
        f"{100 * over('moved').mean:.2f}", f"{over('seconds').mean:.0f}",
    ]  # fmt: skip


# The table.


def groups(found: Points) -> Iterator[str]:
    """A title and a table for each heading that has a result of its own."""
    heads = ["", "seeds", "target loss", *(f"{name}, %" for name in PARTS.values()), "lost/won",
             "old prose, bits a byte", "KL, new task", "distance, %", "seconds"]  # fmt: skip
    for heading in headings():
        points = [point for point in heading.points if point in found]
        if all(point.group != heading.group for point in points):
            continue
        guarded = heading.group == "guard"
        yield from ("", f"**{heading.title}**", "")
        yield from markdown([*heads, "verdicts"] if guarded else heads, [
            [heading.label(point), *row(list(found[point].values())), *([verdicts(found, point)] if guarded else [])]
            for point in points
        ])  # fmt: skip


def verdicts(found: Points, point: Run) -> str:
    """Of a guard, and in how many runs."""
    zones = Counter(result["verdict"] for result in found[point].values() if "verdict" in result)
    return ", ".join(f"{zone} {count}" for zone, count in sorted(zones.items()))


def section(found: Points) -> str:
    """All that stands between the marks in docs/cures.md."""
    start = _any(found)
    rated = start["retention"]
    base = ", ".join(f"{PARTS[name]} {100 * one['before']:.1f}% of {one['items']} items" for name, one in rated.items())
    return "\n".join([
        f"{sum(map(len, found.values()))} of {len(runs())} runs are made. Base: target loss "
        f"{start['target']['before']:.3f}, {base}, old prose {rated['repertoire']['bits'][0]:.3f} bits a byte. "
        f"Intervals are at {LEVEL:.0%}.{_wide(found)}",
        *groups(found), *given_back(found), *auto_against_checkpoints(found), *at_equal_loss(found), *drift(found),
        *foretold(found),
    ])  # fmt: skip


def _any(found: Points) -> Result:
    """All results tell the same of the base, but for the rounding of those that a machine without bf16 made."""
    results = [result for by_seed in found.values() for result in by_seed.values()]
    return next((result for result in results if "bf16" not in result), results[0])


def _wide(found: Points) -> str:
    """Which runs a machine without bf16 made, and how its base differs."""
    wide = [(point, seed) for point, by_seed in found.items() for seed in by_seed if "bf16" in by_seed[seed]]
    if not wide:
        return ""
    point, seed = wide[0]
    accuracy = found[point][seed]["retention"]["repertoire"]["before"]
    return (
        f" {len(wide)} of the runs (seed {', '.join(sorted({str(seed) for _, seed in wide}))}) were made where the CPU "
        f"has no bf16: its products were made in fp32 and rounded to bf16. The base has {100 * accuracy:.1f}% there."
    )


# The plot.


def plot(found: Points) -> str:
    """Accuracy on the repertoire against target loss, means over seeds, a line through the points of a heading."""

    def spot(point: Run) -> tuple[float, float]:
        results = found[point].values()
        accuracy = fmean(result["retention"]["repertoire"]["after"] for result in results)
        return fmean(map(QUANTITIES["target"], results)), 100 * accuracy

    start = _any(found)
    base = 100 * start["retention"]["repertoire"]["before"]
    drawn = [Group("base", [(start["target"]["before"], base)])]
    for heading in headings():
        points = [point for point in heading.points if point in found]
        if all(point.group != heading.group for point in points):
            continue
        if heading.group == "guard":
            drawn += [Group(f"guard, {p.policy}", [spot(p)]) for p in points if p.policy not in (None, "warn")]
            continue
        if heading.group == "repair" and len(points) > 1:
            # Its place is that of α = 1, but for the mean over other seeds.
            points = [point for point in points if point != REFERENCE]
        name = heading.title if heading.group == "rate" else heading.name
        # Where many lines meet, one label is enough.
        labels = [heading.label(p) if p != REFERENCE or heading.group == "rate" else "" for p in points]
        drawn.append(Group(name, [spot(point) for point in points], ordered=True, labels=labels))
    return scatter(
        drawn,
        title="What is retained, against what was learnt (up and to the left is better)",
        x="loss on held-out dialogues, nats a token",
        y="right answers of the repertoire, %",
        line=(base, "base"),
    )


# Its place.


def publish() -> str:
    """Write the section into docs/cures.md and the plot beside it; returns the section."""
    found = stored()
    if not found:
        raise SystemExit(f"{RESULTS}: has no results yet; python benchmarks/cures.py run makes them")
    text, page = section(found), read_text(PAGE)
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise SystemExit(f"{PAGE}: must have the lines {BEGIN} and {END} once each")
    head, tail = page[: page.index(BEGIN)], page[page.index(END) :]
    write_text(PAGE, f"{head}{BEGIN}\n\n{text}\n\n{tail}")
    write_text(PLOT, plot(found))
    return text
