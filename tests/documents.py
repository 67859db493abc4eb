"""Reading the documents: their headings, tables and code blocks; and how what they describe is said in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic import SecretStr

from columns import COST_PLACES, GRAMS_PLACES, MONEY_PLACES, Scaled, UtcDateTime

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#{1,4}) (.+)$", re.MULTILINE)
ROUTE = re.compile(r"`(GET|POST|PUT|DELETE) (/[^\s`]*)`")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
# A longer one tells a person nothing; the sentence beside it does.
SHOWN_PATTERN_CHARS = 24
MAX_ID = 2**31 - 1


class Block(NamedTuple):
    """A fenced block of code. `line` is where it stands, counted from 1."""

    language: str
    text: str
    line: int


class Section(NamedTuple):
    """A heading and what follows up to the next heading of any level. `body` still holds its code blocks."""

    level: int
    title: str
    body: str


def read(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(text: str) -> list[Block]:
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in FENCE.finditer(text)]


def without_blocks(text: str) -> str:
    """The same text and the same offsets, with the code blanked out: a comment in a shell block is no heading."""
    return FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def sections(text: str) -> list[Section]:
    headings = list(HEADING.finditer(without_blocks(text)))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return [
        Section(len(heading[1]), heading[2].strip(), text[heading.end() : end])
        for heading, end in zip(headings, ends, strict=True)
    ]


def section(text: str, title: str) -> Section:
    """The one section of that title."""
    (found,) = [each for each in sections(text) if each.title == title]
    return found


def tables(text: str) -> Iterator[list[list[str]]]:
    """Each table as rows of cells, the heading row first and the ruler left out."""
    rows: list[list[str]] = []
    for line in [*without_blocks(text).splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            yield [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]
            rows = []


def table(text: str, first_heading: str) -> dict[str, list[str]]:
    """The table whose first column has that heading: first cell without its backticks -> the other cells."""
    for found in tables(text):
        if found[0][0] == first_heading:
            return {row[0].strip("`"): row[1:] for row in found[1:]}
    return {}


def anchors(text: str) -> set[str]:
    """What a link to a heading of this document may name, as GitHub makes it."""
    titles = (re.sub(r"[^\w\- ]", "", each.title.replace("`", "").casefold()) for each in sections(text))
    return {title.replace(" ", "-") for title in titles}


def in_words(schema: dict[str, Any]) -> str:
    """A JSON Schema as the tables say it: `whole number 0–7`, `text 1–255 or null`, `[Print](#print)`."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(in_words(each) for each in schema["anyOf"])
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    is_nullable = "null" in kinds or None in schema.get("enum", [])
    if "enum" in schema:
        words = ", ".join(f"`{word}`" for word in schema["enum"] if word is not None)
    else:
        words = " or ".join(_kind_in_words(kind, schema) for kind in kinds if kind != "null")
    return " or ".join(part for part in (words, "null" if is_nullable else "") if part)


def _kind_in_words(kind: str, schema: dict[str, Any]) -> str:
    if kind == "string":
        if schema.get("format") in ("date-time", "binary"):
            return {"date-time": "time", "binary": "file"}[schema["format"]]
        if 0 < len(schema.get("pattern", "")) <= SHOWN_PATTERN_CHARS:
            return f"text `{schema['pattern']}`"
        return "text" + _range(schema.get("minLength"), schema.get("maxLength"))
    if kind in ("integer", "number"):
        if schema.get("maximum") == MAX_ID and schema.get("minimum") == 1:
            return "id"
        name = "whole number" if kind == "integer" else "number"
        return name + _range(schema.get("minimum"), schema.get("maximum"))
    if kind == "array":
        return f"list of {in_words(schema['items'])}" + _range(schema.get("minItems"), schema.get("maxItems"))
    if kind == "object" and isinstance(inner := schema.get("additionalProperties"), dict) and inner:
        return f"object of {in_words(inner)}"
    return {"boolean": "true or false", "object": "object"}[kind]


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    return f" {number(low)}–{number(high)}"


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{int(value):,}" if value == int(value) else str(value)


def default_in_words(schema: dict[str, Any], name: str) -> str:
    """What a field is when it is left out: `needed`, its default, or a dash."""
    if name in schema.get("required", []):
        return "needed"
    default = schema["properties"][name].get("default")
    if default is None:
        return "–"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`" if isinstance(default, str) else f"`{number(default)}`"


def column_in_words(column: sa.Column[Any]) -> str:
    """A column as DATABASE.md says it: `whole number → printers`, `grams or null`."""
    kind = column.type
    if isinstance(kind, Scaled):
        words = {GRAMS_PLACES: "grams", MONEY_PLACES: "money", COST_PLACES: "cost", 2: "hundredths", 1: "°C"}[
            kind.places
        ]
        words = "degrees" if column.name in ("latitude", "longitude") else words
    elif isinstance(kind, UtcDateTime):
        words = "time"
    elif isinstance(kind, sa.Enum):
        words = "word"
    elif isinstance(kind, sa.String):
        words = "text" if kind.length is None else f"text {kind.length}"
    else:
        words = {
            sa.Boolean: "true or false",
            sa.Integer: "whole number",
            sa.BigInteger: "whole number",
            sa.JSON: "JSON",
        }[type(kind)]
    targets = sorted({key.column.table.name for key in column.foreign_keys if key.column.name == "id"})
    if column.name != "user_id" and targets:
        words += f" → `{targets[0]}`"
    elif column.name == "user_id":
        words += " → `users`"
    return words + (", key" if column.primary_key else "") + (" or null" if column.nullable else "")


def setting_in_words(default: object) -> str:
    """A setting's default as the README says it: a dash for what is empty."""
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    if isinstance(default, bool):
        default = int(default)
    return f"`{default}`" if default not in ("", ()) else "–"
