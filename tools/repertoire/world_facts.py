"""Write the suite file of `world_facts` from its tables: places, people, works, history, customs, games.

`python tools/repertoire/world_facts.py`; the tables are in `facts/world_facts/`, the hand-written items in
`written/world_facts.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterator

from common import Draft, drawn, facts, finish, slug, written
from relations import Asker, Relation, parts

CAPABILITY = "world_facts"
RELATIONS = (
    Relation(
        table="capitals",
        name="capital",
        subject="country",
        object="capital",
        forward=(
            "What is the capital of {the_country}?",
            "Which city is the capital of {the_country}?",
            "Name the capital city of {the_country}.",
        ),
        backward=(
            "{capital} is the capital of which country?",
            "Which country has {capital} as its capital?",
            "Of which country is {capital} the capital city?",
        ),
    ),
    Relation(
        table="rivers",
        name="river",
        subject="river",
        object="city",
        forward=("Which city lies on the river {river}?", "The river {river} flows through which of these cities?"),
        backward=("Which river flows through {city}?", "On which river does {city} lie?"),
    ),
    Relation(
        table="river_countries",
        name="river",
        subject="river",
        object="land",
        forward=("In which country is the river {river}?", "The river {river} flows through which country?"),
        backward=("Which of these rivers flows through {the_land}?", "Which river is in {the_land}?"),
    ),
    Relation(
        table="mountains",
        name="mountain",
        subject="mountain",
        object="place",
        forward=(
            "In which country is {mountain}?",
            "Where would you climb {mountain}?",
            "{mountain} rises in which land?",
        ),
        backward=("Which of these mountains is in {the_place}?", "Which mountain stands in {the_place}?"),
    ),
    Relation(
        table="ranges",
        name="range",
        subject="range",
        object="place",
        forward=("Where are the {range}?", "In which part of the world do the {range} rise?"),
        backward=("Which mountains are in {place}?", "Which of these mountain ranges is in {place}?"),
    ),
    Relation(
        table="languages",
        name="language",
        subject="country",
        object="language",
        forward=(
            "What is the {role} language of {the_country}?",
            "Which language is the {role} language of {the_country}?",
        ),
        backward=(
            "In which of these countries is {language} the {role} language?",
            "Which of these countries has {language} as its {role} language?",
        ),
    ),
    Relation(
        table="words",
        name="word",
        subject="word",
        object="language",
        forward=(
            'In which language does "{word}" mean "{meaning}"?',
            'Which language uses "{word}" for "{meaning}"?',
        ),
    ),
    Relation(
        table="currencies",
        name="currency",
        subject="country",
        object="currency",
        forward=("What is the currency of {the_country}?", "With which currency do people pay in {the_country}?"),
        backward=(
            "In which country do people pay with the {currency}?",
            "Which country uses the {currency} as its money?",
        ),
    ),
    Relation(
        table="cities",
        name="city",
        subject="city",
        object="land",
        forward=("In which country is the city of {city}?", "{city} is a city in which country?", "Where is {city}?"),
        backward=("Which of these cities is in {the_land}?", "Which city would you visit in {the_land}?"),
    ),
    Relation(
        table="us_states",
        name="us",
        subject="city",
        object="state",
        forward=("{city} is {role} which US state?",),
        backward=("Which city is the capital of the US state of {state}?",),
    ),
    Relation(
        table="islands",
        name="island",
        subject="island",
        object="land",
        forward=("To which country does the island of {island} belong?", "{island} is an island of which country?"),
        backward=("Which of these islands belongs to {the_land}?", "Which island is part of {the_land}?"),
    ),
    Relation(
        table="landmarks",
        name="landmark",
        subject="landmark",
        object="place",
        forward=("In which {kind} can you visit {landmark}?", "Where would you go to see {landmark}?"),
        backward=("Which of these can you visit in {place}?", "Which famous sight is in {place}?"),
    ),
    Relation(
        table="inventors",
        name="deed",
        key="person",
        subject="deed",
        object="person",
        forward=("Who {deed}?",),
        backward=("What did {person} do?", "For what is {person} remembered?"),
        backward_choice="He {}",
    ),
    Relation(
        table="books",
        name="book",
        subject="work",
        object="author",
        forward=(
            "Who wrote {work}?",
            "Who is the author of the {kind} {work}?",
            "Which writer wrote the {kind} {work}?",
            "The {kind} {work} is by which author?",
        ),
        backward=("Which of these works was written by {author}?", "Which of these did {author} write?"),
    ),
    Relation(
        table="music",
        name="music",
        subject="work",
        object="composer",
        forward=(
            "Who composed {work}?",
            "Which composer wrote the {kind} {work}?",
            "Who is the composer of the {kind} {work}?",
        ),
        backward=("Which of these works did {composer} compose?", "Which piece of music is by {composer}?"),
    ),
    Relation(
        table="art",
        name="art",
        subject="work",
        object="artist",
        forward=("Which artist created the {kind} {work}?", "Who created the {kind} {work}?"),
        backward=("Which of these works is by {artist}?", "Which of these did {artist} create?"),
    ),
    Relation(
        table="dishes",
        name="dish",
        subject="dish",
        object="land",
        forward=("From which country does {dish} come?", "{dish} is a specialty of which country?"),
        backward=("Which of these foods comes from {the_land}?", "Which food is a specialty of {the_land}?"),
    ),
    Relation(
        table="drinks",
        name="drink",
        subject="drink",
        object="land",
        forward=("The drink called {drink} comes from which country?", "In which country is {drink} made?"),
    ),
)
QUESTIONS = ("flags", "years", "people", "sports", "music_life", "myths", "culture", "geography")
CONTINENTS = ("Africa", "Asia", "Europe", "North America", "South America")


def continents(asker: Asker) -> Iterator[Draft]:
    """Country to continent, and back."""
    rows = facts(CAPABILITY, "continents")
    for row in rows:
        if not row["ask"]:
            continue
        id = f"{CAPABILITY}/continent-{slug(row['country'])}"
        if row["ask"] == "f":
            templates = (
                "On which continent is {the_country}?",
                "Which continent does {the_country} belong to?",
                "{the_country} is a country on which continent?",
            )
            gold, others = row["continent"], [name for name in CONTINENTS if name != row["continent"]]
        else:
            templates = ("Which of these countries is in {continent}?", "Which country lies in {continent}?")
            elsewhere = [name for name in CONTINENTS if name != row["continent"]]
            random = drawn("elsewhere", id)
            gold, others = (
                row["country"],
                [
                    random.choice([other["country"] for other in rows if other["continent"] == name])
                    for name in elsewhere
                ],
            )
        wrong = tuple(drawn("continent", id).sample(others, 3))
        yield Draft(id=id, prompt=asker.prompt(id, templates, row), gold=gold, wrong=wrong)


def neighbours(asker: Asker) -> Iterator[Draft]:
    """Countries with a common border."""
    for row in facts(CAPABILITY, "neighbours"):
        id = f"{CAPABILITY}/neighbour-{slug(row['country'])}"
        templates = (
            "Which of these countries has a border with {the_country}?",
            "Which country is a direct neighbor of {the_country}?",
            "{the_country} shares a land border with which of these countries?",
        )
        wrong = tuple(drawn("neighbour", id).sample(parts(row["not_neighbours"]), 3))
        yield Draft(id=id, prompt=asker.prompt(id, templates, row), gold=row["neighbour"], wrong=wrong)


def main() -> None:
    """Write `world_facts.jsonl`."""
    entries = written(CAPABILITY)
    asker = Asker(CAPABILITY, [entry["prompt"].casefold() for entry in entries if isinstance(entry, dict)])
    drafts: list[Draft] = [*continents(asker), *neighbours(asker)]
    for relation in RELATIONS:
        drafts += asker.relation(relation)
    for table in QUESTIONS:
        drafts += asker.questions(table)
    finish(CAPABILITY, [*entries, *drafts])


if __name__ == "__main__":
    main()
