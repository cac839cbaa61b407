"""Which wheels an image needs, as `deploy.check.image` finds it."""

from packaging.requirements import Requirement

from deploy.check.image import images, wanted_pins


def chosen(*pins: str, python: str = "3.13", machine: str = "aarch64") -> list[str]:
    return wanted_pins([(Requirement(pin), pin.partition(" ")[0]) for pin in pins], python, machine)


def test_a_pin_for_another_system_or_python_is_not_wanted() -> None:
    pins = ("asyncpg==1", "colorama==1 ; sys_platform == 'win32'", "async-timeout==1 ; python_version < '3.12'")
    assert chosen(*pins) == ["asyncpg==1"]
    assert chosen(*pins, python="3.11") == ["asyncpg==1", "async-timeout==1"]


def test_a_pin_for_one_kind_of_machine_is_wanted_there() -> None:
    pin = "uvloop==1 ; platform_machine == 'x86_64'"
    assert chosen(pin, machine="x86_64") == ["uvloop==1"]
    assert chosen(pin, machine="aarch64") == []


def test_the_images_of_compose_are_found() -> None:
    assert set(images("compose.yaml")) == {"PYTHON_IMAGE", "POSTGRES_IMAGE", "REDIS_IMAGE"}
