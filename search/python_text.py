"""English text that comes with every CPython: the language reference in `pydoc_data` and the library's docstrings."""

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pydoc_data.topics import topics


# Parts of the library that are documented at length, and installed by every distributor of Python 3.10 to 3.13.
MODULES = (
    "asyncio codecs collections concurrent configparser difflib doctest email ftplib http importlib inspect ipaddress "
    "json logging os pdb shutil smtplib socketserver statistics subprocess tarfile tempfile textwrap threading "
    "traceback typing unittest urllib wsgiref xml"
).split()
MARKUP = re.compile(r":[\w:]+:(?=`)|(?<!\w)[*`]+(?=\w)|(?<=[\w)])[*`]+(?!\w)")
LABEL = re.compile(r"(?:[*-]|\d+\.|Note:|Changed in version [\d.]+:) +")
PLAIN_WORD = re.compile(r"[(\"“]?[A-Za-z'’-]+[.,;:)\"”?!]*")
MIN_WORDS = 8
MIN_PLAIN_SHARE = 0.75


def python_paragraphs() -> list[str]:
    """Paragraphs of prose, without code, tables, grammar and headings, none of them twice; the same for equal Pythons."""
    texts = [*(topics[name] for name in sorted(topics)), *_docstrings()]
    paragraphs = (_prose(paragraph) for text in texts for paragraph in re.split(r"\n\s*\n", text))
    return list(dict.fromkeys(filter(None, paragraphs)))


def _docstrings() -> Iterator[str]:
    """Docstrings as they stand in the source, which does not run anything and does not depend on the platform."""
    library = Path(sysconfig.get_path("stdlib"))
    for module in MODULES:
        for path in (library / f"{module}.py", *sorted((library / module).rglob("*.py"))):
            if not path.is_file() or "test" in path.relative_to(library).parts:
                continue
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield ast.get_docstring(node) or ""


def _prose(paragraph: str) -> str | None:
    """A paragraph on one line if it is made of sentences, else None."""
    text = LABEL.sub("", MARKUP.sub("", " ".join(paragraph.split())), count=1)
    words = text.split()
    plain = sum(PLAIN_WORD.fullmatch(word) is not None for word in words)
    if len(words) >= MIN_WORDS and plain >= MIN_PLAIN_SHARE * len(words) and text[0].isupper() and text[-1] in ".:?!)":
        return text
    return None
