"""Write the suite file of `language`: grammar (which sentence is right?) and words (what do they mean?).

`python tools/repertoire/language.py` reads `facts/language/*.tsv` and `written/language.jsonl`.

Grammar, two choices each:

- `gaps.tsv`: a sentence with a gap, the form that fits and one that does not;
- `sentences.tsv`: a sentence and the same one with a mistake;
- `verbs.tsv`: irregular verbs, put into sentences of the past.

Words, four choices each: the tables named in `ASKED`, with a word, the answer and three wrong ones, and those that
have a function of their own below. What is asked of one word forward and backward shares a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator

from common import Draft, Row, drawn, facts, finish, pick, slug, some, written

NAME = "language"

GAP = "___"

PAIR: dict[str, tuple[str, ...]] = {
    # The forms in which a right and a wrong sentence are asked; the tables name the one of each row.
    "choose": (
        "Which sentence is correct English?",
        "Which of these two sentences is correct?",
        "Which sentence has no mistake in it?",
        "Which of the two sentences is good English?",
        "Which sentence would an English teacher accept?",
    ),
    "fill": (
        "Fill in the gap and write the whole sentence: {gap}",
        "Write out this sentence with the right word in the gap: {gap}",
        "Complete this sentence and write it in full: {gap}",
    ),
    "correct": (
        "Correct this sentence: {wrong}",
        "Please correct my English: {wrong}",
        "What is the correct way to write this sentence? {wrong}",
        "Rewrite this sentence without the mistake: {wrong}",
    ),
    "finish": (
        "Finish this sentence correctly: {start} ...",
        "How could this sentence go on? {start} ...",
        "Complete the sentence: {start} ...",
    ),
}

ASKED: dict[str, tuple[str, ...]] = {
    "synonyms": (
        "Which word or phrase means the same as {word}?",
        "What is another way to say {word}?",
        "What is closest in meaning to {word}?",
        "Which of these means nearly the same as {word}?",
    ),
    "opposites": (
        "What is the opposite of {word}?",
        "Which word is the opposite of {word}?",
        "Which of these is the antonym of {word}?",
    ),
    "negatives": (
        "Which word means not {word}?",
        "How do you say not {word} in one word?",
        "What is the correct negative form of {word}?",
    ),
    "females": ("What is a female {word} called?", "What do you call a female {word}?"),
    "males": ("What is a male {word} called?", "What do you call a male {word}?"),
    "partners": ("Which word is the female counterpart of {word}?", "What is the feminine of {word}?"),
    "sayings": (
        "Finish the saying: {word} ...",
        "Which word completes the proverb: {word} ...",
        "How does this saying end? {word} ...",
    ),
    "similes": ("Complete the common phrase: as {word} as ...", "How does the comparison go on? As {word} as ..."),
    "idioms": ("{word}",),
    "marks": ("{word}",),
    "affixes": ("What does {affix} mean in the word {example}?",),
    "spelling": ('How do you spell the word that means "{hint}"?', 'Which spelling of the word for "{hint}" is right?'),
    "homophones": ("Which word sounds the same as {word}?", "Which word is pronounced exactly like {word}?"),
    "rhymes": ("Which word rhymes with {word}?", "Which of these words makes a rhyme with {word}?"),
    "analogies": (
        "{first} is to {second} as {third} is to what?",
        "Complete the pair: {first} and {second}, {third} and ...",
    ),
}

SINGULAR = {"analogies": "analogy", "affixes": "affix"}

BACKWARD: dict[str, tuple[str, ...]] = {
    "groups": ("{answer} is a group of what?", "What do you find in {answer}?"),
    "young": ("{answer} is the young of which animal?", "Which animal has a young one called {answer}?"),
    "sounds": ("Which animal is known to {answer}?", "Which animal makes a sound called a {answer}?"),
}
FORWARD: dict[str, tuple[str, ...]] = {
    "groups": ("What is a group of {word} called?", "What do you call a group of {word}?"),
    "young": ("What is a young {word} called?", "What do we call the young of {a} {word}?"),
    "sounds": ("Which sound does {a} {word} make?", "What do we call the sound of {a} {word}?"),
}

MEANING: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    # Of each group of `words.tsv`: how the meaning is asked, how it is given, how the word is asked.
    "job": (("What does {word} do?", "What is the work of {word}?"), "{What}", ("Who {what} for a living?",)),
    "place": (("What is {word} used for?",), "To {what}", ("What do we call a place that is used to {what}?",)),
    "person": (("Who is called {word}?",), "Someone who {what}", ("What do you call someone who {what}?",)),
    "quality": (
        ("What does {word} mean?",),
        "{What}",
        ("Which word means {what}?", "What is a word for {what}?"),
    ),
    "verb": (("What does it mean {word}?",), "To {what}", ("Which verb means to {what}?",)),
    "text": (("What is {word}?",), "{What}", ("What do you call {what}?",)),
    "time": (("How long is {word}?", "How long does {word} last?"), "{What}", ("What is a time of {what} called?",)),
}
NEAR = {frozenset(pair) for pair in (("obsolete", "extinct"), ("to confess", "to apologize"))}
"""Words that are too near to each other to be choices of one item."""


def capital(text: str) -> str:
    """`text` with a capital letter at its start."""
    return text[:1].upper() + text[1:]


def a(word: str) -> str:
    """`word` after its indefinite article."""
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def wrongs(row: dict[str, str], column: str = "wrong") -> tuple[str, ...]:
    """The wrong choices of a row, which a bar separates."""
    return tuple(row[column].split("|"))


def is_asked(row: dict[str, str], way: str) -> bool:
    """Whether a row is asked `forward` or `backward`; one that is asked in neither way still gives wrong choices."""
    return row["ask"] in ("both", way)


def pair(id: str, form: str, right: str, wrong: str, gap: str = "", cluster: str | None = None) -> Draft:
    """A right and a wrong sentence, asked in one of the forms of `PAIR`; `finish` needs the sentence with its gap."""
    start = gap.split(GAP)[0].strip()
    prompt = pick(PAIR[form], id).format(wrong=wrong, gap=gap, start=start)
    if form == "finish":
        right, wrong = (sentence.removeprefix(start).strip() for sentence in (right, wrong))
    return Draft(id=id, prompt=prompt, gold=right, wrong=(wrong,), cluster=cluster)


def gaps() -> Iterator[Draft]:
    """A sentence with a gap and what may stand there."""
    for row in facts(NAME, "gaps"):
        words = [word for word in row["sentence"].split() if word != GAP]
        id = f"{NAME}/{slug(row['topic'], *words[:5], row['good'])}"
        right, wrong = (row["sentence"].replace(GAP, row[which]) for which in ("good", "bad"))
        yield pair(id, row["form"], right, wrong, row["sentence"])


def sentences() -> Iterator[Draft]:
    """A sentence and the same one with a mistake."""
    for row in facts(NAME, "sentences"):
        id = f"{NAME}/{slug(row['topic'], *row['good'].split()[:6])}"
        yield pair(id, row["form"], row["good"], row["bad"])


def verbs() -> Iterator[Draft]:
    """Irregular verbs in the simple past and the perfect."""
    names = ("Anna", "Tom", "My uncle", "The teacher", "Our neighbor", "Ben", "Her brother", "The old man", "Lucy")
    past = ("{S} {V} {rest} yesterday.", "Last week {s} {V} {rest}.", "Two days ago {s} {V} {rest}.")
    perfect = ("{S} {has} {V} {rest} before.", "{S} {has} never {V} {rest}.", "{S} {has} already {V} {rest}.")
    for row in facts(NAME, "verbs"):
        for tense, frames in (("past", past), ("participle", perfect)):
            if not row[f"wrong_{tense}"]:
                continue
            id = f"{NAME}/{tense}-{row['verb']}"
            subject = row["subject"] or pick(names, id, "subject")
            inner = subject if subject in ("Anna", "Tom", "Ben", "Lucy") else subject[0].lower() + subject[1:]
            has = "have" if subject.startswith("The two ") else "has"
            frame = pick(frames, id)
            right, wrong = (
                frame.format(S=subject, s=inner, V=row[form], rest=row["rest"], has=has)
                for form in (tense, f"wrong_{tense}")
            )
            cluster = f"{NAME}/verb-{row['verb']}" if row["wrong_past"] and row["wrong_participle"] else None
            yield pair(id, row[f"{tense}_form"], right, wrong, cluster=cluster)


def asked() -> Iterator[Draft]:
    """The tables that hold a question's words, its answer and three wrong ones."""
    for table, phrasings in ASKED.items():
        for row in facts(NAME, table):
            word = row.get("word") or row.get("affix") or row.get("first", "") or row["answer"]
            key = row.get("key") or slug(word, row.get("third", ""), row.get("example", ""))
            id = f"{NAME}/{SINGULAR.get(table) or table.removesuffix('s')}-{key}"
            shown = {**row, "word": f'"{word}"' if " " in word and table in ("synonyms", "opposites") else word}
            prompt = capital(pick(phrasings, id).format(**shown))
            yield Draft(id=id, prompt=prompt, gold=capital(row["answer"]), wrong=tuple(map(capital, wrongs(row))))


def both_ways() -> Iterator[Draft]:
    """Groups, young and sounds of animals: what is it called, and of which animal is it?"""
    for table, phrasings in FORWARD.items():
        for row in facts(NAME, table):
            id = f"{NAME}/{table.removesuffix('s')}-{slug(row['word'])}"
            back = row["group_wrong" if table == "groups" else "back_wrong"] if is_asked(row, "backward") else ""
            cluster = id if back and is_asked(row, "forward") else None
            prompt = pick(phrasings, id).format(word=row["word"], a=a(row["word"]).split()[0])
            if is_asked(row, "forward"):
                yield Draft(id=id, prompt=prompt, gold=row["answer"], wrong=wrongs(row), cluster=cluster)
            if back:
                id += "-back"
                answer = row["answer"].lower() if table == "sounds" else a(row["answer"].lower())
                prompt = capital(pick(BACKWARD[table], id).format(answer=answer))
                gold = capital(row["word"])
                yield Draft(id=id, prompt=prompt, gold=gold, wrong=tuple(back.split("|")), cluster=cluster)


def meanings() -> Iterator[Draft]:
    """Words of one group (jobs, places …): what does a word mean, and which word has this meaning?"""
    rows = facts(NAME, "words")
    for row in rows:
        asks, gives, asks_back = MEANING[row["group"]]
        others = [
            other
            for other in rows
            if other["group"] == row["group"]
            and other is not row
            and frozenset((other["word"], row["word"])) not in NEAR
        ]
        id = f"{NAME}/meaning-{slug(row['word'].removeprefix('to ').removeprefix('an ').removeprefix('a '))}"

        def given(of: dict[str, str], gives: str = gives) -> str:
            return gives.format(what=of["definition"], What=capital(of["definition"]))

        def named(of: dict[str, str]) -> str:
            return capital(of["word"].removeprefix("to "))

        cluster = id if row["ask"] == "both" else None
        if is_asked(row, "forward"):
            wrong = alike(given(row), [given(other) for other in others], id)
            prompt = pick(asks, id).format(word=row["word"])
            yield Draft(id=id, prompt=prompt, gold=given(row), wrong=wrong, cluster=cluster)
        if is_asked(row, "backward"):
            id += "-back"
            wrong = tuple(map(named, some_rows(others, id)))
            prompt = pick(asks_back, id).format(what=row["definition"])
            yield Draft(id=id, prompt=prompt, gold=named(row), wrong=wrong, cluster=cluster)


def some_rows(rows: list[dict[str, str]], key: str) -> list[dict[str, str]]:
    """Three of `rows`, drawn by `key`."""
    return [rows[index] for index in some(range(len(rows)), 3, key)]


def alike(gold: str, options: list[str], key: str) -> tuple[str, ...]:
    """Of a few draws of three `options` the one whose choices are most alike in length to the gold one."""
    draws = [some(options, 3, f"{key} {number}") for number in range(6)]
    return tuple(min(draws, key=lambda draw: sum(abs(len(option) - len(gold)) for option in draw)))


def odd_ones() -> Iterator[Draft]:
    """Four words, one of which is of another kind."""
    for row in facts(NAME, "odd"):
        alike = row["alike"].split("|")
        id = f"{NAME}/odd-{slug(row['odd'], alike[0])}"
        listed = drawn("listed", id).sample([*alike, row["odd"]], 4)
        phrasing = pick(("Which word does not belong with the others: {}?", "Which is the odd one out: {}?"), id)
        prompt = phrasing.format(", ".join(listed[:3]) + " or " + listed[3])
        yield Draft(id=id, prompt=prompt, gold=capital(row["odd"]), wrong=tuple(map(capital, alike)))


def word_classes() -> Iterator[Draft]:
    """Noun, verb, adjective or adverb?"""
    for row in facts(NAME, "classes"):
        id = f"{NAME}/class-{slug(row['word'])}"
        phrasings = (
            'In the sentence "{sentence}", what kind of word is {word}?',
            'Which part of speech is {word} in "{sentence}"?',
        )
        usual = ["Noun", "Verb", "Adjective", "Adverb"]
        wrong = some([name for name in usual if name != row["class"]], 3, id)
        yield Draft(id=id, prompt=pick(phrasings, id).format(**row), gold=row["class"], wrong=tuple(wrong))


def main() -> None:
    """Write the file."""
    made: list[Draft | Row] = [*gaps(), *sentences(), *verbs()]
    made += [*asked(), *both_ways(), *meanings(), *odd_ones(), *word_classes()]
    finish(NAME, [*written(NAME), *made])


if __name__ == "__main__":
    main()
