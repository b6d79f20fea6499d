"""The prose of the project: plain, standard technical English, and complete docstrings of public functions."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import re
import textwrap
import tokenize
from pathlib import Path

import pytest
from test_api import MODULES, public

PROJECT = Path(__file__).resolve().parents[1]
#: Folders of Python files whose docstrings, comments and texts are scanned; this file quotes the idioms.
CODE = ("gridrad_cube", "training", "benchmarks", "tests", "docs")
#: Pattern of an idiom, and what to write instead.
IDIOMS = {
    r"\b(is|are|be) none\b(?! of)": 'name the object: "is missing", "does not exist", "without echo"',
    r"\banew\b": '"again" or "new"',
    r"\b(told|tells?)\b (?!apart)": 'programs do not tell: "shows", "contains", "names", "returns"',
    r"\btells? apart|\btold apart\b": '"distinguish"',
    r"(?<!`)\bmend(s|ed|ing)?\b(?!_grid|`)": '"repair"',
    r"\bof (its|their) own\b": '"separate", "own" before the noun',
    r"\bso many\b": 'a number, or "this number of"',
    r"\b(go|goes|went|going) on\b": '"resume" or "continue"',
    r"\b[Ww]herever\b": '"in every place where"',
    r"\b[Ww]hatever\b": '"for any", or the cases',
    r"\bare others now\b": '"have changed"',
    r"\bsee to the\b": '"change", "check"',
    r"\blikest\b": '"most similar" or "nearest"',
    r"\bwhat (it|they) (is|are) made of\b": '"its parts"',
    r"\bhas no say\b|\bhave no say\b": '"does not count"',
    r"\bbecame of\b|\bbecomes of\b": '"outcome of"',
    r"\basked for(?= (and there|is|are)\b)": '"requested"',
    r"\bis left of\b": '"remains", "is selected"',
    r"\bat hand\b": '"available"',
    r"\bin spite of\b": '"despite"',
    r"\bby right\b|\bby nature\b": "the reason",
    r"\ball is well\b": '"without damage"',
    r"\bwhere there is none\b": '"if it is missing"',
    r"\bunder way\b": '"running", "concurrent"',
    r"\bmade up\b": '"synthetic"',
    r"(?<![\d.,])1 (scenes|crops|workers|files|patches|samples|times)\b": "singular after 1",
}


def files():
    """Every text of the project that people read."""
    pages = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("notebooks/*")]
    pages += PROJECT.glob("benchmarks/results/*.md")
    code = [path for folder in CODE for path in (PROJECT / folder).rglob("*.py")]
    found = [
        path for path in [*pages, *code] if path.is_file() and not {"_build", "golden"} & set(path.parts)
    ]
    return sorted(path for path in found if path != Path(__file__))


def prose(path):
    """Lines of prose with their numbers: all of a page, docstrings, comments and texts of code."""
    text = path.read_text()
    if path.suffix == ".md":
        return list(enumerate(text.splitlines(), 1))
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
        return [(0, line) for line in lines]
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    out = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds and " " in token.string.strip():
            lines = token.string.splitlines()
            out += [(token.start[0] + number, line) for number, line in enumerate(lines)]
    return out


def test_no_old_idiom_is_left():
    found = [
        f"{path.relative_to(PROJECT)}:{number}: {match[0]!r} -> {instead}: {line.strip()}"
        for path in files()
        for number, line in prose(path)
        for pattern, instead in IDIOMS.items()
        if (match := re.search(pattern, line))
    ]
    assert not found, "\n" + "\n".join(found)


# --- docstrings -----------------------------------------------------------------------------------------------

SECTIONS = re.compile(
    r"^(Parameters|Attributes|Returns|Yields|Raises|Warns|Notes|Examples)\n-{3,}$", re.MULTILINE
)


def functions():
    """Public functions, and public methods of public classes, by name."""
    for package in MODULES:
        for name, value in public(package).items():
            if inspect.isfunction(value):
                yield f"{package}.{name}", value
            elif inspect.isclass(value):
                members = {key: member for key, member in vars(value).items() if key[0] != "_"}
                methods = {key: m for key, m in members.items() if inspect.isfunction(m)}
                yield from ((f"{package}.{name}.{key}", method) for key, method in methods.items())


def problems(function):
    """What the docstring of a function lacks."""
    doc = inspect.getdoc(function) or ""
    parts = SECTIONS.split(doc)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    entries = re.findall(r"^(\S[^:\n]*?)(?: :.*)?$", sections.get("Parameters", ""), re.MULTILINE)
    named = {name.strip(" *") for entry in entries for name in entry.split(",")}
    signature = inspect.signature(function)
    lacking = [name for name in signature.parameters if name not in named | {"self", "cls"}]
    returns = signature.return_annotation
    if returns not in ("None", "Iterator[None]", inspect.Signature.empty) and not {"Returns", "Yields"} & set(
        sections
    ):
        lacking.append("Returns")
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    raises = any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(tree))
    if raises and "Raises" not in sections:
        lacking.append("Raises")
    return lacking


def test_public_functions_describe_parameters_results_and_errors():
    found = {name: lacking for name, function in functions() if (lacking := problems(function))}
    assert found == {}


@pytest.mark.parametrize("package", MODULES)
def test_docstrings_of_functions_begin_with_a_verb(package):
    """A summary says what the function does; it is not a noun, a question word or a preposition."""
    module = importlib.import_module(f"gridrad_cube.{package}")
    paths = (
        Path(module.__file__).parent.glob("*.py") if hasattr(module, "__path__") else [Path(module.__file__)]
    )
    words = {
        "The",
        "A",
        "An",
        "What",
        "Which",
        "Where",
        "How",
        "Whether",
        "One",
        "Every",
        "All",
        "As",
        "For",
        "Of",
    }
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
                is_property = any("property" in ast.unparse(one) for one in node.decorator_list)
                first = doc.split()[0]
                if first == "Whether" or (first in words and not is_property):
                    found.append(f"{path.name}:{node.lineno}: {doc.splitlines()[0]}")
    assert not found, "\n" + "\n".join(found)
