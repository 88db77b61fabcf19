"""Write the suite file of `science`: school physics, chemistry, biology, astronomy and earth science.

`python tools/repertoire/science.py` reads `facts/science/*.tsv` and `written/science.jsonl`. There are tables

- of relations (`relations.tsv`: a unit and its quantity, an organ and its work …), asked forward and backward, the
  wrong choices being drawn from other rows of the same group;
- of elements, animals, rocks and food chains, each with a function of its own below;
- of single facts (`QUESTIONS`), with the question, its answer and three wrong ones.

What is asked of one fact forward and backward shares a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from common import Draft, Row, drawn, facts, finish, pick, slug, some, written

NAME = "science"

QUESTIONS = ("chemistry", "physics", "space", "earth", "wildlife", "plants", "body", "cells")


@dataclass(frozen=True, kw_only=True)
class Relation:
    """How the rows of one relation are asked.

    The phrasings name {subject}, {a} (the subject after its article), {object} and the verbs {is} and {does}.
    """

    forward: tuple[str, ...]
    """Ask for the object."""
    backward: tuple[str, ...] = ()
    """Ask for the subject; empty: the relation is asked forward only, several subjects having the same object."""
    object: str = "{object}"
    """How the object is given as a choice."""
    near: tuple[frozenset[str], ...] = ()
    """Subjects or objects that are too near to each other to be choices of one item."""


RELATIONS: dict[str, Relation] = {
    "formula": Relation(
        forward=("What is the chemical formula of {subject}?", "Which formula stands for {subject}?"),
        backward=("Which substance has the formula {object}?", "What is {object}?"),
    ),
    "unit": Relation(
        forward=("In which unit is {subject} measured?", "Which unit is used for {subject}?"),
        backward=("What is measured in the unit {object}?", "Which of these is measured in the unit {object}?"),
        near=(
            frozenset(("mass", "the weight of a gemstone")),
            frozenset(("mass", "the amount of a substance")),
            frozenset(("the volume of a liquid", "the amount of a substance")),
            frozenset(("an angle", "absolute temperature")),
        ),
    ),
    "instrument": Relation(
        forward=("What does {a} measure?", "What is {a} used to measure?"),
        backward=("Which instrument measures {object}?", "What is used to measure {object}?"),
    ),
    "organ": Relation(
        forward=("What is the job of {subject}?", "What task {does} {subject} have in the body?"),
        backward=("Which part of the body is responsible for {object}?", "What in the body has the task of {object}?"),
        near=(
            frozenset(("the muscles", "the tendons")),
            frozenset(("the muscles", "the backbone")),
            frozenset(("the small intestine", "the large intestine")),
        ),
    ),
    "system": Relation(
        forward=("To which body system {does} {subject} belong?", "Of which body system {is} {subject} a part?"),
        object="The {object} system",
    ),
    "science": Relation(
        forward=("What does {subject} study?", "What is {subject} the study of?"),
        backward=("Which science studies {object}?", "What is the study of {object} called?"),
        near=(
            *(frozenset(("zoology", part)) for part in ("entomology", "ornithology", "ichthyology")),
            *(
                frozenset(("anatomy", part))
                for part in ("cardiology", "dermatology", "neurology", "hematology", "ophthalmology")
            ),
            frozenset(("geology", "seismology")),
            frozenset(("geology", "oceanography")),
        ),
    ),
    "source": Relation(
        forward=("What is the source of {subject}?", "From what do we get {subject}?"),
        near=(frozenset(("wool", "leather")),),
    ),
    "inflamed": Relation(
        forward=("Which part of the body is inflamed in {subject}?", "What does {subject} affect?"),
        backward=("Which disease is an inflammation of {object}?",),
    ),
    "law": Relation(
        forward=("What {is} {subject} about?", "What {does} {subject} describe?"),
        backward=("Which of these is about {object}?",),
    ),
    "machine": Relation(
        forward=("Which kind of simple machine is {subject}?", "What kind of simple machine is {subject}?"),
        near=(
            frozenset(("a wedge", "an inclined plane")),
            frozenset(("a screw", "an inclined plane")),
            frozenset(("a pulley", "a wheel and axle")),
        ),
    ),
}

PLURALS: tuple[str, ...] = (
    *("lungs", "kidneys", "arteries", "veins", "ribs", "tendons", "ligaments", "muscles", "platelets"),
    *("cells", "nerves", "glands", "incisors", "molars", "gums", "laws"),
)
"""What tells that a subject is a plural."""


def capital(text: str) -> str:
    """`text` with a capital letter at its start."""
    return text if text.startswith("pH") else text[:1].upper() + text[1:]


def a(word: str) -> str:
    """`word` after its indefinite article."""
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def bare(text: str) -> str:
    """`text` without its article."""
    return text.removeprefix("the ").removeprefix("an ").removeprefix("a ")


def wrongs(text: str) -> tuple[str, ...]:
    """The wrong choices of a field, which a bar separates."""
    return tuple(text.split("|"))


def is_asked(row: dict[str, str], way: str) -> bool:
    """Whether a row is asked `forward` or `backward`; one that is asked in neither way still gives wrong choices."""
    return row["ask"] in ("both", way)


def alike(gold: str, options: list[str], *key: object) -> tuple[str, ...]:
    """Of a few draws of three `options` the one whose choices are most alike in length to the gold one."""
    draws = [some(options, 3, *key, number) for number in range(4)]
    return tuple(min(draws, key=lambda draw: sum(abs(len(option) - len(gold)) for option in draw)))


def relations() -> Iterator[Draft]:
    """Pairs of subject and object, asked forward and backward."""
    rows = facts(NAME, "relations")
    for row in rows:
        relation = RELATIONS[row["relation"]]
        subject, object = row["subject"], row["object"]
        others = [other for other in rows if (other["relation"], other["group"]) == (row["relation"], row["group"])]
        for side, own in (("subject", subject), ("object", object)):
            others = [
                other for other in others if other[side] != own and frozenset((other[side], own)) not in relation.near
            ]
        plural = any(subject.endswith(word) or f"{word} " in subject for word in PLURALS)
        words = {"subject": subject, "object": object, "a": a(subject), "is": "are" if plural else "is"}
        words["does"] = "do" if plural else "does"
        id = f"{NAME}/{row['relation']}-{slug(bare(subject))}"
        cluster = id if relation.backward and row["ask"] == "both" else None
        gold = capital(relation.object.format(object=object))
        options = [capital(relation.object.format(object=other["object"])) for other in others]
        prompt = pick(relation.forward, id).format(**words)
        if is_asked(row, "forward"):
            yield Draft(id=id, prompt=prompt, gold=gold, wrong=alike(gold, options, id), cluster=cluster)
        if relation.backward and is_asked(row, "backward"):
            id += "-back"
            gold = capital(subject)
            options = [capital(other["subject"]) for other in others]
            prompt = pick(relation.backward, id).format(**words)
            yield Draft(id=id, prompt=prompt, gold=gold, wrong=alike(gold, options, id), cluster=cluster)


def elements() -> Iterator[Draft]:
    """Elements and their symbols."""
    forward = ("What is the chemical symbol for {name}?", "Which symbol stands for {name} in chemistry?")
    backward = ("Which element has the symbol {symbol}?", "For which element does the symbol {symbol} stand?")
    for row in facts(NAME, "elements"):
        id = f"{NAME}/element-{row['name']}"
        prompt = pick(forward, id).format(**row)
        cluster = id if row["ask"] == "both" else None
        if is_asked(row, "forward"):
            yield Draft(id=id, prompt=prompt, gold=row["symbol"], wrong=wrongs(row["wrong_symbols"]), cluster=cluster)
        if is_asked(row, "backward"):
            id += "-back"
            prompt = pick(backward, id).format(**row)
            wrong = wrongs(row["wrong_names"])
            yield Draft(id=id, prompt=prompt, gold=capital(row["name"]), wrong=wrong, cluster=cluster)


def animals() -> Iterator[Draft]:
    """Which class is an animal of, and which of four animals is of a class?"""
    rows = facts(NAME, "animals")
    classes = list(dict.fromkeys(row["class"] for row in rows))
    forward = ("What kind of animal is {a}?", "To which animal group does the {animal} belong?")
    for row in rows:
        id = f"{NAME}/class-{slug(row['animal'])}"
        others = [name for name in classes if name not in (row["class"], row["lure"])]
        wrong = [row["lure"], *some(others, 2, id)]
        phrasing = pick(forward, id)
        gold, *wrong = (a(name) if phrasing.startswith("What") else plural_of(name) for name in (row["class"], *wrong))
        prompt = phrasing.format(a=a(row["animal"]), animal=row["animal"])
        cluster = id if row["ask"] == "both" else None
        if is_asked(row, "forward"):
            yield Draft(id=id, prompt=prompt, gold=capital(gold), wrong=tuple(map(capital, wrong)), cluster=cluster)
        if is_asked(row, "backward"):
            id += "-back"
            of = some([name for name in classes if name != row["class"]], 3, id)
            animals = [pick([r["animal"] for r in rows if r["class"] == name], id, name) for name in of]
            yield one_of(id, f"is {a(row['class'])}", row["animal"], animals, cluster)


def rocks() -> Iterator[Draft]:
    """Which of four rocks is igneous, sedimentary or metamorphic?"""
    rows = facts(NAME, "rocks")
    for row in rows:
        id = f"{NAME}/rock-{row['rock']}"
        others = [other["rock"] for other in rows if other["kind"] != row["kind"]]
        if is_asked(row, "forward"):
            yield one_of(id, f"is {a(row['kind'])} rock", row["rock"], some(others, 3, id), None)


def one_of(id: str, what: str, right: str, wrong: list[str], cluster: str | None) -> Draft:
    """Which of four things has a property? The prompt lists them in an order of its own."""
    listed = drawn("listed", id).sample([right, *wrong], 4)
    prompt = f"Which of these {what}: {', '.join(listed[:3])} or {listed[3]}?"
    return Draft(id=id, prompt=prompt, gold=capital(right), wrong=tuple(map(capital, wrong)), cluster=cluster)


def plural_of(name: str) -> str:
    """The plural of an animal class."""
    return name if name == "fish" else f"{name}s"


def chains() -> Iterator[Draft]:
    """Food chains of four links: two of the three questions about each."""
    asks = {
        "plant": ("which one is the producer?", "which one makes its own food?"),
        "eater": ("which one is the plant eater?", "which one is the herbivore?"),
        "top": ("which one is the top predator?", "which one is eaten by none of the others?"),
    }
    for row in facts(NAME, "chains"):
        chain = [row[link] for link in ("plant", "eater", "hunter", "top")]
        cluster = f"{NAME}/chain-{slug(row['plant'])}"
        for link in some(asks, 2, cluster):
            id = f"{cluster}-{link}"
            prompt = f"In the food chain {', '.join(chain)}, {pick(asks[link], id)}"
            wrong = tuple(capital(name) for name in chain if name != row[link])
            yield Draft(id=id, prompt=prompt, gold=capital(row[link]), wrong=wrong, cluster=cluster)


def questions() -> Iterator[Draft]:
    """The tables of single facts."""
    for table in QUESTIONS:
        for row in facts(NAME, table):
            id = f"{NAME}/{table}-{row['key']}"
            yield Draft(id=id, prompt=row["question"], gold=row["answer"], wrong=wrongs(row["wrong"]))


def main() -> None:
    """Write the file."""
    made: list[Draft | Row] = [*relations(), *elements(), *animals(), *rocks(), *chains(), *questions()]
    finish(NAME, [*written(NAME), *made])


if __name__ == "__main__":
    main()
