"""Questions from tables of facts: a relation asked forward and backward, and questions with their own answers.

A table's rows say `subject is in relation to object`. Forward asks for the object, backward for the subject; the wrong
choices are objects, or subjects, of other rows. Columns with a meaning of their own:

- `zone`: rows of one zone are alike, and their entries are taken first as wrong choices;
- `not`: further objects that would be right for the subject, `; ` between them: never among its wrong choices;
- `near`: further wrong objects, such as other cities of the country; one of them is always a choice;
- `ask`: `f` asks forward, `b` backward; without either the row only serves as a wrong choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common import Draft, drawn, facts, slug

Fact = dict[str, str]

WITH_ARTICLE = {
    "Bahamas",
    "Czech Republic",
    "Dominican Republic",
    "Netherlands",
    "Philippines",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
}


def the(name: str) -> str:
    """`name` as it stands within a sentence: the Netherlands, but Norway."""
    return f"the {name}" if name in WITH_ARTICLE else name


def parts(field: str) -> list[str]:
    """The entries of a field that holds several."""
    return [part.strip() for part in field.split(";") if part.strip()]


def capital(text: str) -> str:
    """`text` with a capital first letter."""
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A table and how it is asked. Templates take the columns, and `the_<column>` with an article where it has one."""

    table: str
    """Name of the file, without its ending."""
    name: str
    """What ids of its items begin with."""
    key: str = ""
    """Column that ids end with; the subject's by default."""
    subject: str
    """Column of the subject."""
    object: str
    """Column of the object."""
    forward: tuple[str, ...]
    """Questions for the object."""
    backward: tuple[str, ...] = ()
    """Questions for the subject."""
    backward_choice: str = "{}"
    """How a subject is put into words as a choice."""


class Asker:
    """Makes the drafts of one capability; no prompt comes twice."""

    def __init__(self, capability: str, taken: Sequence[str] = ()) -> None:
        self.capability = capability
        self._taken = set(taken)

    def relation(self, relation: Relation) -> Iterator[Draft]:
        """The drafts of a relation. Raises `ValueError` where a row lacks wrong choices or a prompt of its own."""
        rows = facts(self.capability, relation.table)
        subject, object = relation.subject, relation.object
        for row in rows:
            id = f"{self.capability}/{relation.name}-{slug(row[relation.key or subject])}"
            cluster = id if {"f", "b"} <= set(row["ask"]) else None
            if "f" in row["ask"]:
                others = [other for other in rows if row[object] != other[object]]
                refused = {row[object], row[subject], *parts(row.get("not", ""))}
                wrong = wrong_choices(
                    id,
                    row[object],
                    near=parts(row.get("near", "")),
                    alike=[other[object] for other in others if other.get("zone") == row.get("zone")],
                    other=[other[object] for other in others],
                    refused=refused,
                )
                yield self._draft(id, relation.forward, row, row[object], wrong, cluster)
            if "b" in row["ask"]:
                id += "-back"
                others = [other for other in rows if row[object] not in {other[object], *parts(other.get("not", ""))}]
                wrong = wrong_choices(
                    id,
                    row[subject],
                    alike=[other[subject] for other in others if other.get("zone") == row.get("zone")],
                    other=[other[subject] for other in others],
                    refused={row[subject], row[object]},
                )
                gold, *wrong = (relation.backward_choice.format(name) for name in (row[subject], *wrong))
                yield self._draft(id, relation.backward, row, gold, wrong, cluster)

    def questions(self, table: str) -> Iterator[Draft]:
        """The drafts of a table whose rows hold the question, the answer and the wrong choices."""
        for row in facts(self.capability, table):
            wrong = tuple(parts(row["wrong"]))
            if len(wrong) != 3:
                raise ValueError(f"{table}: {row['id']} has {len(wrong)} wrong choices, not 3")
            cluster = row.get("cluster") or None
            id = f"{self.capability}/{row['id']}"
            self._take(id, row["question"])
            yield Draft(id=id, prompt=row["question"], gold=row["answer"], wrong=wrong, cluster=cluster)

    def prompt(self, id: str, templates: Sequence[str], row: Fact) -> str:
        """A prompt that is not taken yet, from the templates in an order drawn by the id."""
        fields = {**row, **{f"the_{key}": the(value) for key, value in row.items()}}
        for template in drawn("template", id).sample(templates, len(templates)):
            prompt = capital(template.format(**fields))
            if prompt.casefold() not in self._taken:
                self._take(id, prompt)
                return prompt
        raise ValueError(f"{id}: all its {len(templates)} prompts are taken; add a template or ask less")

    def _take(self, id: str, prompt: str) -> None:
        if prompt.casefold() in self._taken:
            raise ValueError(f"{id}: its prompt is there already: {prompt}")
        self._taken.add(prompt.casefold())

    def _draft(
        self, id: str, templates: Sequence[str], row: Fact, gold: str, wrong: Sequence[str], cluster: str | None
    ) -> Draft:
        prompt = self.prompt(id, templates, row)
        return Draft(id=id, prompt=prompt, gold=capital(gold), wrong=tuple(map(capital, wrong)), cluster=cluster)


def wrong_choices(
    id: str,
    gold: str,
    *,
    alike: Sequence[str],
    other: Sequence[str],
    near: Sequence[str] = (),
    refused: set[str],
) -> list[str]:
    """Three wrong choices: one that is `near` if there is any, then of `alike`, then `other` ones.

    Of six draws the one is taken whose lengths are closest to the gold's, so that length tells little.
    Raises `ValueError` when there are fewer than three.
    """
    near, alike, other = (
        [name for name in dict.fromkeys(names) if name not in refused] for names in (near, alike, other)
    )
    draws = []
    for draw in range(6):
        random = drawn("wrong", id, draw)
        chosen = random.sample(near, min(1, len(near)))
        for names in (alike, other):
            rest = [name for name in names if name not in chosen]
            chosen += random.sample(rest, min(3 - len(chosen), len(rest)))
        if len(chosen) < 3:
            raise ValueError(f"{id}: only {len(chosen)} wrong choices")
        draws.append(chosen)
    return min(draws, key=lambda chosen: sum(abs(len(name) - len(gold)) for name in chosen))
