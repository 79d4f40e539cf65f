"""The rendered pages in Chromium, with every request that would leave the machine refused.

Run after ``make book``: ``make browser``, with the same ``BOOK=name`` if there was one.
"""

import functools
import http.server
import os
import re
import shutil
import threading

import pytest
import torch
import yaml
from playwright.sync_api import expect, sync_playwright

from soundgreeks import bachelier, heston, sobolev, weights
from soundgreeks.book import reference, runner

ROOT = runner.find_root()
HTML = ROOT / "build" / os.environ.get("BOOK", "book") / "_build/html"
CHAPTERS = {
    name: str(path.relative_to(ROOT / "book").with_suffix(".html"))
    for name, path in runner.chapters(ROOT / "book").items()
}
CONTENTS = [
    f"{entry['file']}.html"
    for part in yaml.safe_load((ROOT / "book/_toc.yml").read_text())["parts"]
    for entry in part["chapters"]
]
PAGES = ["intro.html", *(name for name in CONTENTS if not name.startswith("api/"))]
QUIET = ["background-networking", "component-update", "sync", "quic", "gpu"]

PROSE = """article => {
    const copy = article.cloneNode(true);
    copy.querySelectorAll("pre, mjx-container").forEach(part => part.remove());
    return copy.innerText;
}"""

SCROLLS = """table => {
    const box = table.parentElement;
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
    return {table: table.scrollWidth, box: box.clientWidth, scrolls: scrolls};
}"""


# What is wider than its box, with everything folded opened. Nobody should have to scroll sideways;
# only where the page is `narrow` may a table or a figure do so, each in a box of its own.
CUT_OFF = """narrow => {
    document.querySelectorAll("details").forEach(box => box.open = true);
    const article = document.querySelector("article");
    const right = article.getBoundingClientRect().right + 1;
    const left = article.getBoundingClientRect().left - 1;
    const wide = box => box.scrollWidth > box.clientWidth + 1;
    const found = [...article.querySelectorAll("pre")].filter(wide);
    if (!article.querySelector("dl.py")) // docstrings keep to lines of a terminal
        found.push(...article.querySelectorAll("mjx-container.sideways"));
    for (const equation of article.querySelectorAll("mjx-container")) {
        const box = equation.closest("div.math") ?? equation.closest("p, li, td");
        const edges = equation.getBoundingClientRect();
        if (narrow && equation.closest(".pst-scrollable-table-container")) continue;
        if (box?.offsetParent && (edges.right > right || edges.left < left)) found.push(box);
    }
    for (const table of article.querySelectorAll("table, img")) {
        const box = table.parentElement;
        const scrolls = narrow && ["auto", "scroll"].includes(getComputedStyle(box).overflowX)
            && box.getBoundingClientRect().right <= right;
        const out = table.getBoundingClientRect().right > right;
        if (table.offsetParent && out && !scrolls) found.push(table);
    }
    if (document.documentElement.scrollWidth > window.innerWidth) found.push(document.body);
    return found.map(box => `${box.tagName}: ${box.innerText.slice(0, 60)}`);
}"""

EVALUATE = """([name, cases]) => {
    const make = name === "true" ? Explorer.heston : Explorer.operator(SOUNDGREEKS[name]);
    return cases.map(([x, nu, tau, kappa, theta, sigma, rho, r]) => {
        const g = Explorer.greeks(make(nu, tau, {kappa, theta, sigma, rho, r}), x);
        return [g.price, g.delta, g.gamma];
    });
}"""

EVALUATE_BASKET = """([name, cases]) => {
    const {truth, network} = BasketExplorer;
    const price = name === "true" ? truth(BASKET.basket) : network(BASKET.networks[name]);
    return cases.map(([spots, direction]) => {
        const g = price(spots, direction);
        return [g.price, g.delta, g.gamma];
    });
}"""

# Visible text whose computed colour stands out too little from what is painted behind it, and
# figures that are not drawn on light paper: with everything folded opened.
UNREADABLE = """least => {
    document.querySelectorAll("details").forEach(box => box.open = true);
    const channels = color => {
        const found = color.match(/[\\d.]+/g).map(Number);
        const [r, g, b, a = 1] = found;
        return color.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
    };
    const light = color => color.slice(0, 3)
        .map(v => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3]));
    const contrast = (a, b) => {
        const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
        return (high + 0.05) / (low + 0.05);
    };
    function behind(box) {
        const layers = [];
        for (; box; box = box.parentElement) {
            layers.push(channels(getComputedStyle(box).backgroundColor));
            if (layers.at(-1)[3] === 1) break;
        }
        return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
    }
    const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let seen = 0;
    while (walk.nextNode()) {
        const text = walk.currentNode, box = text.parentElement, svg = box.closest("svg text");
        if (!text.data.trim() || box.closest("script, style, .headerlink")) continue;
        const all = {opacityProperty: true, visibilityProperty: true};
        if (!svg && !box.checkVisibility(all)) continue;
        const style = getComputedStyle(box), ground = behind(svg ? box.closest("svg") : box);
        const ink = over(channels(svg ? style.fill : style.color), ground);
        seen++;
        if (contrast(ink, ground) < least) found.push(`${box.tagName}: ${text.data.slice(0, 40)}`);
    }
    for (const image of document.querySelectorAll("article img")) {
        if (Math.min(...behind(image)) < 200) found.push(`figure: ${image.src}`);
        seen++;
    }
    return [seen, found];
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
    page.goto(address)  # until everything that it names is there
    if page.locator("script[src*=mathjax]").count():
        page.wait_for_function("() => window.MathJax?.startup?.promise !== undefined")
        page.evaluate("() => MathJax.startup.promise.then(() => true)")
    page.evaluate("() => document.fonts.ready.then(() => true)")
    page.wait_for_timeout(500)  # for what it would ask for later


def cut_off(page, narrow: bool) -> list[str]:
    """What is out of reach on a page, with everything folded opened."""
    page.evaluate("document.querySelectorAll('details').forEach(box => box.open = true)")
    page.wait_for_timeout(200)  # equations are fitted anew
    return page.evaluate(CUT_OFF, narrow)


@pytest.mark.parametrize("address", PAGES)
@pytest.mark.parametrize(("way", "width"), [("http", 1280), ("file", 390)])
def test_page_is_whole_without_a_network(page, server, address, way, width):
    """Everything that can be seen of a page as it comes, on a desk and from disk on a telephone."""
    page.set_viewport_size({"width": width, "height": 900})
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
    # Numbers are written as a person would.
    assert re.findall(r"\b\d[.\d]*e[-+]?\d+\b", text) == []
    assert re.findall(r"(?:^|[\s(])-\d\S*", text) == []
    assert cut_off(page, narrow=width < 600) == []


@pytest.mark.parametrize("address", CHAPTERS.values(), ids=CHAPTERS)
def test_chapter_equations_figures_and_solutions(page, address):
    visit(page, f"/{address}")
    equations = page.locator("article .eqno").count()
    assert equations > 0 or re.search(r"\d[b-z]_", address)  # a second page may have none
    assert page.locator("article figure figcaption").count() > 0
    solutions = page.locator(".solution.dropdown, .solution.admonition")
    assert solutions.count() > 0
    for solution in solutions.all():
        code = solution.locator(".highlight").first
        expect(code).to_be_hidden()
        solution.locator(".toggle-button, .admonition-title").first.click()
        expect(code).to_be_visible()
    if equations:
        page.locator("article a.reference.internal[href^='#eq']:visible").first.click()
        expect(page).to_have_url(re.compile("#equation"))


@pytest.mark.parametrize(("name", "address"), CHAPTERS.items(), ids=CHAPTERS)
def test_chapter_bears_its_number_launches_and_downloads(page, name, address):
    visit(page, f"/{address}")
    number = re.match(r"0*(\d+[a-z]?)_", name)[1]
    expect(page.locator("article h1")).to_have_text(re.compile(rf"^{number}\. \D"))
    entry = page.locator(".bd-sidebar-primary li.current.active a.current").first
    expect(entry).to_have_text(re.compile(rf"^\s*{number}\. \D"))
    links = [a.get_attribute("href") or "" for a in page.locator(".article-header-buttons a").all()]
    notebook = address.replace(".html", ".ipynb")
    for service in ("mybinder.org", "colab.research.google.com"):
        assert any(service in link and "sound-greeks" in link for link in links), links
    page.locator("button[aria-label='Download this page']").click()
    with page.expect_download() as download:
        page.locator(".btn-download-source-button").click()
    assert download.value.suggested_filename == notebook.rpartition("/")[2]


ROWS = """() => [...MathJax.startup.document.math]
    .filter(item => item.math.startsWith("\\\\begin{gathered}"))
    .map(item => [item.math, MathJax.startup.toMML(item.root)])
    .map(([tex, drawn]) => [tex.split("[").length, drawn.split(">[<").length])
"""

LOOSE = """() => [...document.querySelectorAll("article span.math")]
    .filter(math => /^[.,;:!?)]/.test(math.nextSibling?.data ?? ""))
    .filter(math => getComputedStyle(math.parentElement).whiteSpace !== "nowrap").length
"""


HIDDEN = """() => [...document.querySelectorAll("article div.math")].filter(box => {
    const edges = box.getBoundingClientRect(), math = box.querySelector("mjx-math");
    const {left, right} = math.getBoundingClientRect();
    return left < edges.left - 1 || right > edges.right + 1;
}).map(box => box.id || box.innerText)"""


def test_equations_are_whole_when_they_are_folded(page):
    """A row of an equation may begin with a bracket, and no line with a full stop."""
    page.set_viewport_size({"width": 390, "height": 900})
    visit(page, (HTML / CHAPTERS["07_iasa"]).as_uri())
    assert cut_off(page, narrow=True) == []
    rows = page.evaluate(ROWS)
    assert any(written > 1 for written, _ in rows)
    assert all(written == drawn for written, drawn in rows)
    assert page.locator(".bound").count() > 10 and page.evaluate(LOOSE) == 0


def test_equations_fit_once_the_sidebar_has_come(page):
    page.set_viewport_size({"width": 900, "height": 900})
    visit(page, (HTML / CHAPTERS["03_residual_and_rar"]).as_uri())
    cut_off(page, narrow=False)  # opens what is folded
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_timeout(1000)
    assert page.evaluate(HIDDEN) == []


def test_descriptions_of_the_reference_are_no_types():
    for name in CONTENTS:
        if name.startswith("api/"):
            types = re.findall(r">Type<.*?<p>([^<]*)", (HTML / name).read_text(), re.DOTALL)
            assert [text for text in types if re.search(r"\w \w", text)] == [], name


def test_search_finds_a_chapter_from_a_page(page):
    visit(page, "/intro.html")
    page.locator("button.search-button:visible, .search-button-field:visible").first.click()
    field = page.locator("input[type=search]:visible").first
    field.fill("Feller")
    field.press("Enter")
    page.wait_for_url(re.compile("search.html"))
    result = page.locator("#search-results a", has_text="1. The Heston transform").first
    result.click()
    expect(page.locator("article h1")).to_contain_text("Heston")


def test_the_contents_lead_from_page_to_page(page):
    page.goto("/")  # which sends on to the introduction
    expect(page).to_have_url(re.compile("intro"))
    expect(page.locator("article h1")).to_contain_text("Sound Greeks")
    for name in CONTENTS:
        page.locator("a.right-next").click()
        expect(page).to_have_url(re.compile(name))
    assert page.locator("a.right-next").count() == 0


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


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("address", [name for name in CONTENTS if name not in PAGES])
def test_nothing_of_the_reference_is_cut_off(page, address, width):
    page.set_viewport_size({"width": width, "height": 900})
    visit(page, f"/{address}")
    assert cut_off(page, narrow=width < 600) == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("mode", ["dark", "light"])
@pytest.mark.parametrize(
    "address", ["intro.html", CHAPTERS["07_iasa"], "scoreboard.html", "basket.html"]
)
def test_text_and_figures_can_be_read_in_both_modes(page, address, mode, width):
    page.add_init_script(f"for (const k of ['mode', 'theme']) localStorage.setItem(k, '{mode}')")
    page.set_viewport_size({"width": width, "height": 900})
    visit(page, f"/{address}")
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    page.wait_for_timeout(300)  # colours fade from one mode to the other
    seen, unreadable = page.evaluate(UNREADABLE, 4.5)
    assert seen > 50 and unreadable == []


def test_text_that_cannot_be_read_would_be_seen(page):
    visit(page, "/intro.html")
    page.evaluate("document.querySelector('article p').style.color = '#999'")
    _, unreadable = page.evaluate(UNREADABLE, 4.5)
    assert len(unreadable) > 0


def test_checks_show_what_was_measured(page):
    visit(page, f"/{CHAPTERS['01_heston_transform']}")
    lines, tables = page.locator("div.check"), page.locator("details.checks")
    assert lines.count() > 0 and tables.count() > 0
    assert re.search(r"✓ .*: [−.\d]+(\s×\s10−?\d+)? \(\w+: ", lines.first.inner_text())
    expect(tables.first.locator("table")).to_be_hidden()
    tables.first.locator("summary").click()
    expect(tables.first.locator("table")).to_be_visible()
    assert "ok: heston." not in page.locator("article").inner_text()


@pytest.mark.parametrize("name", ["sound_small", "deepsvm", "true"])
def test_the_explorer_computes_what_the_core_computes(page, name):
    visit(page, "/explorer.html")
    source, n = torch.Generator().manual_seed(7), 1000
    p = heston.sample_parameters(n, generator=source)
    u = torch.rand(3, n, generator=source, dtype=torch.float64)
    x, nu, tau = 4 * u[0] - 2, 0.01 + 0.39 * u[1], 0.005 + 0.995 * u[2]
    cases = torch.stack([x, nu, tau, *p], dim=1).tolist()
    found = torch.tensor(page.evaluate(EVALUATE, [name, cases]), dtype=torch.float64)
    core = heston if name == "true" else weights.load(name).double()
    g = core.greeks(x, nu, tau, p)
    worst = (found - torch.stack([g.price, g.delta, g.gamma], dim=1)).abs().max()
    assert worst < 1e-10  # the same numbers in the same precision


def move_by_keyboard(page, slider) -> None:
    """Twenty steps of a slider: the price follows, the address keeps it, six charts stay."""
    price = page.locator("#explorer-table td").first
    before, old = price.inner_text(), page.url
    slider.focus()
    for _ in range(20):
        slider.press("ArrowRight")
    expect(price).not_to_have_text(before)
    expect(page).not_to_have_url(old)
    assert page.locator(".uplot").count() == 6


@pytest.mark.parametrize("width", [1280, 390])
def test_the_explorer_obeys_the_keyboard_and_keeps_its_state(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    visit(page, (HTML / "explorer.html").as_uri() + "#tau=0.25")
    slider = page.get_by_label("τ")
    assert float(slider.input_value()) == pytest.approx(0.25, abs=1e-3)
    move_by_keyboard(page, slider)
    link = page.locator("article a", has_text="chapter 5")
    link.click()
    expect(page.locator("article h1")).to_contain_text("Greeks noise")


@pytest.mark.parametrize("name", ["true", "oversized", "pruned", "tuned"])
def test_the_basket_page_computes_what_the_core_computes(page, name):
    """Price, Delta and Gamma at 1,000 spots, half of them along all assets, half along one."""
    visit(page, (HTML / "basket.html").as_uri())
    exact, n = bachelier.Basket.random(), 1000
    spots = exact.spots(n, generator=torch.Generator().manual_seed(7))
    lines = torch.ones(n, 7, dtype=torch.float64)
    lines[n // 2 :] = torch.eye(7).double()[torch.arange(n // 2) % 7]
    cases = [list(case) for case in zip(spots.tolist(), lines.tolist(), strict=True)]
    found = torch.tensor(page.evaluate(EVALUATE_BASKET, [name, cases]), dtype=torch.float64)
    files = {"oversized": "decay", "pruned": "IASA.0", "finetuned": "model.sobolev.pruned.0"}
    file = {"tuned": "finetuned"}.get(name, name)
    if name == "true":
        price, along = exact.greeks(spots), lines @ exact.weights
        core = [price.price, along * price.delta, along**2 * price.gamma]
    else:
        network = weights.read_networks(file)[0][files[file]].double()
        g = sobolev.differentiate(network, spots, order=2, directions=torch.eye(7).double())
        bend = (g.curvature * lines[:, None]).sum(2)
        core = [g.value, (g.gradient * lines).sum(1), (bend * lines).sum(1)]
    assert (found - torch.stack(core, dim=1)).abs().max() < 1e-10


@pytest.mark.parametrize("width", [1280, 390])
def test_the_basket_page_obeys_the_keyboard_and_keeps_its_state(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    visit(page, (HTML / "basket.html").as_uri() + "#F3=60&line=3")
    slider, line = page.get_by_label("F3"), page.get_by_label("Along the axis")
    assert float(slider.input_value()) == pytest.approx(60, abs=0.1)
    assert line.input_value() == "3"
    move_by_keyboard(page, slider)
    delta = page.locator("#explorer-table td").nth(1)
    one, _ = delta.inner_text(), line.focus()
    line.press("Home")
    expect(delta).not_to_have_text(one)
    expect(page).to_have_url(re.compile("line=0"))
    warning = page.locator("#explorer-warning")
    expect(warning).to_be_empty()
    page.get_by_label("F5").press("Home")
    page.get_by_label("F7").press("End")
    expect(warning).to_contain_text("training spots")


def test_an_outside_request_would_be_seen(browser, server):
    """The guard works: a page that asks for something outside is reported."""
    context, refused = browser.new_context(), []
    context.route("**/*", lambda r: (refused.append(r.request.url), r.abort()))
    page = context.new_page()
    page.set_content("<img src='http://example.org/a.png'>")
    page.wait_for_timeout(200)
    assert refused == ["http://example.org/a.png"]
