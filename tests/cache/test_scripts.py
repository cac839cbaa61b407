"""The methods of `Scripts` pass to each script the arguments that its file declares, in that order."""

import inspect
import re
from importlib import resources
from typing import Any

import pytest

from leaderboard.cache import keys
from leaderboard.cache.scripts import Script, Scripts

FILES = {
    file.name.removesuffix(".lua"): file.read_text("utf-8")
    for file in resources.files("leaderboard.cache").joinpath("scripts").iterdir()
    if file.name.endswith(".lua")
}
KEYS = {**keys.BY_NAME, **keys.loading("nonce")}
DELETED = ["first deleted", "second deleted"]
ROWS = ("a member", "a score", "its metadata")


def declared(name: str, what: str) -> list[str]:
    """Returns the names in the line `-- KEYS:` or `-- ARGV:` of a script's file."""
    lines = re.findall(rf"^-- {what}: (.*)$", FILES[name], re.MULTILINE)
    assert len(lines) <= 1
    return lines[0].split(", ") if lines else []


def values(name: str) -> dict[str, Any]:
    """Returns a different value for each parameter of a script's method."""
    parameters = inspect.signature(getattr(Scripts, name)).parameters.keys() - {"self"}
    lists: dict[str, Any] = {"deleted": DELETED, "rows": ROWS}
    return {parameter: lists.get(parameter, parameter) for parameter in parameters}


def script(name: str) -> tuple[Script, dict[str, Any]]:
    """Returns a script and the keys of a rebuild, which some scripts need."""
    return Script.load(name), keys.loading("nonce")


@pytest.mark.parametrize("name", FILES)
def test_a_script_gets_the_arguments_that_its_file_declares(name: str) -> None:
    given = values(name)
    call = getattr(Scripts(), name)(**given)
    assert list(call.keys) == [KEYS[key] for key in declared(name, "KEYS")]
    # The script gets the number of deletions by name. The list of them follows the named arguments.
    deleted, rows = given.pop("deleted", []), given.pop("rows", ())
    by_name = {**given, "deletions": len(deleted)} if deleted else given
    arguments = declared(name, "ARGV")
    if deleted or rows:
        assert arguments.pop() == "..."
    assert set(arguments) == by_name.keys()
    assert list(call.arguments) == [*(by_name[argument] for argument in arguments), *deleted, *rows]


@pytest.mark.parametrize("name", FILES)
def test_a_script_reads_its_keys_and_arguments_by_name_only(name: str) -> None:
    code = re.sub(r"--.*", "", FILES[name])
    assert "KEYS" not in code
    assert not re.findall(r"ARGV\[\d", code)
    used = set(re.findall(r"\w+", code))
    assert used >= {*declared(name, "KEYS"), *declared(name, "ARGV")} - {"..."}


@pytest.mark.parametrize("name", [name for name in FILES if declared(name, "ARGV")])
def test_a_wrong_name_is_an_error(name: str) -> None:
    called, other_keys = script(name)
    for wrong in called.arguments:
        named = {argument if argument != wrong else f"{wrong}s": "a value" for argument in called.arguments}
        with pytest.raises(TypeError, match=name):
            called.call(other_keys=other_keys, **named)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_additional_argument_is_an_error(name: str) -> None:
    called, other_keys = script(name)
    named = dict.fromkeys(called.arguments, "a value")
    called.call(other_keys=other_keys, **named)
    for missing in called.arguments:
        with pytest.raises(TypeError, match=name):
            called.call(other_keys=other_keys, **{each: "a value" for each in named if each != missing})
    with pytest.raises(TypeError, match=name):
        called.call(other_keys=other_keys, **named, another="a value")
    if not called.takes_more:
        with pytest.raises(TypeError, match=name):
            called.call(["one more"], other_keys=other_keys, **named)


@pytest.mark.parametrize("name", ["load", "swap"])
def test_a_missing_key_is_an_error(name: str) -> None:
    called, other_keys = script(name)
    named = dict.fromkeys(called.arguments, "a value")
    with pytest.raises(TypeError, match="loading"):
        called.call(other_keys=None, **named)
    called.call(other_keys=other_keys, **named)
