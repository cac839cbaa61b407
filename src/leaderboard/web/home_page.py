"""The home page: the top users as a table that is complete without JavaScript.

Users choose names and image URLs, so both are escaped here, where they enter the HTML. A name is put into `<bdi>`,
so that one written right to left does not reverse its row. The script fills copies of the row made here, so the
markup of a row exists once.
"""

from collections.abc import Mapping
from html import escape
from string import Template

from leaderboard.model import Standing, Top

HOME_SIZE = 100
"""How many users the page shows, and requests when it refreshes itself."""

_HUES = 8
_BLANK_USER = Standing(1, 1, "?", None, 0)


def render_home(
    template: Template,
    names: Mapping[str, str],
    top: Top,
    *,
    age_seconds: int | None,
    image_sources: tuple[str, ...] = (),
) -> bytes:
    """Returns the page that shows `top`; `names` are the values of `template` that do not depend on it."""
    page = template.substitute(
        names,
        size=HOME_SIZE,
        image_sources=escape(" ".join(image_sources)),
        notice="" if age_seconds is None else _notice(age_seconds),
        board_hidden="" if top.users else "hidden",
        empty_hidden="hidden" if top.users else "",
        rows="\n".join(_row(user, image_sources) for user in top.users),
        blank_row=_row(_BLANK_USER, ()),
    )
    return page.encode()


def _notice(age_seconds: int) -> str:
    unit = "second" if age_seconds == 1 else "seconds"
    return f"These numbers are {age_seconds:,} {unit} old: the database is unreachable."


def _row(user: Standing, image_sources: tuple[str, ...]) -> str:
    image = ""
    # The Content-Security-Policy decides what may load. This only avoids errors in the browser's console.
    if user.image_url and user.image_url.startswith(image_sources):
        image = (
            f'<img src="{escape(user.image_url)}" alt="" loading="lazy" decoding="async"'
            ' referrerpolicy="no-referrer">'
        )
    return (
        f'<tr><td class="rank" data-rank="{user.rank}"><span>{user.rank:,}</span></td>'
        f'<th scope="row"><div class="user"><span class="face hue-{user.user_id % _HUES}" aria-hidden="true">'
        f"<span>{escape(_initial(user.user_name))}</span>{image}</span>"
        f'<span class="who"><bdi class="name">{escape(user.user_name)}</bdi> '
        f'<span class="id">id {user.user_id}</span></span></div></th>'
        f'<td class="score"><data value="{user.total_score}">{_number(user.total_score)}</data></td></tr>'
    )


def _initial(name: str) -> str:
    return next(filter(str.isalnum, name), name[:1]).upper()


def _number(value: int) -> str:
    # A hyphen is narrower than a digit, and too low beside one.
    return f"{value:,}".replace("-", "\N{MINUS SIGN}")
