"""The pages as HTML: text that users chose stays text, and every file that a page loads is shipped."""

import json
import re
import shlex
from html.parser import HTMLParser
from itertools import product

import pytest

from leaderboard.http import problems
from leaderboard.model import SCORE_MAX, SCORE_MIN, Standing, Top
from leaderboard.web.home_page import HOME_SIZE
from leaderboard.web.pages import Pages
from tests.web.document import document

VOID = {"meta", "link", "img", "input", "br", "path", "rect"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' autofocus onfocus='alert(1)",
    "&lt;b&gt; &amp; $rows ${origin} $$",
    "</template></table></body>",
]


class Page(HTMLParser):
    """A parsed page, all of whose tags are closed: tags with attributes, text by class, `<pre>` blocks."""

    def __init__(self, html: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.blocks: list[str] = []
        self._open: list[tuple[str, str]] = []
        self.feed(html.decode())
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        assert len(found) == len(attrs)
        self.tags.append((tag, found))
        if tag == "pre":
            self.blocks.append("")
        if tag not in VOID:
            self._open.append((tag, found.get("class") or found.get("id", "")))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1][1], data))
        if "pre" in [tag for tag, _ in self._open]:
            self.blocks[-1] += data

    def said(self, name: str) -> list[str]:
        return [text for where, text in self.texts if where == name]

    def with_attribute(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def one(self, element_id: str) -> dict[str, str]:
        (found,) = [attributes for _, attributes in self.tags if attributes.get("id") == element_id]
        return found


@pytest.fixture(scope="module")
def pages() -> Pages:
    return Pages.load(origin="https://board.example")


def user(rank: int = 1, name: str = "Ada", score: int = 1, image: str | None = None) -> Standing:
    return Standing(rank, rank * 7, name, image, score)


def home(pages: Pages, *users: Standing, age: int | None = None) -> Page:
    return Page(pages.home(Top(list(users)), age_seconds=age))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_always_escaped(pages: Pages, name: str) -> None:
    ordinary = home(pages, user())
    page = home(pages, user(name=name))
    assert page.said("name")[0] == name
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in ordinary.tags]
    assert [set(attributes) for _, attributes in page.tags] == [set(found) for _, found in ordinary.tags]


def test_an_image_url_is_always_escaped() -> None:
    url = "https://img.example.com/a?b=1&c=2\"onerror='alert(1)'><script>"
    page = Page(Pages.load(image_sources=["https:"]).home(Top([user(image=url)])))
    (image,) = [attributes for tag, attributes in page.tags if tag == "img" and attributes["src"] == url]
    assert image["referrerpolicy"] == "no-referrer"
    assert image["loading"] == "lazy"
    assert image["alt"] == ""
    assert "onerror" not in image


@pytest.mark.parametrize(
    ("sources", "shown"),
    [
        ([], set()),
        (["https:"], {"https://img.example.com/1", "https://img.example.com.evil.example/2"}),
        (["https://img.example.com/"], {"https://img.example.com/1"}),
        (["http:"], {"http://10.0.0.1/reboot"}),
    ],
)
def test_images_are_loaded_only_from_the_sources_that_are_set(sources: list[str], shown: set[str]) -> None:
    urls = [
        "https://img.example.com/1",
        "https://img.example.com.evil.example/2",
        "http://10.0.0.1/reboot",
        "javascript:alert(1)",
    ]
    pages = Pages.load(image_sources=sources)
    page = home(pages, *(user(rank, image=url) for rank, url in enumerate(urls, 1)))
    assert set(page.with_attribute("src")) & set(urls) == shown
    policy = pages.home_policy.split("; ")
    assert " ".join(["img-src 'self'", *sources]) in policy


def test_an_empty_board_shows_how_to_create_a_user(pages: Pages) -> None:
    page = home(pages)
    assert "hidden" not in page.one("empty")
    assert "hidden" in page.one("board")
    command = shlex.split(page.blocks[0])
    assert command[:4] == ["curl", "-X", "POST", "https://board.example/users"]
    assert json.loads(command[-1]) == {"username": "Ada", "score": 100}


def test_a_board_with_users_hides_that_hint(pages: Pages) -> None:
    page = home(pages, user())
    assert "hidden" in page.one("empty")
    assert "hidden" not in page.one("board")


@pytest.mark.parametrize(
    ("age", "notice"),
    [
        (None, []),
        (0, ["These numbers are 0 seconds old: the database is unreachable."]),
        (1, ["These numbers are 1 second old: the database is unreachable."]),
        (86_400, ["These numbers are 86,400 seconds old: the database is unreachable."]),
    ],
)
def test_stale_numbers_show_their_age(pages: Pages, age: int | None, notice: list[str]) -> None:
    assert home(pages, user(), age=age).said("notice") == notice


def test_extreme_scores_and_ties_keep_the_given_order(pages: Pages) -> None:
    scores = [SCORE_MAX, 1000, 1000, 0, -1, SCORE_MIN]
    page = home(pages, *(user(rank, score=score) for rank, score in enumerate(scores, 1)))
    shown = [attributes["value"] for tag, attributes in page.tags if tag == "data"]
    assert shown[: len(scores)] == [str(score) for score in scores]
    # The text has groups of digits and a real minus sign.
    text = "".join(text for _, text in page.texts)
    assert "9,007,199,254,740,991" in text
    assert "\N{MINUS SIGN}9,007,199,254,740,991" in text


@pytest.mark.parametrize(
    ("name", "initial"),
    [
        ("ada", "A"),
        ("@babel/core", "B"),
        ("👩‍💻", "👩"),
        ("محمد", "م"),
        ("_._", "_"),
        ("x" * 128, "X"),
        ("😀" * 128, "😀"),
    ],
)
def test_any_name_has_an_initial_and_is_isolated_from_its_row(pages: Pages, name: str, initial: str) -> None:
    html = pages.home(Top([user(name=name)])).decode()
    assert f'<bdi class="name">{name}</bdi>' in html
    assert f"<span>{initial}</span></span>" in html


def test_a_full_board_is_an_accessible_table(pages: Pages) -> None:
    page = home(pages, *(user(rank) for rank in range(1, HOME_SIZE + 1)))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table")
    assert page.with_attribute("scope").count("row") == HOME_SIZE + 1
    assert page.one("board")["data-source"] == f"/leaderboard/top/{HOME_SIZE}"
    assert ("html", {"lang": "en"}) in page.tags


def both(pages: Pages) -> list[Page]:
    return [home(pages, user(image="https://img.example.com/1")), Page(pages.docs(document()))]


def test_everything_a_page_refers_to_is_shipped(pages: Pages) -> None:
    elsewhere = {"/", "/docs", "/openapi.json"}
    used = set()
    for page in both(pages):
        ids = page.with_attribute("id")
        assert len(ids) == len(set(ids))
        for address in page.with_attribute("src") + page.with_attribute("href"):
            if address.startswith("#"):
                assert address[1:] in ids
            else:
                assert address in pages.assets or address in elsewhere
                used.add(address)
        assert set(page.with_attribute("for")) <= set(ids)
        assert set(page.with_attribute("aria-labelledby")) <= set(ids)
    assert used == elsewhere | set(pages.assets)


def test_no_file_of_ours_names_another_host(pages: Pages) -> None:
    ours = {path: asset for path, asset in pages.assets.items() if "swagger" not in path}
    assert len(ours) == len(pages.assets) - 2
    for path, asset in ours.items():
        text = asset.content.decode().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"(https?|wss?):|@import|url\(|[\"']//", text), path


def test_nothing_is_inline_so_the_policies_can_forbid_it(pages: Pages) -> None:
    for policy in (pages.home_policy, pages.docs_policy):
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'")
        assert "unsafe" not in policy
    assert "trusted-types 'none'" in pages.home_policy
    for page in both(pages):
        assert not any(name == "style" or name.startswith("on") for _, found in page.tags for name in found)
        assert all("src" in attributes for tag, attributes in page.tags if tag == "script")
        assert "style" not in [tag for tag, _ in page.tags]


def test_an_asset_changes_its_path_with_its_content(pages: Pages) -> None:
    assert Pages.load().assets == pages.assets
    assert all(re.fullmatch(r"/assets/[a-z-]+\.[0-9a-f]{12}\.(css|js|svg)", path) for path in pages.assets)


def test_the_script_uses_the_ids_and_classes_of_the_page(pages: Pages) -> None:
    script = next(asset.content.decode() for path, asset in pages.assets.items() if "home" in path)
    page = home(pages, user())
    ids, classes = page.with_attribute("id"), " ".join(page.with_attribute("class")).split()
    assert set(re.findall(r'(?<!\.)get\("([\w-]+)"\)', script)) <= set(ids)
    assert set(re.findall(r'querySelector\("\.(\w+)', script)) <= set(classes)


def test_the_docs_list_every_problem_code(pages: Pages) -> None:
    page = Page(pages.docs(document()))
    text = "".join(text for _, text in page.texts)
    for kind in problems.KINDS:
        assert kind.code in page.with_attribute("id")
        assert kind.title in text
    assert "noscript" in [tag for tag, _ in page.tags]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_the_document_is_always_escaped(pages: Pages, text: str) -> None:
    ordinary = document()
    hostile = ordinary | {
        "info": dict.fromkeys(ordinary["info"], text),
        "x-problems": {text: {"status": 400, "title": text}},
    }
    page = Page(pages.docs(hostile))
    assert page.with_attribute("id").count(text) == 1
    assert [tag for tag, _ in page.tags].count("script") == 2


def test_the_docs_show_the_own_document() -> None:
    page = Page(Pages.load(root_path="/games/lb").docs(document()))
    assert page.with_attribute("data-source") == ["/games/lb/openapi.json"]


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("sheet", "pairs"),
    [
        (
            "home",
            [
                *(("on-accent", "accent"), ("warn", "warn-ground")),
                *product(("ink", "quiet", "accent"), ("ground", "card", "sunken", "mark")),
            ],
        ),
        ("docs", [*product(("ink", "quiet", "accent"), ("ground",)), ("ink", "mark")]),
    ],
)
def test_text_has_enough_contrast(pages: Pages, sheet: str, pairs: list[tuple[str, str]], scheme: int) -> None:
    css = next(
        asset.content.decode() for path, asset in pages.assets.items() if f"/{sheet}." in path and "css" in path
    )
    colours = dict(
        re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root {(.*?)}", css, re.DOTALL)[scheme])
    )
    for ink, ground in pairs:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
