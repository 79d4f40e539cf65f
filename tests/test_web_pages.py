"""What the build makes of numbers, titles and links, without a browser."""

import json
import re
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from docutils import nodes
from docutils.utils import new_document

from soundgreeks.book import runner

ROOT = runner.find_root()
BOOK = ROOT / "book"
CHAPTERS = runner.chapters(BOOK)


def as_html(found) -> str:
    return "".join(
        f"<sup>{node.astext()}</sup>" if isinstance(node, nodes.superscript) else node.astext()
        for node in found
    )


@pytest.mark.parametrize(
    ("typed", "set_as"),
    {
        "2.2e-03": "2.2 × 10<sup>−3</sup>",
        "by -3.2e-13, or": "by −3.2 × 10<sup>−13</sup>, or",
        "1e-07": "10<sup>−7</sup>",
        "1.0e-07": "1.0 × 10<sup>−7</sup>",
        "3.4e-02": "0.034",
        "1.20e+00": "1.20",
        "2.5e+03 and 6e+04": "2,500 and 6 × 10<sup>4</sup>",
        "0.0e+00": "0",
        "≤ 8e-12)": "≤ 8 × 10<sup>−12</sup>)",
        "[-1, 1]": "[−1, 1]",
        "-0.88 to -0.2": "−0.88 to −0.2",
        "6 x 128 nodes, 6.5e-02 x 3": "6 × 128 nodes, 0.065 × 3",
        "51.8% of 40 %": "51.8 % of 40 %",
    }.items(),
)
def test_numbers_are_set_as_a_person_would(pages, typed, set_as):
    assert as_html(pages.typeset(typed)).replace("\N{NO-BREAK SPACE}", " ") == set_as


@pytest.mark.parametrize(
    "typed",
    ["2002-07-05", "3-3-1-2-2-2", "float-32", "x^{-2}", "a2e-3", "1.5e3m", "0 x", "x%", "e-5"],
)
def test_what_is_no_number_stays(pages, typed):
    assert as_html(pages.typeset(typed)) == typed


def test_code_and_formulas_stay(pages):
    document = new_document("page")
    document += nodes.paragraph("", "", nodes.Text("-1e-05 "), nodes.literal("", "-1e-05"))
    document += nodes.literal_block("", "-1e-05")
    document += nodes.paragraph("", "", nodes.math("", "-1"), nodes.inline("", "7e-9"))
    pages.Numbers(document).run()
    assert document.astext().replace("\N{NO-BREAK SPACE}", " ").split("\n\n") == [
        "−10−5 -1e-05",
        "-1e-05",
        "-17 × 10−9",
    ]


@pytest.mark.parametrize(
    ("name", "number"), {"00_why": "0", "01_a": "1", "01b_c": "1b", "10_z": "10"}.items()
)
def test_a_chapter_is_called_by_its_file(pages, name, number):
    assert pages.chapter_number(name) == number
    notebook = {"cells": [{"cell_type": "markdown", "source": "# The title\n\nText."}]}
    source = [json.dumps(notebook)]
    app = SimpleNamespace(env=SimpleNamespace(doc2path=lambda docname: f"{docname}.ipynb"))
    pages.rewrite(app, f"part/{name}", source)
    first = json.loads(source[0])["cells"][0]["source"]
    assert first.startswith(f"# {number}. The title\n") and first.endswith("Text.")


def test_a_file_without_a_number_is_refused(pages):
    with pytest.raises(ValueError, match="07_name"):
        pages.chapter_number("intro")


def texts():
    """The prose of each page, by path: markdown files and the markdown cells of the chapters."""
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    files = [e["file"] for part in contents["parts"] for e in part["chapters"] if "file" in e]
    found = {BOOK / f"{f}.md": "" for f in ("intro", *files) if (BOOK / f"{f}.md").is_file()}
    found = {path: path.read_text() for path in found}
    for path in CHAPTERS.values():
        cells = nbformat.read(path, 4).cells
        found[path] = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return found


LINK = re.compile(r"\[[Cc]hapter[ \xa0](\d+[a-z]?)\]\(([^)#]+)")


def test_links_to_chapters_say_the_number_of_the_file(pages):
    links = [(path, *found) for path, text in texts().items() for found in LINK.findall(text)]
    assert len(links) > 40
    wrong = []
    for path, number, target in links:
        name = target.rpartition("/")[2].removesuffix(".ipynb").removesuffix(".html")
        if pages.chapter_number(name) != number:
            wrong.append((path.name, number, target))
    assert wrong == []


def test_the_glossary_is_in_order_and_each_term_has_its_chapter():
    text = (BOOK / "glossary.md").read_text()
    entries = re.findall(r"^(\S.*)\n  (.+)$", text.partition("{glossary}\n")[2], re.MULTILINE)
    terms = [term.lower() for term, _ in entries]
    assert len(terms) >= 40 and terms == sorted(terms)
    for term, meaning in entries:
        (target,) = [target for _, target in LINK.findall(meaning)]
        assert (BOOK / target).is_file(), term


def test_the_weights_of_the_basket_page_are_small_and_whole(pages):
    text = pages.basket_weights()
    assert len(text) < 1.5e6
    found = json.loads(text.removeprefix("window.BASKET = ").removesuffix(";\n"))
    assert set(found["networks"]) == {"oversized", "pruned", "tuned"}
    shapes = [
        [t["shape"] for k, t in net["tensors"].items() if k.endswith("weight")]
        for net in found["networks"].values()
    ]
    assert [len(s) for s in shapes] == [7, 7, 7]
    assert [shape[0] for shape in shapes[2]] == [3, 3, 1, 2, 2, 2, 1]


def test_the_map_leads_to_every_chapter_under_its_number(pages):
    boxes = re.findall(
        r'<a href="([^"]+)"[^>]*><rect[^>]*/><text[^>]*>(\w+)</text>', pages.chapter_map(BOOK)
    )
    expected = {
        path.relative_to(BOOK).with_suffix(".html").as_posix(): pages.chapter_number(name)
        for name, path in CHAPTERS.items()
    }
    assert dict(boxes) == expected and len(boxes) == len(expected)


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_map_leads_from_every_prerequisite(pages, name):
    number = pages.chapter_number(name)
    if number not in pages.MAP:
        pytest.skip("a second page, or not on the map yet")
    arrows = [pair.split("-") for pair in (*pages.NEEDS, *pages.DOWN)]
    before, found = {number}, set()
    while before != found:
        before, found = before | {a for a, b in arrows if b in before}, before
    text = "".join(json.loads(CHAPTERS[name].read_text())["cells"][0]["source"])
    text = re.search(r"\*\*Prerequisites\.\*\*(.*?)(\*\*Time|\n\n|$)", text, re.DOTALL)[1]
    text = re.sub(r"\]\([^)]*\)|\{\w+\}`[^`]*`", "", text)
    asked = set(re.findall(r"\b(\d+)b?\b", text))
    assert asked <= before, f"chapter {number} asks for {sorted(asked - before)}"


def test_the_map_takes_new_chapters_and_second_pages(pages, monkeypatch):
    names = [*CHAPTERS, "02c_more", "99_new", "99b_newer"]
    paths = {name: BOOK / f"part/{name}.ipynb" for name in names}
    monkeypatch.setattr(pages.runner, "chapters", lambda book: paths)
    found = re.findall(r"<text[^>]*number[^>]*>(\w+)</text>", pages.chapter_map(BOOK))
    assert sorted(found) == sorted(pages.chapter_number(name) for name in names)
