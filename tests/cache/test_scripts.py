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
REBUILD_KEYS = {**keys.BY_NAME, **keys.loading("nonce")}
SEASON_KEYS = {**keys.BY_NAME, **keys.loading_season("load", "season")}
LISTS: dict[str, list[Any]] = {
    "deleted": ["first deleted", "second deleted"],
    "rows": ["a member", "a score", "its metadata"],
    "seasons": ["part of a season", "another part"],
    "versions": ["a season", "its version"],
    "reads": ["a season", 3],
}
FILE_OF = {"load_season": "load"}
METHODS = [name for name, _ in inspect.getmembers(Scripts, inspect.isfunction) if not name.startswith("_")]


def declared(name: str, what: str) -> list[str]:
    """Returns the names in the line `-- KEYS:` or `-- ARGV:` of a script's file."""
    lines = re.findall(rf"^-- {what}: (.*)$", FILES[name], re.MULTILINE)
    assert len(lines) <= 1
    return lines[0].split(", ") if lines else []


def values(name: str) -> dict[str, Any]:
    """Returns a different value for each parameter of a script's method."""
    parameters = inspect.signature(getattr(Scripts, name)).parameters.keys() - {"self"}
    return {parameter: LISTS.get(parameter, parameter) for parameter in parameters}


def script(name: str) -> tuple[Script, dict[str, Any]]:
    """Returns a script and the keys of a rebuild, which some scripts need."""
    return Script.load(name), keys.loading_season("load", "season")


def test_every_script_has_a_method() -> None:
    assert {FILE_OF.get(name, name) for name in METHODS} == FILES.keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_script_gets_the_arguments_that_its_file_declares(method: str) -> None:
    name = FILE_OF.get(method, method)
    given = values(method)
    call = getattr(Scripts(), method)(**given)
    known = SEASON_KEYS if "load" in given else REBUILD_KEYS
    assert list(call.keys) == [known[key] for key in declared(name, "KEYS")]
    # The lists follow the named arguments. `apply` gets the lengths of two of them by name.
    further = [value for parameter in LISTS for value in given.pop(parameter, [])]
    if method == "apply":
        given |= {"deletions": len(LISTS["deleted"]), "changes": len(LISTS["rows"]) // 3}
    if "load" in given:
        given["nonce"] = given.pop("load")
    if name in ("claim", "load"):
        given.pop("season", None)
    arguments = declared(name, "ARGV")
    if further:
        assert arguments.pop() == "..."
    assert set(arguments) == given.keys()
    assert list(call.arguments) == [*(given[argument] for argument in arguments), *further]


@pytest.mark.parametrize("name", FILES)
def test_a_script_reads_its_keys_and_arguments_by_name_only(name: str) -> None:
    code = re.sub(r"--.*", "", FILES[name])
    assert not re.search(r"\bKEYS\b", code)
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
