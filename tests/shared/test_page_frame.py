"""The frame of the pages that stand alone: nothing of it is left unfilled, and pictures are allowed only where the page has some."""

from __future__ import annotations

from shared.page_frame import page_head


def test_a_page_fetches_nothing_and_shows_pictures_only_where_it_has_some() -> None:
    colours = {"light": "--mine: #111;", "dark": "--mine: #222;", "printed": "--mine: #333;"}
    plain = page_head("A {{ title }}", **colours, style=".mine { color: var(--mine); }")
    assert "<title>A {{ title }}</title>" in plain
    assert all(plain.count(one) == 1 for one in (*colours.values(), ".mine {"))
    assert "default-src 'none'; style-src 'unsafe-inline'\">" in plain
    assert not {"@IMAGES@", "@TITLE@", "@LIGHT@", "@DARK@", "@PRINTED@", "@STYLE@"} & set(plain.split())
    assert "http" not in plain.replace("http-equiv", "")
    pictured = page_head("B", **colours, style="", images=True)
    assert "style-src 'unsafe-inline'; img-src data:\">" in pictured
