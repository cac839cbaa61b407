"""`granian_worker.py` uses private parts of Granian, so it is made for one minor version."""

from importlib.metadata import version

from leaderboard import granian_worker


def test_granian_is_of_the_version_whose_private_parts_are_used() -> None:
    installed = ".".join(version("granian").split(".")[:2])
    assert installed == granian_worker.GRANIAN_VERSION, (
        "read again the parts of Granian that the head of granian_worker.py lists; then change GRANIAN_VERSION"
        " there, and the version in pyproject.toml"
    )
