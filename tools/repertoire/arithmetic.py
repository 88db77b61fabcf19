"""Write `arithmetic.jsonl`: `python tools/repertoire/arithmetic.py`.

The skeletons are the lines of `facts/arithmetic/*.tsv`, which say what the numbers may be, how the question and the
reply read, what the answer is and which slips lead to the wrong replies. A line is drawn several times with other
numbers. What stands in braces is a Python expression over the numbers; all gold answers are computed from it.

Columns: `name` starts the ids; `draws` is how many items to make; `values` is what each letter may be (`a=2-9`, or
`a=5/10/20`, or `a=2-9@` for any person's name); `where` is a condition; `prompts` and `replies` are alternatives
between bars; `answer` is an expression, which the replies show as `{r}`; `slips` are expressions for wrong answers
between semicolons, or whole wrong replies in double quotes; `fact` tells which draws ask the same, and `cluster`
which belong together (without one, up to three draws of a skeleton make a cluster).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from common import Draft, Row, drawn, facts, finish, pick, slug, written

FILES = ("sums", "products", "numbers", "measures", "stories")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
MEN = ("Tom", "Ben", "Omar", "Ivan", "Paul", "Hugo", "Peter", "Jack")
WOMEN = ("Anna", "Mia", "Lena", "Ruth", "Nora", "Amy", "Ines", "Julia")
SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
LARGEST_CLUSTER = 3
ATTEMPTS = 2000


# What the expressions may call


def words(n: int) -> str:
    """`n` below 1000 in words, such as "three hundred and forty-two"."""
    if n < 20:
        return SMALL[n]
    if n < 100:
        return TENS[n // 10] + (f"-{SMALL[n % 10]}" if n % 10 else "")
    return f"{SMALL[n // 100]} hundred" + (f" and {words(n % 100)}" if n % 100 else "")


def roman(n: int) -> str:
    """`n` in Roman numerals."""
    text = ""
    for value, sign in ((50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        text += sign * (n // value)
        n %= value
    return text


def clock(minutes: int) -> str:
    """Minutes since midnight as a time of a twelve-hour clock, such as "3:05"."""
    return f"{(minutes // 60 - 1) % 12 + 1}:{minutes % 60:02d}"


def swap(n: int) -> int:
    """`n` with its last two digits in the other order."""
    return n // 100 * 100 + n % 10 * 10 + n // 10 % 10


def several(*numbers: int) -> str:
    """The numbers in a row, "and" before the last."""
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def he(person: str) -> str:
    """The pronoun for `person`."""
    return "he" if person in MEN else "she"


def his(person: str) -> str:
    """The possessive pronoun for `person`."""
    return "his" if person in MEN else "her"


BUILT_IN = (abs, int, len, max, min, round, set, sorted, str, sum)
NAMES: dict[str, Any] = {function.__name__: function for function in BUILT_IN}
NAMES |= {function.__name__: function for function in (words, roman, clock, swap, several, he, his)}
NAMES |= {"DAYS": DAYS, "MONTHS": MONTHS}


# One skeleton


def value(expression: str, names: dict[str, Any]) -> Any:
    """What `expression` of a facts file is worth. The files are the project's own, so they may be run."""
    return eval(expression, {"__builtins__": {}, **NAMES, **names})


def filled(template: str, names: dict[str, Any]) -> str:
    """`template` with the expressions in braces worked out."""
    return re.sub(r"\{([^{}]+)\}", lambda found: str(value(found[1], names)), template)


def draw_values(column: str, *key: object) -> dict[str, Any]:
    """A value for each letter of a `values` column."""
    names: dict[str, Any] = {}
    for part in re.split(r"\s+(?=[a-z]=)", column):
        name, options = part.split("=")
        if options == "@":
            choices: list[Any] = [person for person in MEN + WOMEN if person not in names.values()]
        elif span := re.fullmatch(r"(\d+)-(\d+)", options):
            choices = list(range(int(span[1]), int(span[2]) + 1))
        else:
            choices = [int(option) if option.isdigit() else option for option in options.split("/")]
        names[name] = pick(choices, name, *key)
    return names


def wrong_replies(slips: str, reply: str, names: dict[str, Any]) -> list[str]:
    """The different wrong replies that `slips` lead to, those as long as the right one first."""
    gold, right = filled(reply, names), names["r"]
    replies: list[str] = []
    for slip in slips.split(";"):
        slip = slip.strip()
        if slip.startswith('"'):
            text = filled(slip.strip('"'), names)
        else:
            answer = value(slip, names)
            if isinstance(answer, float):
                answer = round(answer, 2)
            if isinstance(right, int) and (answer < 0 <= right or answer != int(answer)):
                continue
            text = filled(reply, {**names, "r": int(answer) if isinstance(right, int) else answer})
        if text != gold and text not in replies:
            replies.append(text)
    return replies


def drafts(row: dict[str, str], seen: set[str], clusters: Counter[str]) -> Iterator[Draft]:
    """The items of one skeleton; `seen` holds the facts asked so far."""
    name, wanted = row["name"], int(row["draws"])
    prompts, replies = row["prompts"].split("|"), row["replies"].split("|")
    made = 0
    for attempt in range(ATTEMPTS):
        names = draw_values(row["values"], name, attempt)
        if made == wanted:
            return
        if row["where"] and not value(row["where"], names):
            continue
        names["r"] = value(row["answer"], names)
        # Neighbouring draws get neighbouring wordings, so a skeleton uses all it has.
        prompt = filled(prompts[made % len(prompts)].strip(), names)
        reply = replies[(made // len(prompts) + made) % len(replies)].strip()
        numbers = [names[key] for key in names if key != "r" and isinstance(names[key], int)]
        fact = filled(row["fact"], names) if row["fact"] else f"{name} {numbers or names}"
        cluster = row["cluster"] or (name if wanted <= LARGEST_CLUSTER else "")
        cluster = f"arithmetic/{slug(filled(cluster, names))}" if cluster else ""
        wrong = wrong_replies(row["slips"], reply, names)
        if fact in seen or len(wrong) < 3 or (cluster and clusters[cluster] == LARGEST_CLUSTER):
            continue
        seen.add(fact)
        clusters[cluster] += 1
        made += 1
        id = f"arithmetic/{slug(name, *(str(names[key]) for key in names if key != 'r'))}"
        gold = filled(reply, names)
        rng = drawn("wrong", id)
        chosen = sorted(rng.sample(wrong, len(wrong)), key=lambda text: abs(len(text) - len(gold)))[:3]
        yield Draft(id=id, prompt=prompt, gold=gold, wrong=tuple(chosen), cluster=cluster or None)
    if made < wanted:
        raise ValueError(f"{name}: only {made} of {wanted} draws were found")


def asked(entries: list[Draft | Row]) -> set[str]:
    """The sums that the hand-written items ask, as in the column `fact`."""
    found: set[str] = set()
    for entry in entries:
        text = entry["choices"][entry["gold"]] if isinstance(entry, dict) else entry.gold
        if parts := re.fullmatch(r"(\d+) ([+x/-]) (\d+) = \d+", text):
            numbers = sorted((parts[1], parts[3]), key=int) if parts[2] in "+x" else [parts[1], parts[3]]
            found.add(f" {parts[2]} ".join(numbers))
    return found


def main() -> None:
    """Write the file."""
    entries = written("arithmetic")
    seen, clusters = asked(entries), Counter[str]()
    for name in FILES:
        for row in facts("arithmetic", name):
            entries += drafts(row, seen, clusters)
    finish("arithmetic", entries)


if __name__ == "__main__":
    main()
