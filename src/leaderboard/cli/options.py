"""Reads settings for a command, whose options override the environment."""

from typing import Any

from leaderboard.config import Settings, load


def settings_with(**options: Any) -> Settings:
    """Return the settings; options that are None do not override them. Raises BadSetting."""
    return load(**{name: value for name, value in options.items() if value is not None})
