"""The rendered pages in Chromium, with every request that would leave the machine refused.

Run after ``make book``: ``make browser``.
"""

import functools
import http.server
import re
import shutil
import threading

import pytest
from playwright.sync_api import expect, sync_playwright

from soundgreeks.book import reference, runner

ROOT = runner.find_root()
HTML = ROOT / "build/book/_build/html"
CHAPTERS = {
    name: str(path.relative_to(ROOT / "book").with_suffix(".html"))
    for name, path in runner.chapters(ROOT / "book").items()
}
PAGES = ["intro.html", "notation.html", "scoreboard.html", "status.html", "bibliography.html"]
PAGES += CHAPTERS.values()
QUIET = ["background-networking", "component-update", "sync", "quic", "gpu"]

PROSE = """article => {
    const copy = article.cloneNode(true);
    copy.querySelectorAll("pre").forEach(code => code.remove());
    return copy.innerText;
}"""

SCROLLS = """table => {
    const box = table.parentElement;
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
    return {table: table.scrollWidth, box: box.clientWidth, scrolls: scrolls};
}"""


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def server():
    assert HTML.is_dir(), "no rendered book: make book first"
    handler = functools.partial(Handler, directory=HTML)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """A page whose outside requests are refused and reported, as are errors of its scripts."""
    context = browser.new_context(base_url=server, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.outside, page.complaints = [], []

    def route(route):
        if route.request.url.startswith((server, "data:", "blob:", "file:")):
            return route.continue_()
        page.outside.append(route.request.url)
        return route.abort()

    def complain(message):
        # Chromium will not fetch a font from disk ahead of need; it does when the font is needed.
        where = message.location["url"]
        ahead = where.startswith("file:") and ("font at" in message.text or "webfonts" in where)
        if not ahead:
            page.complaints.append(message.text)

    context.route("**/*", route)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda m: m.type == "error" and complain(m))
    page.on("response", lambda r: r.status >= 400 and page.complaints.append(f"{r.status} {r.url}"))
    yield page
    assert page.outside == []
    assert page.complaints == []
    context.close()


def visit(page, address: str) -> None:
    page.goto(address)
    page.wait_for_load_state("networkidle")
    if page.locator("script[src*=mathjax]").count():
        page.wait_for_function("() => window.MathJax?.startup?.promise !== undefined")
        page.evaluate("() => MathJax.startup.promise")


@pytest.mark.parametrize("address", PAGES)
@pytest.mark.parametrize("way", ["http", "file"])
def test_page_is_whole_without_a_network(page, server, address, way):
    visit(page, f"/{address}" if way == "http" else (HTML / address).as_uri())
    expect(page.locator("article h1").first).to_be_visible()
    formulas = page.locator("article .math, main .math")
    assert page.locator("mjx-container").count() >= formulas.count()
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate(
        "[...document.fonts].some(f => /Awesome/.test(f.family) && f.status == 'loaded')"
    )
    for image in page.locator("article img").all():
        assert image.evaluate("i => i.complete && i.naturalWidth > 0")
        alt = image.get_attribute("alt") or ""
        assert alt.strip() and not alt.endswith(".png") and "_images" not in alt
    text = page.locator("article").evaluate(PROSE)
    assert not re.search(r"\?\?\?|\{(eq|numref|glue|cite|doc)[:}]|None\b: ", text)


@pytest.mark.parametrize("address", CHAPTERS.values(), ids=CHAPTERS)
def test_chapter_equations_figures_and_solutions(page, address):
    visit(page, f"/{address}")
    assert page.locator("article .eqno").count() > 0
    assert page.locator("article figure figcaption").count() > 0
    solutions = page.locator(".solution.dropdown, .solution.admonition")
    assert solutions.count() > 0
    for solution in solutions.all():
        code = solution.locator(".highlight").first
        expect(code).to_be_hidden()
        solution.locator(".toggle-button, .admonition-title").first.click()
        expect(code).to_be_visible()
    reference = page.locator("article a.reference.internal[href^='#eq']").first
    reference.click()
    assert re.search(r"#equation", page.url)


@pytest.mark.parametrize("address", CHAPTERS.values(), ids=CHAPTERS)
def test_chapter_launches_and_downloads(page, address):
    visit(page, f"/{address}")
    links = [a.get_attribute("href") or "" for a in page.locator(".article-header-buttons a").all()]
    notebook = address.replace(".html", ".ipynb")
    for service in ("mybinder.org", "colab.research.google.com"):
        assert any(service in link and "sound-greeks" in link for link in links), links
    page.locator("button[aria-label='Download this page']").click()
    with page.expect_download() as download:
        page.locator(".btn-download-source-button").click()
    assert download.value.suggested_filename == notebook.rpartition("/")[2]


def test_search_finds_a_chapter_from_a_page(page):
    visit(page, "/intro.html")
    page.locator("button.search-button:visible, .search-button-field:visible").first.click()
    field = page.locator("input[type=search]:visible").first
    field.fill("Feller")
    field.press("Enter")
    page.wait_for_url(re.compile("search.html"))
    result = page.locator("#search-results a", has_text="Heston transform").first
    result.click()
    expect(page.locator("article h1")).to_contain_text("Heston")


def test_the_contents_lead_from_page_to_page(page):
    visit(page, "/")
    expect(page.locator("article h1")).to_contain_text("Sound Greeks")
    for _ in CHAPTERS:
        page.locator("a.right-next").click()
    expect(page).to_have_url(re.compile(list(CHAPTERS.values())[-1]))


@pytest.mark.parametrize("width", [1280, 390])
def test_scoreboard_has_every_number_and_no_failure(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    visit(page, "/scoreboard.html")
    tables = page.locator("article table")
    counts = reference.counts(reference.load().values())
    assert tables.count() == len(counts)
    for table, evidence in zip(tables.all(), counts, strict=True):
        expect(page.locator("article h2", has_text=evidence.capitalize())).to_be_visible()
        assert table.locator("tbody tr").count() >= counts[evidence]  # one number, many chapters
        agrees = [cell.strip() for cell in table.locator("td:nth-child(4)").all_inner_texts()]
        assert set(agrees) <= {"yes", "not judged"}
        edges = table.evaluate(SCROLLS)  # nothing of the table is out of reach
        assert edges["table"] <= edges["box"] or edges["scrolls"], edges
    for count in counts.values():
        expect(page.locator("article")).to_contain_text(f"{count} numbers: ")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_an_outside_request_would_be_seen(browser, server):
    """The guard works: a page that asks for something outside is reported."""
    context, refused = browser.new_context(), []
    context.route("**/*", lambda r: (refused.append(r.request.url), r.abort()))
    page = context.new_page()
    page.set_content("<img src='http://example.org/a.png'>")
    page.wait_for_timeout(200)
    assert refused == ["http://example.org/a.png"]
