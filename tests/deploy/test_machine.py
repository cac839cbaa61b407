"""The systemd units, and the commands of docs/deploy.md that install them."""

import re

from deploy.check import ROOT
from deploy.check.machine import commands
from leaderboard.config import Settings

PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
UNITS = ROOT / "deploy" / "systemd"


def default(name: str) -> int:
    return int(Settings.model_fields[name].default)


def unit(name: str) -> dict[str, str]:
    """Returns the settings of a unit; if a name is repeated, the last value."""
    text = (UNITS / name).read_text("utf-8")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def test_a_process_has_enough_time_to_stop() -> None:
    takes_s = (default("stop_delay_ms") + default("request_timeout_ms")) / 1000 + 2
    assert int(unit("leaderboard@.service")["TimeoutStopSec"]) > takes_s


def test_a_process_has_enough_open_files_for_all_connections() -> None:
    needed = default("max_connections") + 40 + 2 * default("db_pool_size")
    assert int(unit("leaderboard@.service")["LimitNOFILE"]) >= needed


def test_nginx_is_configured_as_in_the_section_about_proxies() -> None:
    def lines(text: str) -> set[str]:
        return {line for line in re.findall(r"^ +(proxy_.*;)$", text, re.MULTILINE) if "proxy_pass " not in line}

    (whole, _) = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
    assert lines(commands(PAGE)["install"]) == lines(whole) != set()


def test_the_commands_of_each_section_are_found() -> None:
    found = commands(PAGE)
    assert list(found) == ["install", "upgrade", "rollback", "backup and restore", "monitoring"]
    assert [part for part, lines in found.items() if not lines] == ["monitoring"]
    # Only the commands, without the text between them.
    assert found["rollback"] == "ls /opt/leaderboard\ndeploy/systemd/use.sh 0.1.0\n"
