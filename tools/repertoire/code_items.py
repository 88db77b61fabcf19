"""Write `code.jsonl`: `python tools/repertoire/code_items.py`.

The makers read the files of `facts/code/`; all that Python can decide is decided by running it:

- snippets: a short program, and what it prints. The wrong outputs come from running a misread program.
- tasks: which expression or statement does what is described. The right one passes a check, the others do not.
  Tasks are also asked the other way round: what does the expression give?
- functions: which line completes a function, and what does a function do?
- syntax: which line is valid. Only the right one compiles.
- errors: which error a program ends with.
- names: keywords, functions, types and ideas.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from itertools import count
from typing import Any

from common import HERE, Draft, facts, pick, slug, some
from exact import finish_exact

PRINTS = (
    ("What does this Python code print?\n\n{code}", "The output of the code is `{output}`."),
    ("Add a comment with the output to this Python code.\n\n{code}", "{code}  # Output: {output}"),
    ("{code}\n\nWhat is the output of this Python code?", "The output of this code is `{output}`."),
    ("Add a comment that says what this Python code prints.\n\n{code}", "{code}  # prints {output}"),
)
VALUES = (
    ("What is the value of {name} after this Python code?\n\n{code}", "The value of {name} is {output}."),
    ("Add a comment with the value of {name} to this code.\n\n{code}", "{code}  # {name} = {output}"),
)
GIVES = ("Which Python expression gives {task}?", "In Python, how do you get {task}?", "In Python, what gives {task}?")
DOES = ("Which Python statement {task}?", "Which line of Python code {task}?", "In Python, which line {task}?")
VALID = ("Which {what} is valid in Python 3?", "Which {what} is written correctly for Python 3?")
MEANS = (
    "What does `{code}` give in Python?",
    "In Python, what do you get from `{code}`?",
    "What is `{code}` in Python?",
)
ACTS = ("What does this line of Python do?\n\n{code}", "Say what this line of Python code does: `{code}`")
COMPLETE = (
    "Complete the Python function, which {task}.\n\ndef {head}:",
    "This Python function {task}. What is its body?\n\ndef {head}:",
    "def {head}:\n    ...\n\nWhich line completes this Python function, which {task}?",
)
EXPLAIN = ("What does this Python function do?\n\n{code}", "{code}\n\nWhat does this function do?")
GROUPS = (("a, b",), ("x", "n"), ("items", "numbers", "words"), ("text", "name"))
"""Parameters of functions that may be taken for each other."""
KINDS = {"items": "list", "numbers": "list", "words": "list", "text": "string", "name": "string", "d": "dictionary"}
"""The kind of thing that a first parameter stands for, where it is no number."""
RAISES = ("Which error does this Python code raise?\n\n{code}", "{code}\n\nWhich error does this Python code end with?")
ERRORS = (
    "ZeroDivisionError", "IndexError", "KeyError", "NameError", "TypeError", "ValueError", "AttributeError",
    "ModuleNotFoundError", "SyntaxError",
)  # fmt: skip


# Running


def run(code: str, names: dict[str, Any] | None = None) -> str:
    """What `code` prints; `names` are its variables, changed in place."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        exec(code, {} if names is None else names)
    return printed.getvalue()


def outcome(code: str, name: str | None) -> str:
    """What `code` prints, or the value of the variable `name` after it."""
    names: dict[str, Any] = {}
    printed = run(code, names)
    return repr(names[name]) if name else printed.rstrip("\n")


# Snippets


def blocks(text: str) -> Iterator[dict[str, Any]]:
    """The blocks of `snippets.txt`: name, blanks, code, slips, draws and value."""
    for part in re.split(r"\n\n(?=\[)", text):
        block: dict[str, Any] = {"blanks": {}, "code": [], "slips": [], "draws": 2, "value": None}
        for line in part.splitlines():
            if line.startswith("    "):
                block["code"].append(line[4:])
            elif line.startswith(("~ ", "= ")):
                block["slips"].append(line)
            elif found := re.fullmatch(r"\[([a-z0-9-]+)\]", line):
                block["name"] = found[1]
            elif found := re.fullmatch(r"(draws|value): (\w+)", line):
                block[found[1]] = int(found[2]) if found[1] == "draws" else found[2]
            elif found := re.fullmatch(r"(\w) = (.+)", line):
                block["blanks"][found[1]] = options(found[2])
            elif line and not line.startswith("#"):
                raise ValueError(f"snippets.txt: what is {line!r}?")
        if "name" in block:
            yield block


def options(text: str) -> list[str]:
    """`2-5` is a range of numbers, anything else alternatives between bars."""
    if span := re.fullmatch(r"(\d+)-(\d+)", text):
        return [str(number) for number in range(int(span[1]), int(span[2]) + 1)]
    return [option.strip() for option in text.split(" | ")]


def filled(text: str, blanks: dict[str, str]) -> str:
    """`text` with `$a`, or `$a.1` for the second of the parts that colons separate, put in."""

    def part(found: re.Match[str]) -> str:
        option = blanks[found[1]]
        return option.split(":")[int(found[2])] if found[2] and ":" in option else option

    return re.sub(r"\$([a-z])(?:\.(\d))?", part, text)


def misread(block: dict[str, Any], blanks: dict[str, str], gold: str) -> list[str]:
    """The different wrong outputs that the slips of a block lead to."""
    code = "\n".join(block["code"])
    wrong: list[str] = []
    for slip in block["slips"]:
        if slip.startswith("= "):
            output = filled(slip[2:], blanks)
        else:
            old, new = re.split(r" ->(?: |$)", slip[2:], maxsplit=1)
            if old not in code:
                raise ValueError(f"snippets.txt: {block['name']} has no {old!r}")
            with contextlib.suppress(Exception):
                output = outcome(filled(code.replace(old, new), blanks), block["value"])
                wrong.append(output)
            continue
        wrong.append(output)
    if re.fullmatch(r"\d+", gold):
        wrong += [str(int(gold) + step) for step in (1, -1, 2) if int(gold) + step >= 0]
    return [output for output in dict.fromkeys(wrong) if output.strip() and "\n" not in output and output != gold]


def snippets() -> Iterator[Draft]:
    """Programs to read."""
    number = count()
    for block in blocks((HERE / "facts" / "code" / "snippets.txt").read_text(encoding="utf-8")):
        made: set[str] = set()
        for attempt in range(60):
            if len(made) == block["draws"]:
                break
            blanks = {name: pick(of, block["name"], name, attempt) for name, of in block["blanks"].items()}
            code = filled("\n".join(block["code"]), blanks)
            gold = outcome(code, block["value"])
            wrong = misread(block, blanks, gold)
            if code in made or len(wrong) < 3:
                continue
            made.add(code)
            id = f"code/{slug('run', block['name'], *blanks.values())}"
            # The first slips are the likeliest; what they leave is drawn.
            chosen = wrong[:2] + some(wrong[2:], 1, id)
            frames: tuple[tuple[str, str], ...] = VALUES if block["value"] else PRINTS
            if code.splitlines()[-1].startswith(" "):
                # A comment after the last line would speak of that line alone.
                frames = tuple(frame for frame in frames if not frame[1].startswith("{code}"))
            question, reply = frames[next(number) % len(frames)]
            names = {"code": code, "name": block["value"]}
            yield Draft(
                id=id,
                prompt=question.format(**names),
                gold=reply.format(**names, output=gold.strip()),
                wrong=tuple(reply.format(**names, output=output.strip()) for output in chosen),
                cluster=f"code/run-{block['name']}",
            )
        if len(made) < block["draws"]:
            raise ValueError(f"{block['name']}: only {len(made)} of {block['draws']} draws were found")


# One idea


def idea(code: str, kind: str) -> str:
    """`code` with its variables numbered and constants first in products, and the kind of thing that it is about.

    Where it is alike, the same is asked.
    """
    names: dict[str, str] = {}
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.right, ast.Constant):
            node.left, node.right = node.right, node.left
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not hasattr(builtins, node.id):
            node.id = names.setdefault(node.id, f"v{len(names)}")
    return f"{ast.unparse(tree)} # {kind}"


def named(code: str) -> str:
    """How a question for a name calls what `code` does: the function that it calls, or its operator."""
    if found := re.fullmatch(r"(?:[^()]+\.)?(\w+)\([^()]*\)", code):
        return f"{found[1]}()"
    if found := re.fullmatch(r"\w+ ([^\w\s]+) \w+", code):
        return f"The operator {found[1]}"
    return ""


# Tasks


def passes(code: str, setup: str, condition: str) -> bool:
    """Whether `condition` holds of the names, the value `r` and what is printed, `out`, after `code`."""
    names: dict[str, Any] = {"code": code}
    try:
        run(setup, names)
        try:
            compile(code, "task", "eval")
        except SyntaxError:
            names["out"] = run(code, names)
        else:
            names["out"] = run(f"r = {code}", names)
        run(f"held = {condition}", names)
        return bool(names["held"])
    except Exception:
        return False


def tasks(ideas: dict[str, str]) -> Iterator[Draft]:
    """Expressions and statements to choose for a task."""
    for number, row in enumerate(facts("code", "tasks")):
        wrong = row["wrong"].split(" | ")
        for code, right in [(row["right"], True), *((code, False) for code in wrong)]:
            if passes(code, row["setup"], row["check"]) is not right:
                raise ValueError(f"tasks.tsv: {code!r} is {'wrong' if right else 'right'} for {row['task']!r}")
        frames = GIVES if row["kind"] == "gives" else DOES
        yield Draft(
            id=f"code/{slug('task', row['task'])}",
            prompt=frames[number % len(frames)].format(task=row["task"]),
            gold=row["right"],
            wrong=tuple(wrong),
            cluster=task_family(ideas, row),
        )


def task_family(ideas: dict[str, str], row: dict[str, str]) -> str:
    """The cluster of a task: that of the first task with its idea about the same kind of thing."""
    kind = about(row["task"])[0]
    return ideas.setdefault(idea(row["right"], kind if kind.isalpha() else ""), f"code/{slug('task', row['task'])}")


def about(task: str) -> tuple[str, str]:
    """What a task is about: the kind of thing and its name, such as ("list", "items"); or the single letters in it."""
    if found := re.search(r"\bthe (list|string|dictionary) (\w+)", task):
        return found[1], found[2]
    letters = [word for word in re.findall(r"\b[abnx]\b", task) if word != "a" or " b" in task]
    return str(len(set(letters))), "".join(dict.fromkeys(letters))


def meanings(ideas: dict[str, str]) -> Iterator[Draft]:
    """The tasks the other way round: what does an expression give, or a statement do?

    The wrong ones are tasks about the same kind of thing, under its name, which the expression does not pass.
    """
    rows = facts("code", "tasks")
    for number, row in enumerate(rows):
        kind, name = about(row["task"])
        false: list[str] = []
        for other in rows:
            if other is not row and other["kind"] == row["kind"] and about(other["task"])[0] == kind:
                names = dict(zip(*map(split_name, (about(other["task"])[1], name)), strict=True))
                if not passes(row["right"], renamed(other["setup"], names), renamed(other["check"], names)):
                    false.append(renamed(other["task"], names, f"{kind} " if kind.isalpha() else ""))
        if len(false) < 3 or kind == "0":
            continue
        id = f"code/{slug('means', row['task'])}"
        frames = MEANS if row["kind"] == "gives" else ACTS
        said = "{}" if row["kind"] == "gives" else "It {}."
        yield Draft(
            id=id,
            prompt=frames[number % len(frames)].format(code=row["right"]),
            gold=capital(said.format(row["task"])),
            wrong=tuple(capital(said.format(task)) for task in close(false, row["task"], id)),
            cluster=task_family(ideas, row),
        )


def split_name(name: str) -> list[str]:
    """The single letters `a` and `b` of "ab"; other names as they are."""
    return list(name) if re.fullmatch("[abnx]+", name) else [name]


def renamed(text: str, names: dict[str, str], after: str = "") -> str:
    """`text` with other names for things where they follow `after`."""
    return re.sub(rf"(?<=\b{after})\w+\b", lambda found: names.get(found[0], found[0]), text)


def close(texts: list[str], text: str, *key: str) -> list[str]:
    """Three of the `texts`, drawn from those whose length is nearest to that of `text`."""
    return some(sorted(set(texts), key=lambda other: (abs(len(other) - len(text)), other))[:6], 3, *key)


def capital(text: str) -> str:
    """`text` with a capital letter at its beginning."""
    return text[0].upper() + text[1:]


# Functions


def functions(ideas: dict[str, str]) -> Iterator[Draft]:
    """Functions to complete and, where others have the like parameters, to explain."""
    rows = facts("code", "functions")
    for number, row in enumerate(rows):
        head, wrong = row["head"], row["wrong"].split(" | ")
        for body, right in [(row["right"], True), *((body, False) for body in wrong)]:
            if passes(function(head, body), "", row["check"]) is not right:
                raise ValueError(f"functions.tsv: {body!r} is {'wrong' if right else 'right'} for {row['task']!r}")
        own = f"code/{slug('function', head.split('(')[0])}"
        kind = KINDS.get(re.split(r"[(,)]", head)[1], "")
        cluster = ideas.get(idea(row["right"].removeprefix("return "), kind), own)
        yield Draft(
            id=f"{own}-body",
            prompt=COMPLETE[number % len(COMPLETE)].format(head=head, task=row["task"]),
            gold=row["right"],
            wrong=tuple(wrong),
            cluster=cluster,
        )
        parameter = head.split("(")[1].rstrip(")")
        group = next((group for group in GROUPS if parameter in group), ())
        code = function(head, row["right"])
        near = [other for other in rows if other is not row and other["head"].split("(")[1].rstrip(")") in group]
        false = [
            renamed(other["task"], dict.fromkeys(group, parameter) if "," not in parameter else {})
            for other in near
            if not passes(code, "", other["check"])
        ]
        if len(false) > 3:
            yield Draft(
                id=f"{own}-task",
                prompt=EXPLAIN[number % len(EXPLAIN)].format(code=code),
                gold=f"It {row['task']}.",
                wrong=tuple(f"It {task}." for task in close(false, row["task"], own)),
                cluster=cluster,
            )


def function(head: str, body: str) -> str:
    """A function of the name f in place of the telling one."""
    return f"def f{head[head.index('(') :]}:\n    {body}"


# Syntax, errors, names


def compiles(code: str) -> bool:
    """Whether `code` is valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            compile(code, "line", "exec")
    except SyntaxError:
        return False
    return True


def syntax() -> Iterator[Draft]:
    """Lines of which one is valid."""
    for number, row in enumerate(facts("code", "syntax")):
        right, *wrong = (code.replace("\\n", "\n") for code in [row["right"], *row["wrong"].split(" | ")])
        if not compiles(right) or any(map(compiles, wrong)):
            raise ValueError(f"syntax.tsv: not exactly {right!r} is valid: {[w for w in wrong if compiles(w)]}")
        yield Draft(
            id=f"code/{slug('valid', row['what'], str(number))}",
            prompt=VALID[number % len(VALID)].format(what=row["what"]),
            gold=right,
            wrong=tuple(wrong),
        )


def errors() -> Iterator[Draft]:
    """Programs that end with an error."""
    for number, row in enumerate(facts("code", "errors")):
        code = row["code"].replace("\\n", "\n")
        try:
            run(code)
        except Exception as error:
            raised = type(error).__name__
        else:
            raise ValueError(f"errors.tsv: {code!r} raises nothing")
        id = f"code/{slug('raises', raised, str(number))}"
        yield Draft(
            id=id,
            prompt=RAISES[number % len(RAISES)].format(code=code),
            gold=raised,
            wrong=tuple(some([error for error in ERRORS if error != raised], 3, id)),
            cluster=f"code/raises-{slug(raised)}",
        )


def names(ideas: dict[str, str]) -> Iterator[Draft]:
    """Questions for a name; those for what a task needs are of its family."""
    families: dict[str, str] = {}
    for row in facts("code", "tasks"):
        families.setdefault(named(row["right"]), task_family(ideas, row))
    for row in facts("code", "names"):
        yield Draft(
            id=f"code/{slug('name', row['question'])[:60].rstrip('-')}",
            prompt=row["question"],
            gold=row["right"],
            wrong=tuple(row["wrong"].split(" | ")),
            cluster=families.get(row["right"]),
        )


def main() -> None:
    """Write the file."""
    ideas: dict[str, str] = {}
    asked = [*tasks(ideas), *meanings(ideas), *functions(ideas)]
    finish_exact("code", [*names(ideas), *asked, *syntax(), *errors(), *snippets()])


if __name__ == "__main__":
    main()
