"""Write the suite file of `short_answers` from its tables: questions that a word, a name or a number answers.

`python tools/repertoire/short_answers.py`; the tables are in `facts/short_answers/`, the hand-written items in
`written/short_answers.jsonl`. A reply is right when it holds one of the accepted answers as whole words; sums are right
when the last number of the reply is. Some facts are asked by another capability too; `repeats.tsv` lists these pairs,
and `thin.py` leaves one item of each out.
"""

from __future__ import annotations

from collections.abc import Iterator

from common import Row, drawn, facts, finish, slug, written
from relations import Asker, parts

CAPABILITY = "short_answers"
# Table, its first column, and the questions; the ids begin with the table's name without its plural ending.
TABLES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("capitals", "capital", ("What is the capital of {the_country}?", "Which city is the capital of {the_country}?")),
    ("continents", "continent", ("On which continent is {country}?", "Which continent is {country} in?")),
    ("languages", "language", ("Which language is spoken in {country}?", "What is the main language of {country}?")),
    ("currencies", "currency", ("What is the currency of {country}?", "Which currency is used in {country}?")),
    ("cities", "city", ("In which country is {city}?", "Which country is the city of {city} in?")),
    ("sights", "sight", ("In which {place} is {sight}?", "{sight} is in which {place}?")),
    ("works", "who", ("Who {deed} {work}?",)),
    ("plurals", "plural", ("What is the plural of {word}?", "What is the plural form of the word {word}?")),
    ("past", "past", ("What is the past tense of {word}?", "What is the past tense of the verb {word}?")),
    ("opposites", "opposite", ("What is the opposite of {word}?", "Which word is the opposite of {word}?")),
)
QUESTIONS = ("people", "years", "calendar", "counts", "nature", "things")
# Question, how its result comes about, and what the two numbers are drawn from; small sums are left to `arithmetic`.
SUMS = (
    ("What is {a} + {b}?", "sum", range(20, 100, 10), range(1, 10)),
    ("What do you get when you add {a} and {b}?", "sum", range(10, 60, 10), range(10, 50, 10)),
    ("What is the sum of {a} and {b}?", "sum", range(100, 500, 100), range(10, 100, 10)),
    ("What is {a} plus {b}?", "sum", range(50, 100), range(1, 4)),
    ("What is {a} - {b}?", "difference", range(60, 100, 10), range(10, 60, 10)),
    ("What is {a} minus {b}?", "difference", range(50, 100), range(1, 4)),
)
SUMS_OF_A_KIND = 2


def answer_row(id: str, prompt: str, answers: list[str], *, match: str = "contains", cluster: str = "") -> Row:
    """A line of the suite. Raises `ValueError` where repeating the prompt would be a right reply."""
    from backslide.suite.matching import matches

    if matches(prompt, answers, match):
        raise ValueError(f"{id}: the prompt holds its answer: {prompt}")
    row: Row = {"id": id, "kind": "answer", "capability": CAPABILITY}
    if cluster:
        row["cluster"] = cluster
    return {**row, "prompt": prompt, "answers": answers, "match": match}


def from_tables(asker: Asker) -> Iterator[Row]:
    """The items whose wording comes from a template, then those that have their own."""
    for table, name, templates in TABLES:
        for row in facts(CAPABILITY, table):
            subject = next(iter(row.values()))
            id = f"{CAPABILITY}/{name}-{slug(subject)}"
            yield answer_row(id, asker.prompt(id, templates, row), parts(row["answers"]))
    for table in QUESTIONS:
        for row in facts(CAPABILITY, table):
            id = f"{CAPABILITY}/{row['id']}"
            cluster = row.get("cluster", "")
            yield answer_row(id, asker.prompt(id, ("{question}",), row), parts(row["answers"]), cluster=cluster)


def sums(asker: Asker) -> Iterator[Row]:
    """Small sums; the numbers are drawn by the wording and a count."""
    seen: set[str] = set()
    for question, kind, of_a, of_b in SUMS:
        done = 0
        for draw in range(50):
            random = drawn("sum", question, draw)
            a, b = random.choice(of_a), random.choice(of_b)
            value = {"sum": a + b, "difference": a - b}[kind]
            id = f"{CAPABILITY}/{kind}-{a}-{b}"
            if id in seen or value in (a, b):
                continue  # asked before, or the result is in the prompt
            seen.add(id)
            prompt = asker.prompt(id, (question,), {"a": str(a), "b": str(b)})
            yield answer_row(id, prompt, [str(value)], match="number")
            done += 1
            if done == SUMS_OF_A_KIND:
                break


def main() -> None:
    """Write `short_answers.jsonl`."""
    entries = written(CAPABILITY)
    asker = Asker(CAPABILITY, [entry["prompt"].casefold() for entry in entries if isinstance(entry, dict)])
    finish(CAPABILITY, [*entries, *from_tables(asker), *sums(asker)])


if __name__ == "__main__":
    main()
