"""The parts that every page of sattrt's is made of: one file that needs no network, for desktop, phone and paper, light and dark.

text = document("A map", [f"<h1>{escape(name)}</h1>", facts([("42 %", "of it forest")])])
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from importlib import resources

from PIL import Image


def document(title: str, parts: Iterable[str], script: str = "") -> str:
    """A whole page of these parts, which are HTML. title: plain text. script: JavaScript."""
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n"
        + (f"<script>\n{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def facts(listed: Iterable[tuple[str, str]]) -> str:
    """The figures that are looked for first, as cards: each with what it is, both plain text."""
    cards = "".join(f"<div class=fact><b>{escape(figure)}</b>{escape(text)}</div>" for figure, text in listed)
    return f"<div class=facts>{cards}</div>"


def figure(title: str, content: str, caption: str) -> str:
    """content, which is HTML, between its title and its caption, which are plain text."""
    return f"<figure><h3>{escape(title)}</h3><div>{content}</div><figcaption>{escape(caption)}</figcaption></figure>"


def definitions(entries: dict[str, object]) -> str:
    """Names and what they stand for, plain text."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(text))}</dd>" for name, text in entries.items()) + "</dl>"


def source(image: Image.Image) -> str:
    """The picture as the source of an <img>."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
