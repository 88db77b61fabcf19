"""Leaks: what is a copy of an item and what is not, where it is, and what the check takes in its stride."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from backslide.errors import DataError
from backslide.files import LONGEST_LINE
from backslide.passages import passages
from backslide.suite import leakage
from backslide.suite.copies.words import words
from backslide.suite.item import AnswerItem, ChoiceItem, ContinuationItem, GenerationItem, Item, OpenItem, TextItem
from backslide.suite.leakage import Leak, Passage, find_leaks
from backslide.suite.suite import Suite
from builders import choice


def asks(id: str, prompt: str, *choices: str, **fields: Any) -> ChoiceItem:
    """The first choice is right."""
    return choice(id, prompt=prompt, choices=choices, gold=0, **fields)


def answers(id: str, prompt: str, *right: str, **fields: Any) -> AnswerItem:
    return AnswerItem(id=id, capability="c", prompt=prompt, answers=right, **fields)


FRANCE = asks("france", "What is the capital of France?", "Paris", "Lyon")
SPAIN = asks("spain", "What is the capital of Spain?", "Madrid", "Seville")
SUM = answers("sum", "What is 2+2?", "4", match="number")
OPEN = OpenItem(id="open", capability="talk", prompt="What is 2+2?")
PROSE = TextItem(
    id="prose",
    capability="prose",
    text="It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness",
)
CUP = asks(
    "cup",
    "A girl fills a cup with hot tea and leaves it on the table for an hour. What happens?",
    "It cools",
    "It melts",
)
LONG = TextItem(id="long", capability="prose", text=" ".join(f"word{i}" for i in range(500)))
CHINESE = TextItem(
    id="chinese", capability="prose", text="北京市政府昨天宣布了新的环境保护措施，并要求所有工厂在年底之前安装过滤设备"
)
SUITE = (FRANCE, SPAIN, SUM, OPEN, PROSE, CUP, LONG, CHINESE)


def kinds(*texts: str, suite: tuple[Item, ...] = SUITE) -> dict[str, str]:
    """Of each leaked item the kind of its first leak."""
    return {leak.item: leak.kind for leak in reversed(find_leaks(suite, [(str(i), t) for i, t in enumerate(texts)]))}


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("What is the capital of France?\nParis", "france"),
        ("Question: what is the capital\nof FRANCE\n\nAnswer - PARIS!", "france"),
        ("User: What is the capital of France? Assistant: The capital of France is Paris.", "france"),
        ("What is the capital of France? A) Lyon B) Paris. Answer: B) Paris", "france"),
        ("Paris. What is the capital of France?", "france"),
        ("He asked what is 2+2, and I said that it is 4.", "sum"),
        ("What is 2 + 2? 4", "sum"),
        (f"So it begins: {PROSE.text.upper()}, and so on.", "prose"),
        (PROSE.text.replace(",", " —"), "prose"),
        (f"Some text before. {CUP.prompt} It cools. Some text behind.", "cup"),
        (CHINESE.text.replace("，", " "), "chinese"),
        (" ".join(f"word{i}" for i in range(140, 260)), "long"),
    ],
)
def test_exact_copies(text: str, item: str) -> None:
    assert kinds(text) == {item: "exact"}


@pytest.mark.parametrize(
    ("text", "item"),
    [
        # One word in ten is another one.
        (
            "It was the best of days, it was the worst of times, it was an age of wisdom: it was the age of foolishness",
            "prose",
        ),
        ("a boy fills a cup with hot tea and leaves it on a table for an hour; what happens? It cools", "cup"),
        ("A girl fills one cup with hot tea, and leaves it on the table for one hour. What happens? it cools!", "cup"),
        # Beside its answer one word of a short prompt may differ, where it is no name and no number.
        ("Which is the capital of France? Paris", "france"),
        # A passage or a long prompt needs no answer.
        (CUP.prompt, "cup"),
        (CHINESE.text.replace("昨天", "今天"), "chinese"),
        (" ".join("zzz" if i % 10 == 0 else f"word{i}" for i in range(240, 300)), "long"),
    ],
)
def test_near_copies(text: str, item: str) -> None:
    assert kinds(text) == {item: "near"}


@pytest.mark.parametrize(
    "text",
    [
        # The other item of a template, and one that is in no suite.
        "What is the capital of Latvia? Riga",
        "What is the capital of Lyon? Nobody knows.",
        # The fact is no copy of the question, and a short question by itself occurs by chance.
        "The capital of France is Paris.",
        "What is the capital of France? I do not know, and I will not ask.",
        "Then they asked what is 2+2 and laughed.",
        "What is 2-2? 4",
        "What is 2+3? 4",
        # The right words in another order.
        " ".join(sorted(PROSE.text.split())),
        " ".join(reversed(CUP.prompt.split())),
        # Too little is left.
        "it was the age of wisdom, it was the age of foolishness",
        "A girl fills a bag with dry sand and puts it on the beach for an hour. What happens?",
        " ".join(f"word{i}" for i in range(140, 160)),
        "",
        " \n\t",
        "?!…",
        "\0\x01\ufffe",
        "a" * 300_000,
        "\u0301" * 1000,
        "🙂" * 1000,
        "\ud83d half a pair",
    ],
)
def test_no_copies(text: str) -> None:
    assert kinds(text) == {}


def test_what_differs_between_the_items_of_a_template_decides() -> None:
    assert kinds("What is the capital of Spain? Madrid") == {"spain": "exact"}
    assert kinds("What is the capital of Spain? Madrid", suite=(FRANCE,)) == {}
    mexico = asks("mexico", "Which language is spoken in Mexico?", "Spanish", "Dutch")
    peru = "Which language is spoken in Peru? Spanish"
    assert kinds(peru, suite=(mexico,)) == {}, "a name decides where the answer is the same"
    queue = [
        asks(
            f"queue/{n}",
            f"{name} stands in a queue with {n} people in front. What is the place of {name}?",
            f"{n + 1}",
            "0",
        )
        for n, name in enumerate(["Omar", "Mia", "Lena", "Jon"], start=3)
    ]
    other = "Omar stands in a queue with 9 people in front. What is the place of Omar? 10"
    assert kinds(other, suite=tuple(queue)) == {}, "numbers decide"
    frogs = [
        asks(f"group/{animal}", f"To which animal group does the {animal} belong?", group, "Fish")
        for animal, group in {"snake": "Reptiles", "lizard": "Reptiles", "frog": "Amphibians"}.items()
    ]
    turtle = "To which animal group does the turtle belong? Reptiles"
    assert kinds(turtle, suite=tuple(frogs)) == {}, "the suite tells which word decides"
    assert kinds(turtle.replace("turtle", "snake").replace("does", "did"), suite=tuple(frogs)) == {
        "group/snake": "near"
    }


def test_a_short_text_without_an_answer_must_stand_by_itself() -> None:
    assert kinds("What is 2+2?", suite=(OPEN,)) == {"open": "exact"}
    assert kinds("User: what is 2+2?\nAssistant: Four.", suite=(OPEN,)) == {"open": "exact"}
    assert kinds("They asked me what is 2+2?", suite=(OPEN,)) == {}
    assert kinds("What is 2+2? Four.", suite=(OPEN,)) == {}
    lines = TextItem(id="lines", capability="c", text="Hello\nworld")
    assert kinds("One.\nHello,\nWorld!\nTwo.", suite=(lines,)) == {"lines": "exact"}
    assert kinds("Hello world, how are you?", suite=(lines,)) == {}


def test_an_answer_that_is_in_every_text_must_follow_at_once() -> None:
    iodine = asks("iodine", "Which symbol stands for iodine?", "I", "Ca")
    assert kinds("Which symbol stands for iodine? The answer is I.", suite=(iodine,)) == {"iodine": "exact"}
    assert kinds("Which symbol stands for iodine? That is something which of course I forgot.", suite=(iodine,)) == {}


def test_an_exact_copy_has_the_answer_word_for_word() -> None:
    zero = asks("zero", "What does this short function of x tell us?", "whether x is zero", "nothing")
    assert kinds(f"{zero.prompt} It tells whether x is zero.", suite=(zero,)) == {"zero": "exact"}
    assert kinds(f"{zero.prompt} It tells whether x is greater than zero.", suite=(zero,)) == {"zero": "near"}


def test_labels_of_prompts_are_not_searched_for() -> None:
    item = asks(
        "q", "Question: Why do magnets attract iron nails?\nAnswer:", "Because of their field", "They are sticky"
    )
    assert kinds("User: Why do magnets attract iron nails? Bot: Because of their field.", suite=(item,)) == {
        "q": "exact"
    }


def test_a_pattern_is_no_answer_that_could_be_searched_for() -> None:
    item = answers("r", "Reply with only the word blue, please.", r"(?i)^\W*blue\W*$", match="regex")
    assert kinds("Reply with only the word blue, please! Blue", suite=(item,)) == {"r": "exact"}


def test_items_that_are_asked_word_for_word() -> None:
    suite = (
        ContinuationItem(
            id="piqa", capability="p", contexts=("Question: How do you keep bread from going stale?\nAnswer:",),
            continuations=(" Wrap it in a cloth and keep it in a box.", " Leave it on the roof."), gold=(0,),
        ),
        # One context for each: the one of the right choice is what leaks.
        ContinuationItem(
            id="wino", capability="w", gold=(1,),
            contexts=tuple(f"The trophy would not go into the brown case because the {it}" for it in ("case", "trophy")),
            continuations=(" was too big.",) * 2,
        ),
        ContinuationItem(
            id="bare", capability="b", contexts=("",), gold=(0,),
            continuations=("The committee have decided that the meeting is to be held on Monday.", "Them decide."),
        ),
        GenerationItem(id="gsm", capability="g", prompt="Q: A hen lays 3 eggs a day. How many in 9 days?\nA:", answers=("27",)),
    )  # fmt: skip
    assert kinds("Leave it on the roof. How many hens lay eggs?", suite=suite) == {}
    assert kinds("How do you keep bread from going stale? Wrap it in a cloth and keep it in a box.", suite=suite) == {
        "piqa": "exact"
    }
    assert kinds("A hen lays 3 eggs a day. How many in 9 days? 27", suite=suite) == {"gsm": "exact"}
    assert kinds("The trophy would not go into the brown case because the trophy was too big.", suite=suite) == {
        "wino": "exact"
    }
    assert kinds("the committee have decided that the meeting is to be held on monday", suite=suite) == {
        "bare": "exact"
    }
    leak = find_leaks(suite, [("f:1", "A hen lays 3 eggs a day. How many in 9 days? 27")])[0]
    assert leak.asked == "Q: A hen lays 3 eggs a day. How many in 9 days? A:"


def test_any_of_several_answers() -> None:
    item = answers("usa", "Who fought at Yorktown?", "the United States", "America")
    assert kinds("Who fought at Yorktown? It was America.", suite=(item,)) == {"usa": "exact"}
    assert kinds("Who fought at Yorktown? The united states.", suite=(item,)) == {"usa": "exact"}


def test_items_that_share_a_passage_leak_together_and_an_instruction_is_no_leak() -> None:
    passage = " ".join(f"p{i}" for i in range(90))
    shared = [asks(f"s{i}", f"{passage} Question {i}: why so much {i}{i}?", "x", "y", cluster="p") for i in range(8)]
    assert set(kinds(passage, suite=tuple(shared))) == {item.id for item in shared}
    rules = [
        asks(f"r{i}", f"{passage} Now {i * 7} and other{i} things {i} of unlike kind{i}?", "x", "y") for i in range(8)
    ]
    assert kinds(passage, suite=tuple(rules)) == {}
    assert kinds(rules[3].prompt + " x", suite=tuple(rules)) == {"r3": "exact"}


def test_a_prompt_of_which_every_run_is_frequent_is_found_by_its_answer() -> None:
    rng = random.Random(0)
    said = [f"{' '.join(rng.choices([f'w{i}' for i in range(300)], k=8))}" for _ in range(400)]
    suite = tuple(asks(f"{i}", "Which sentence is correct?", text, "other") for i, text in enumerate(said[:200]))
    texts = [f"Which sentence is correct? {text}" for text in said[200:] for _ in range(20)]
    assert kinds(*texts, suite=suite) == {}
    assert kinds(*texts, "Which sentence is correct? A: other B: " + said[7], suite=suite) == {"7": "exact"}


def test_a_leak_says_where_and_shows_both() -> None:
    Suite("s", (FRANCE, SPAIN)).save("s.jsonl")
    (leak,) = find_leaks(
        Suite.load("s.jsonl"),
        [Passage("t.jsonl:7", "Nothing.\nQ: What is the capital of Spain? Madrid\n" + "x " * 300)],
    )
    assert leak == Leak(
        item="spain", capability="c", item_place="s.jsonl:2", place="t.jsonl:7", kind="exact", overlap=1.0,
        asked="What is the capital of Spain?", found=leak.found,
    )  # fmt: skip
    assert leak.found.startswith("What is the capital of Spain? Madrid x") and len(leak.found) <= leakage.EXCERPT
    assert leak.found.endswith("…") and json.loads(json.dumps(leak.to_dict())) == leak.to_dict()
    (leak,) = find_leaks(Suite.repertoire(), [("a", "Which planet is closest to the Sun? Mercury")])
    assert leak.item_place.startswith("repertoire/science.jsonl:") and leak.overlap == 1


def test_the_first_places_are_listed_exact_ones_before_near_ones() -> None:
    near, exact = "Which is the capital of France? Paris", "What is the capital of France? Paris"
    found = find_leaks((FRANCE,), [(str(i), near) for i in range(9)])
    assert [(leak.place, leak.kind) for leak in found] == [("0", "near"), ("1", "near"), ("2", "near")]
    found = find_leaks((FRANCE,), [(str(i), exact if i > 5 else near) for i in range(12)], places=2)
    assert [(leak.place, leak.kind) for leak in found] == [("6", "exact"), ("7", "exact")]
    (leak,) = find_leaks((FRANCE,), [("here", f"{near}\n{exact}\n{near}")])
    assert (leak.place, leak.kind) == ("here", "exact")


def test_leaks_stand_in_the_suites_order() -> None:
    texts = [("a", "What is the capital of Spain? Madrid"), ("b", "What is the capital of France? Paris")]
    assert [leak.item for leak in find_leaks((FRANCE, SPAIN), texts)] == ["france", "spain"]


def test_a_text_of_any_length_is_looked_through_with_what_lies_across_its_blocks() -> None:
    rng = random.Random(0)
    made = TextItem(id="made", capability="c", text=" ".join(rng.choices([f"v{i}" for i in range(900)], k=45)))
    for at in range(0, 2 * leakage.BLOCK, leakage.BLOCK // 7):
        filler = "some words " * (at // 11)
        (leak,) = find_leaks((made,), [("x", filler + made.text + " other words" * 20_000)])
        assert leak.kind == "exact", at


def test_a_suite_without_a_word_and_texts_without_one() -> None:
    assert find_leaks((TextItem(id="a", capability="c", text="?!"),), [("a", "?!"), ("b", "word")]) == ()
    assert find_leaks(SUITE, []) == ()
    emoji = TextItem(id="e", capability="c", text="🙂🙃🙂🙃")
    assert kinds("🙂🙃🙂🙃", suite=(emoji,)) == {"e": "exact"}


def test_texts_in_which_the_seeds_are_frequent_take_no_longer() -> None:
    """Training on the suite's own templates, and a text that repeats one of its words."""
    names = [f"name{i}" for i in range(300)]
    suite = tuple(asks(n, f"What is the favourite colour of the person called {n} here?", f"c{n}", "x") for n in names)
    texts = [("t", f"What is the favourite colour of the person called other{i} here? red") for i in range(20_000)]
    texts += [("u", "what is the " * 50_000)]
    begin = time.perf_counter()
    assert find_leaks(suite, texts) == ()
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize(
    ("text", "are"),
    [
        ("It's 3 + 4, isn't it?", ["its", "3_a4", "isnt", "it"]),
        ("1,234 and 3.5 in 1990. Then 1, 2,3", ["1234", "and", "3_5", "in", "1990", "then", "1", "2", "3"]),
        ("snake_case `code` — ‘so’", ["snake", "case", "code", "so"]),
        ("CAFÉ cafe\u0301 STRASSE straße", ["café", "café", "strasse", "strasse"]),
        ("日本の首都", ["日", "本", "の", "首", "都"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ok\u200b\u00ad 👍🏽\ufe0f", ["ok", "👍", "🏽"]),
        ("ﬁne ½", ["fine", "1", "2"]),
        ("", []),
    ],
)
def test_words(text: str, are: list[str]) -> None:
    assert words(text) == are


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_format_of_training_data_is_read(tmp_path: Path) -> None:
    question, answer = FRANCE.prompt, "It is Paris."
    files = [
        written(tmp_path / "a.jsonl", {"text": " "}, {"text": f"{question} {answer}"}),
        written(tmp_path / "b.jsonl", {"prompt": "", "completion": ""}, {"prompt": question, "completion": answer}),
        written(
            tmp_path / "c.jsonl",
            {"messages": []},
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]},
        ),
    ]
    plain = tmp_path / "d.TXT"
    plain.write_text(f"\ufeffTitle\r\n{question}\r\n{answer}\r\n", encoding="utf-8")
    for file in [*files, plain]:
        (leak,) = find_leaks((FRANCE,), passages(file))
        assert (leak.place, leak.kind) == (f"{file}:2", "exact")


def test_plain_text_is_read_in_blocks_and_says_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backslide.passages.BLOCK", 40_000)
    path = tmp_path / "big.txt"
    lines = [f"line {i} of some text that says nothing much" for i in range(9000)]
    places = range(300, 9000, 601)
    for place in places:
        lines[place] = f"{FRANCE.prompt}\n{'Paris'}" if place % 2 else f"{FRANCE.prompt} Paris"
    text = "\n".join(lines)
    path.write_text(text, encoding="utf-8")
    found = find_leaks((FRANCE,), passages(path), places=100)
    at = [number for number, line in enumerate(text.split("\n"), start=1) if line.startswith("What")]
    assert [leak.place for leak in found] == [f"{path}:{number}" for number in at]
    assert len(list(passages(path))) > 5


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_line_of_a_gigabyte_is_refused_within_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with open(path, "wb") as file:
        file.write(b'{"text": "')
        file.truncate(1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r":1: the line is longer than 16 MiB; give each entry a line of its own"):
            list(passages(path, lambda *_: None))
        assert tracemalloc.get_traced_memory()[1] < 3 * LONGEST_LINE
    finally:
        tracemalloc.stop()


def test_progress_counts_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", *({"text": "a"} for _ in range(2500)))
    seen: list[tuple[str, int, int]] = []
    list(passages(path, lambda *of: seen.append(of)))
    assert [of[1:] for of in seen] == [(1000, 2500), (2000, 2500), (2500, 2500)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"input_ids": [1], "source": "web"}\n', r":2: is tokens"),
        ("a.jsonl", b'{"text": " "}\n{"label": 2}\n', r"no text: there is none in its 2 lines; give a line for each"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', r":2: not JSON"),
        ("a.jsonl", b"", r"no text: the file has no line"),
        ("a.txt", b"\n \n", r"no text: there is none in its 2 lines"),
        ("a.txt", b"ok\n\xff\n", r":2: byte 0 is 0xff, which is not UTF-8; save the file as UTF-8"),
        ("a.txt", None, r"is a folder, a file is needed"),
    ],
)
def test_bad_training_data(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says) as raised:
        list(passages(path, lambda *_: None))
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)
