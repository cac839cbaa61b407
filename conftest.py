"""Gives the fixtures of `tests/fixtures.py` to every folder of tests."""

pytest_plugins = ["tests.fixtures"]
