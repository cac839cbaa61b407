"""The scripts for game engines in `docs/clients`: what they send is accepted, what they read is in the answers.

No engine runs here. The requests, the fields and the codes are read out of the scripts.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from leaderboard.config import Settings
from leaderboard.http import problems
from leaderboard.model import INT32_MAX
from tests.system import ROOT, ApiProcess

DOCS = ROOT / "docs" / "clients"
CODES = {kind.code for kind in problems.KINDS}
OWN_CODES = {"network_error", "unexpected_response", "invalid_request"}
"""Codes that the scripts give to what is no answer of the API."""


def blocks(page: str, language: str) -> list[str]:
    text = DOCS.joinpath(page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


GODOT_SCRIPT, GODOT_USE = blocks("godot.md", "gdscript")
UNITY_SCRIPT, UNITY_USE = blocks("unity.md", "csharp")


@dataclass(frozen=True)
class Call:
    """A call of a script. `body` is its text with the sample values; `answer` is the name of a C# class."""

    name: str
    method: str
    path: str
    body: str | None
    answer: str = ""


@pytest.fixture(scope="module")
def api(module_settings: Settings) -> Iterator[ApiProcess]:
    """A process with eleven users on `points`; the user 6 is in the middle."""
    api = ApiProcess(module_settings)
    try:
        api.start()
        assert api.client.put("/boards/points", json={"keeps": "sum"}).status_code == 201
        for number in range(11):
            user = api.create(f"user {number}").json()["userId"]
            api.client.post(f"/boards/points/users/{user}/score", json={"increment": 1000 - 100 * number})
        yield api
    finally:
        api.kill()
        api.client.close()


def send(api: ApiProcess, call: Call) -> httpx.Response:
    content = None if call.body is None else call.body.encode()
    headers = {}
    if content is not None:
        headers = {"content-type": "application/json", "idempotency-key": uuid.uuid4().hex}
    answer = api.client.request(call.method, call.path, content=content, headers=headers)
    assert answer.status_code == 200, f"{call}: {answer.text}"
    return answer


def names(value: object) -> set[str]:
    """Returns the names of all members, at any depth."""
    if isinstance(value, Mapping):
        return set(value).union(*map(names, value.values()))
    return set().union(*map(names, value)) if isinstance(value, list) else set()


def functions(script: str, head: str) -> dict[str, str]:
    """Returns the functions by name; each begins with a line that matches `head`, whose group is the name."""
    parts = re.split(head, script, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def check_codes(script: str, pattern: str) -> None:
    found = set(re.findall(pattern, script))
    assert found
    assert found <= CODES | OWN_CODES


# Godot. A whole float is written as 5.0.

GODOT_VALUES = {"user_id": 6, "board": "points", "n": 10, "score": 7.0, "amount": 5.0}


def godot_calls() -> Sequence[Call]:
    found = re.findall(
        r"^func (\w+)\(.*\) -> Result:\n\treturn await _send\("
        r'HTTPClient\.METHOD_(\w+), "([^"]+)" % (\[.*?\]|\w+)(?:, (\{.*\}))?\)$',
        GODOT_SCRIPT,
        re.MULTILINE,
    )
    calls = []
    for name, method, path, arguments, body in found:
        values = tuple(GODOT_VALUES[each] for each in re.findall(r"\w+", arguments))
        text = re.sub(r": (\w+)", lambda match: f": {GODOT_VALUES[match[1]]}", body)
        calls.append(Call(name, method, path % values, text or None))
    return calls


@pytest.mark.parametrize("call", godot_calls(), ids=lambda call: call.name)
def test_the_calls_for_godot_are_accepted_and_answer_what_is_read(api: ApiProcess, call: Call) -> None:
    assert call.body is None or ".0}" in call.body
    answer = send(api, call).json()
    uses = [text for text in functions(GODOT_USE, r"^func (\w+)").values() if f"Lb.{call.name}(" in text]
    assert uses
    for text in uses:
        read = set(re.findall(r'\["(\w+)"\]', text))
        assert read
        assert read <= names(answer)


def test_the_script_for_godot_has_these_calls() -> None:
    assert [call.name for call in godot_calls()] == ["set_score", "increment", "top", "context"]
    assert len(re.findall(r"-> Result:$", GODOT_SCRIPT, re.MULTILINE)) == len(godot_calls()) + 1


def test_the_script_for_godot_reads_problems(api: ApiProcess) -> None:
    problem = api.client.get("/users/999").json()
    read = set(re.findall(r'result\.body\.get\("(\w+)"', GODOT_SCRIPT))
    assert read == {"code", "detail"}
    assert read <= set(problem)
    check_codes(GODOT_USE + GODOT_SCRIPT, r'code == "(\w+)"')


# Unity. JsonUtility writes the fields of a class, and reads those that it knows.

UNITY_VALUES = {"userId": "6", "board": "points", "n": "10"}
UNITY_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "int": int,
    "long": int,
    "string": (str, type(None)),
    "bool": bool,
}


def unity_classes() -> dict[str, list[tuple[str, str]]]:
    """Returns by name the types and names of the fields of each class that is sent or received."""
    found = re.findall(r"\[Serializable\] public class (\w+) \{ (.*?) \}$", UNITY_SCRIPT, re.MULTILINE)
    return {name: re.findall(r"public (\S+) (\w+);", fields) for name, fields in found}


def unity_calls() -> Sequence[Call]:
    found = re.findall(
        r"^    public IEnumerator (\w+)\(.*Action<(\w+)> done, Action<Problem> failed\) =>\n"
        r'\s+Send\("(\w+)", \$"([^"]+)", (?:null|new (\w+) \{ (\w+) = \w+ \}), done, failed\);$',
        UNITY_SCRIPT,
        re.MULTILINE,
    )
    calls = []
    for name, answer, method, path, body_class, field in found:
        body = None
        if body_class:
            assert unity_classes()[body_class] == [("long", field)]
            body = json.dumps({field: 5})
        calls.append(Call(name, method, path.format(**UNITY_VALUES), body, answer))
    return calls


def check_class(name: str, value: Mapping[str, Any]) -> None:
    """Fails unless an object of JSON has all fields of a class, with values that fit."""
    for type_, field in unity_classes()[name]:
        assert field in value, f"{name}.{field}"
        found = value[field]
        if item := re.fullmatch(r"List<(\w+)>", type_):
            assert found, f"{name}.{field}"
            for each in found:
                check_class(item[1], each)
        elif type_ in UNITY_TYPES:
            assert isinstance(found, UNITY_TYPES[type_]), f"{name}.{field}: {found}"
            assert type_ != "int" or value[field] <= INT32_MAX
        else:
            check_class(type_, found)


@pytest.mark.parametrize("call", unity_calls(), ids=lambda call: call.name)
def test_the_calls_for_unity_are_accepted_and_answer_what_is_read(api: ApiProcess, call: Call) -> None:
    check_class(call.answer, send(api, call).json())
    assert f"leaderboard.{call.name}(" in UNITY_USE


def test_the_script_for_unity_has_these_calls() -> None:
    assert [call.name for call in unity_calls()] == ["SetScore", "Increment", "Top", "Context"]
    assert len(re.findall(r"public IEnumerator ", UNITY_SCRIPT)) == len(unity_calls())
    assert len(unity_classes()) == UNITY_SCRIPT.count("[Serializable]")


def test_the_script_for_unity_reads_problems(api: ApiProcess) -> None:
    check_class("Problem", api.client.get("/users/999").json())
    check_codes(UNITY_USE + UNITY_SCRIPT, r'code == "(\w+)"')
