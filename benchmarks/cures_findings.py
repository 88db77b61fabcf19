"""The runs of the cures beside one another: what each gives back, LoRA against all weights, and what foretells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cures_plan import ALSO_AT, Run, headings, planned
from cures_results import (
    QUANTITIES,
    Missing,
    Points,
    Result,
    at_steps,
    curves,
    distinct,
    means,
    over_seeds,
    rank_correlation,
    shared,
    with_kl,
)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first column is words."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def given_back(found: Points) -> list[str]:
    """What each cure gives back of what the run without it lost, and leaves of what that learnt."""
    rows = []
    for heading in headings():
        for point in heading.points:
            # The ends of the line are the base and the run itself; a guard that warns changes nothing.
            if heading.without in (None, point) or point.group != heading.group or point.policy == "warn":
                continue
            if point.alpha in (0.0, 1.0):
                continue
            try:
                seeds = shared(found, heading.without, point)
                lost, rise, gain = (now / then for then, now in (
                    means(found, quantity, heading.without, point) for quantity in ("drop", "rise", "gain")
                ))  # fmt: skip
            except Missing:
                continue
            rows.append([
                f"{heading.name} {heading.label(point)}", str(len(seeds)), *(f"{1 - x:.0%}" for x in (lost, rise)),
                f"{gain:.0%}",
            ])  # fmt: skip
    heads = ("cure", "seeds", "lost accuracy back", "rise in old bits taken back", "gain in target loss kept")
    title = "**What a cure gives back, and what it costs**, against the run without it, over the seeds that both have"
    return ["", title, "", *markdown(heads, rows)] if rows else []


def auto_against_checkpoints(found: Points) -> list[str]:
    """What `auto` learnt, against the best state that the unguarded run went through, by the looks at it."""
    warn, auto = (planned(group="guard", policy=policy)[0] for policy in ("warn", "auto"))
    rows = []
    for seed in sorted(found.get(warn, {}).keys() & found.get(auto, {}).keys()):
        unguarded, guarded = found[warn][seed], found[auto][seed]
        gain = QUANTITIES["gain"](guarded)
        cells = [str(seed), guarded["verdict"], f"{gain:.3f}"]
        for zones in (("retained",), ("retained", "undecided")):
            states = [state for state in unguarded["checkpoints"] if state["zone"] in zones]
            if not states:
                cells.append("none")
                continue
            best = min(states, key=lambda state: state["loss"])
            most = unguarded["target"]["before"] - best["loss"]
            cells.append(f"{most:.3f} (step {best['step']}), {gain / most:.0%}" if most > 0 else f"{most:.3f}")
        rows.append(cells)
    heads = ("seed", "verdict", "gain", "best retained checkpoint, and `auto`'s share", "best not regressed, likewise")
    title = "**`auto` against the unguarded run's checkpoints**: gain in target loss, and auto's as a share"
    return ["", title, "", *markdown(heads, rows)] if rows else []


def at_equal_loss(found: Points) -> list[str]:
    """LoRA against all weights where both have learnt as much: one is measured there, the other read off its line."""
    try:
        both = curves(found)
    except Missing:
        return []
    said = {"lora": "LoRA", "full": "all weights"}
    rows = []
    for method, curve in both.items():
        other = "full" if method == "lora" else "lora"
        for rate, measured in curve.down[1:]:
            read = {name: both[other].at(measured["target"], name) for name in ("rise", "drop", "kl")}
            if None in read.values():
                continue
            at = {method: measured, other: read}
            cells = [f"{at[m]['rise']:+.3f}" for m in said] + [f"{100 * at[m]['drop']:+.1f}" for m in said]
            cells += [f"{at[m]['kl']:.3f}" for m in said]
            rows.append((measured["target"], [f"{said[method]} at {rate:g}", f"{measured['target']:.3f}", *cells]))
    heads = ["measured", "target loss"]
    heads += [f"{what}, {m}" for what in ("rise in old bits", "points lost", "KL") for m in said.values()]
    title = (
        "**LoRA r = 16 against all weights at equal target loss**; the method that was not measured there is read off "
    )
    title += "the straight line between its two nearest rates"
    return ["", title, "", *markdown(heads, [cells for _, cells in sorted(rows, reverse=True)])] if rows else []


def drift(found: Points) -> list[str]:
    """How far each point is from the base by the KL on old text, and on the base's own replies to the new task."""
    found, rows, kinds = with_kl(found), [], ("prose", "answers", "task")
    for heading in headings():
        for point in heading.points:
            if point in found:
                by_seed = found[point].values()
                cells = [_spread([QUANTITIES[f"kl_{kind}"](result) for result in by_seed]) for kind in kinds]
                rows.append([f"{heading.title}: {heading.label(point)}", str(len(by_seed)), *cells])
    for point in ALSO_AT:
        for step, values in at_steps(found, point, "prose").items():
            cells = [_spread(at_steps(found, point, kind)[step]) for kind in kinds]
            rows.append([f"Steps, LoRA r = {point.rank} at {point.rate:g}: {step}", str(len(values)), *cells])
    heads = ("", "seeds", "old prose", "own answers, old questions", "own replies, new task")
    title = "**Drift**: KL to the base, nats a token"
    return ["", title, "", *markdown(heads, rows)] if rows else []


def _spread(values: Sequence[float]) -> str:
    over = over_seeds(values)
    return f"{over.mean:.3f}" + ("" if over.high is None else f" ± {over.high - over.mean:.3f}")


def foretold(found: Points) -> list[str]:
    """How well each measure of change tells what was lost, over all runs and those that the KL was measured of."""
    names = {"kl": "KL, dialogues", "moved": "distance"}
    lines = _correlations("", names, found)
    more = {"kl_task": "KL, own replies", **names, "kl_answers": "KL, old questions", "kl_prose": "KL, old prose"}
    return lines + _correlations(", of those in the table of the drift", more, with_kl(found))


def _correlations(which: str, names: Mapping[str, str], found: Points) -> list[str]:
    """Of each of the quantities with accuracy lost and with the rise of the old bits."""
    rows = []
    for name, own in _sets(found).items():
        results = [result for _, result in own]
        try:
            cells = [f"{rank_correlation(results, one, lost):.2f}" for lost in ("drop", "rise") for one in names]
        except Missing:
            continue
        rows.append([name, str(len(results)), *cells])
    heads = ["runs", "number", *(f"{one}; {lost}" for lost in ("accuracy lost", "old bits") for one in names.values())]
    title = f"**What foretells forgetting**: rank correlations (Spearman) over runs{which}"
    return ["", title, "", *markdown(heads, rows)] if rows else []


def _sets(found: Points) -> dict[str, list[tuple[Run, Result]]]:
    """Runs that are looked at together, each once."""
    runs = distinct(found)
    plain = [pair for pair in runs if pair[0].group in ("rate", "rank", "steps")]
    return {
        "all": runs,
        "plain training: rates, ranks, steps": plain,
        "of these LoRA": [pair for pair in plain if pair[0].method == "lora"],
        "of these all weights": [pair for pair in plain if pair[0].method == "full"],
        "replay and anchor": [pair for pair in runs if pair[0].group in ("replay", "anchor")],
        "repair": [pair for pair in runs if pair[0].group == "repair"],
    }
