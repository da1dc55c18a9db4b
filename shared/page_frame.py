"""How every page that stands alone in one file begins (Jinja2): no script, nothing fetched, one dress on screen, in the dark, on paper.

A Python file, because a Flower app bundle carries no other kind of file.
"""
# ruff: noqa: E501

from __future__ import annotations

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'@IMAGES@">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0; --fill: #f4f6f8;
  @LIGHT@ }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --soft: #9aa4ae; --line: #353c44; --fill: #1d2226;
  @DARK@ } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --fill: #f4f4f4;
  @PRINTED@ }
  section, figure, table, tr, li { break-inside: avoid; } main { max-width: none; padding: 0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.2rem 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 0.4rem; }
h3 { font-size: 1rem; margin: 1rem 0 0.3rem; } p { margin: 0.4rem 0; max-width: 46rem; } .soft { color: var(--soft); font-size: 0.9rem; }
.banner { border: 1px solid; border-radius: 6px; padding: 0.55rem 0.9rem; margin: 0 0 0.6rem; max-width: none; }
.verdict { border-radius: 6px; padding: 0.7rem 1rem; font-weight: 600; max-width: none; }
.mark { display: inline-block; border-radius: 4px; padding: 0 0.5rem; font-size: 0.85rem; font-weight: 600; white-space: nowrap; }
.figures { display: flex; flex-wrap: wrap; gap: 0.8rem; margin: 1rem 0; }
.figure-box { background: var(--fill); border-radius: 6px; padding: 0.7rem 1rem; flex: 1 1 13rem; }
.figure-box b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; list-style: none; padding: 0; margin: 0.4rem 0; font-size: 0.9rem; }
.legend svg { display: inline-block; vertical-align: -2px; margin-right: 0.35rem; } svg { display: block; max-width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.4rem 0; }
th, td { padding: 0.28rem 0.9rem 0.28rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: baseline; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; } td.number, th.number { text-align: right; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0.6rem 0; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@STYLE@
</style>
</head>
"""


def page_head(title: str, *, light: str, dark: str, printed: str, style: str, images: bool = False) -> str:
    """The page up to its body. `title` and `style` may hold Jinja2; `light`, `dark` and `printed` are the page's own colours as custom
    properties; with `images` it may show pictures that stand in it as data."""
    return (
        _FRAME.replace("@IMAGES@", "; img-src data:" if images else "")
        .replace("@TITLE@", title)
        .replace("@LIGHT@", light)
        .replace("@DARK@", dark)
        .replace("@PRINTED@", printed)
        .replace("@STYLE@", style.strip())
    )
