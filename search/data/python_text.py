"""English text that comes with every CPython: the language reference in `pydoc_data` and the library's docstrings."""

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics


# Parts of the library that are documented at length, and installed by every distributor of Python 3.10 to 3.13.
# fmt: off
MODULES = [
    "asyncio", "codecs", "collections", "concurrent", "configparser", "difflib", "doctest", "email", "ftplib", "http",
    "importlib", "inspect", "ipaddress", "json", "logging", "os", "pdb", "shutil", "smtplib", "socketserver",
    "statistics", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "traceback", "typing", "unittest",
    "urllib", "wsgiref", "xml",
]
# fmt: on
HEADING = re.compile(r"\n[^\n]+\n(?:\*{3,}|={3,}|-{3,}|~{3,})\n")
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
BLANK_LINE = re.compile(r"\n\s*\n")
MARKUP = re.compile(r":[\w:]+:(?=`)|(?<!\w)[*`]+(?=\w)|(?<=[\w)])[*`]+(?!\w)")
LABEL = re.compile(r"(?:[*-]|\d+\.|Note:|Changed in version [\d.]+:) +")
PLAIN_WORD = re.compile(r"[(\"“]?[A-Za-z'’-]+[.,;:)\"”?!]*")
MIN_WORDS = 8
MIN_PLAIN_SHARE = 0.75


def python_documents() -> list[str]:
    """Sections and docstrings without code, tables, grammar and headings.

    A paragraph that stands in several places is kept in the first. Equal versions of Python give equal documents.
    """
    seen = set()
    documents = []
    for text in (*_reference_sections(), *_library_docstrings()):
        paragraphs = [p for p in map(_prose, BLANK_LINE.split(text)) if p and p not in seen]
        seen.update(paragraphs)
        documents.append("\n\n".join(paragraphs))
    return [document for document in documents if document]


def _reference_sections() -> Iterator[str]:
    for name in sorted(topics):
        yield from HEADING.split(topics[name])


def _library_docstrings() -> Iterator[str]:
    """Docstrings by their quotes: parsing takes many times as long, and what else stands there is seldom prose."""
    library = Path(sysconfig.get_path("stdlib"))
    for module in MODULES:
        for path in (library / f"{module}.py", *sorted((library / module).rglob("*.py"))):
            if path.is_file() and "test" not in path.relative_to(library).parts:
                yield from DOCSTRING.findall(path.read_text(encoding="utf-8"))


def _prose(paragraph: str) -> str | None:
    """A paragraph on one line if it is made of sentences, else None."""
    text = LABEL.sub("", MARKUP.sub("", " ".join(paragraph.split())), count=1)
    words = text.split()
    plain = sum(PLAIN_WORD.fullmatch(word) is not None for word in words)
    is_sentence = text[:1].isupper() and text[-1:] in set(".:?!)")
    return text if is_sentence and len(words) >= MIN_WORDS and plain >= MIN_PLAIN_SHARE * len(words) else None
