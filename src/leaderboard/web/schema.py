"""JSON Schema in words: what the API reader says of a type, its bounds and an example of it.

Only what an OpenAPI 3.1 document made from our own structs contains; a keyword it does not know goes unsaid.
"""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

Node = Mapping[str, Any]
"""Any object in the document."""

_RANGES = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " entries"),
)
_REMARKS = {
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "pattern": "matches {}",
    "format": "format {}",
    "default": "default {}",
}
_PLAIN = {"number": 0, "boolean": False, "array": [], "object": {}, "null": None}
_GIVEN = ("example", "default", "const")
_LISTED = ("examples", "enum")
_CHOICES = {"anyOf": " or ", "oneOf": " or ", "allOf": " and "}


def resolve(document: Node, node: Node) -> Node:
    """What `node` is, or refers to within the document."""
    while "$ref" in node:
        target: Any = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step.replace("~1", "/").replace("~0", "~")]
        node = target
    return node


def first(choices: Node) -> Node:
    """The first of named things, or nothing."""
    return next(iter(choices.values()), {})


def compact(value: object) -> str:
    """A JSON value on one line."""
    return json.dumps(value, ensure_ascii=False)


def kind(schema: Node) -> str:
    """What a schema admits, as a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    for choice, word in _CHOICES.items():
        if choice in schema:
            return word.join(kind(each) for each in schema[choice])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(compact(value))}</code>" for value in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(compact(schema['const']))}</code>"
    types = schema.get("type", "anything")
    if types == "array":
        return f"list of {kind(schema.get('items', {}))}"
    return escape(types if isinstance(types, str) else " or ".join(types))


def limits(schema: Node) -> str:
    """The bounds on a value as HTML, those inside a choice too."""
    said = []
    for part in (*(each for choice in _CHOICES for each in schema.get(choice, ())), schema):
        for low, high, unit in _RANGES:
            if low in part and high in part:
                said.append(f"{part[low]} to {part[high]}{unit}")
            elif low in part:
                said.append(f"at least {part[low]}{unit}")
            elif high in part:
                said.append(f"at most {part[high]}{unit}")
        for key, phrase in _REMARKS.items():
            if key in part:
                said.append(phrase.format(part[key] if isinstance(part[key], str) else compact(part[key])))
    return f"<small>{escape(', '.join(said))}</small>" if said else ""


def has_example(document: Node, node: Node) -> bool:
    """Whether the document itself has a value for a parameter, a body or a schema."""
    node = resolve(document, node)
    if any(given in node for given in (*_GIVEN, *_LISTED)):
        return True
    return "schema" in node and has_example(document, node["schema"])


def example(document: Node, node: Node) -> Any:
    """A value for a parameter, a body or a schema: the document's own, or else one of the right type."""
    node = resolve(document, node)
    for given in _GIVEN:
        if given in node:
            return node[given]
    for listed in _LISTED:
        if given_values := node.get(listed):
            # Of a parameter or a body they are named objects, of a schema plain values.
            named = isinstance(given_values, Mapping)
            return resolve(document, first(given_values))["value"] if named else given_values[0]
    for inner in (node.get("schema"), *(each for choice in _CHOICES for each in node.get(choice, ()))):
        if inner is not None:
            return example(document, inner)
    if "properties" in node:
        return {name: example(document, field) for name, field in node["properties"].items()}
    types = node.get("type", "string")
    name = types if isinstance(types, str) else types[0]
    return max(0, node.get("minimum", 0)) if name == "integer" else _PLAIN.get(name, "text")
