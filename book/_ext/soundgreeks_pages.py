"""What the pages hold beyond the notebooks: the tables of the record, and compact checks.

The stored text of a check names no measured digit, so that every machine prints the same and the
tests can compare it. A reader wants that digit: it travels in the output's metadata, and here
becomes a line, or for the checks of one cell a folded table. Numbers are set here as a person would
write them, and chapters get the number of their file.
"""

import base64
import gc
import json
import re
from collections import Counter
from pathlib import Path

import nbformat
from docutils import nodes
from scipy.stats import chi2
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective

from soundgreeks import bachelier, weights
from soundgreeks.book import reference, runner

HEADER = ["number", "reference", "the book gets", "agrees"]
PAPER = ["the paper has", "ours is"]

CHAPTER = re.compile(r"0*(\d+[a-z]?)_")


def chapter_number(name: str) -> str:
    """What a chapter is called by: ``07_iasa`` -> "7", ``07b_sizes`` -> "7b", ``00_why`` -> "0"."""
    found = CHAPTER.match(name)
    if not found:
        raise ValueError(f"a chapter's file must be called like 07_name or 07b_name, got {name!r}")
    return found[1]


def measured(book: Path) -> dict[str, list[tuple[float, bool, str]]]:
    """For each key what the stored outputs in `book` got, whether it was judged, and a link."""
    found: dict[str, list[tuple[float, bool, str]]] = {}
    for name, path in runner.chapters(book).items():
        number = chapter_number(name)
        link = f"[chapter\N{NO-BREAK SPACE}{number}](/{path.relative_to(book).as_posix()})"
        for verdict in runner.verdicts(nbformat.read(path, as_version=4)):
            key = verdict["key"]
            if key not in reference.load():
                raise ValueError(f"{path.name} checks {key}, which reference.toml does not hold")
            found.setdefault(key, []).append((verdict["value"], verdict["judged"], link))
    return found


def scoreboard(book: Path, evidence: str) -> list[list[str]]:
    """The header and one row a reference number with this evidence and chapter that checks it.

    Measured values come from the stored outputs of the notebooks in `book`, the rest from
    reference.toml; the table holds nothing of its own. The two columns about the paper's own number
    are there if any of these numbers has one.
    """
    entries = [e for e in reference.load().values() if e.evidence == evidence]
    papers = any(entry.paper for entry in entries)
    found = measured(book)
    rows = [[*HEADER, *PAPER * papers, "source", "chapter"]]
    for entry in entries:
        for value, judged, link in found.get(entry.key, [(None, False, "")]):
            rows.append([entry.what, claim(entry), *verdicts(entry, value, judged)])
            rows[-1] += [entry.paper or "–", against(entry, value, judged)] * papers
            rows[-1] += [entry.source, link]
    return rows


def compact(row: list[str]) -> list[str]:
    """A row of the scoreboard with its last two cells, source and chapter, below its first."""
    what, *values, source, chapter = row
    return [f"{what}<br><small>{source}; {chapter}</small>", *values]


def verdicts(entry: reference.Reference, value: float | None, judged: bool) -> list[str]:
    """What the book gets, and whether that lies within our tolerance."""
    if value is None:
        return ["–", "not checked yet"]
    return [f"{value:.15g}", ["**no**", "yes"][entry.holds(value)] if judged else "not judged"]


def against(entry: reference.Reference, value: float | None, judged: bool) -> str:
    """The verdict against the paper's own number, or a dash."""
    if not entry.paper or value is None or not judged:
        return "–"
    word = entry.against_paper(value)
    return f"**{word}**" if word == "worse" else word


def summary(book: Path) -> str:
    """The counts and shares by evidence, and how the numbers compare with the papers'."""
    counts = reference.counts(reference.load().values())
    total = sum(counts.values())
    shares = [f"{n} ({n / total:.0%}) {name}" for name, n in counts.items()]
    rest = (counts["external"] + counts["independent"]) / total
    tables = (scoreboard(book, evidence) for evidence in counts)
    words = [row[len(HEADER) + 1].strip("*") for table in tables for row in table[1:]]
    papers = ", ".join(f"{words.count(word)} {word}" for word in ("better", "same", "worse"))
    return (
        f"**{total} numbers: {', '.join(shares)}.** So {rest:.0%} are held "
        f"against something that is not an earlier run of ours. Beside the papers' own numbers, "
        f"what the book gets is: {papers}."
    )


def claim(entry: reference.Reference) -> str:
    """``value ± tolerance``, or the bound of a one-sided claim with its leeway."""
    value, slack = f"{entry.rounded(entry.value):.15g}", f"{entry.tolerance:.3g}"
    unit = "" if entry.unit == "1" else f" {entry.unit}"
    if entry.kind == "equal":
        return f"{value} ± {slack}{unit}"
    sign = {"at most": "≤", "at least": "≥"}[entry.kind]
    if entry.value == 0:
        return f"{sign} {slack}{unit}"
    return f"{sign} {value}{unit}" + (f" (leeway {slack})" if entry.tolerance else "")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A MyST table as lines of text."""
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"rows must have {len(header)} cells: {header}")
    body = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]


class Scoreboard(SphinxDirective):
    """The table of one evidence, after its count; without an argument, the counts of all."""

    optional_arguments = 1

    def run(self):
        self.env.note_reread()
        book = Path(self.env.srcdir)
        if not self.arguments:
            return self.parse_text_to_nodes(summary(book))
        (evidence,) = self.arguments
        if evidence not in reference.EVIDENCE:
            raise self.error(
                f"evidence must be one of {list(reference.EVIDENCE)}, got {evidence!r}"
            )
        count = reference.counts(reference.load().values())[evidence]
        rows = [compact(row) for row in scoreboard(book, evidence)]
        lines = [
            f"{count} numbers: {reference.EVIDENCE[evidence]}.",
            "",
            ":::{container} scoreboard",
        ]
        lines += [*table(rows[0], rows[1:]), ":::"]
        return self.parse_text_to_nodes("\n".join(lines))


MAP = {  # where a chapter stands on the map, in which colour, and what is written there
    "0": (20, 150, "b", "What a wrong", "Gamma costs"),
    "1": (170, 60, "o", "Heston", "transform"),
    "2": (310, 60, "o", "The ansatz", ""),
    "3": (450, 60, "o", "Residual and", "refinement"),
    "4": (590, 20, "o", "L-BFGS", ""),
    "5": (590, 100, "o", "Greeks", "noise"),
    "6": (170, 200, "p", "Interval", "arithmetic"),
    "7": (380, 200, "p", "Significance", ""),
    "8": (170, 290, "p", "Pathwise", "Monte Carlo"),
    "9": (380, 290, "p", "Smoothing", ""),
    "10": (590, 245, "p", "Sobolev", "fine-tuning"),
    "11": (310, 390, "s", "The smile in", "the anchor"),
    "12": (450, 390, "s", "The error", "knows itself"),
    "13": (590, 390, "s", "Sobolev and", "the equation"),
    "14": (310, 475, "s", "Against", "others"),
    "15": (590, 475, "m", "Calibration", ""),
    "16": (590, 560, "m", "No formula", ""),
    "17": (450, 560, "m", "Other claims", ""),
}
BELOW = 640  # where the rows of chapters without a place begin
NEEDS = "0-1 0-6 0-8 1-2 2-3 3-4 3-5 6-7 8-9 7-10 9-10 11-12 12-13".split()
DOWN = {  # arrows from part to part, past the boxes between
    "1-8": "M262 120C306 190 306 270 283 306",
    "2-9": "M362 120V240C362 268 398 262 398 287",
    "2-11": "M340 120V387",
    "3-12": "M515 120V387",
    "5-13": "M700 130C718 180 718 330 690 387",
    "8-12": "M225 350C225 364 233 370 246 370H466C478 370 484 376 484 387",
    "10-17": "M618 305C618 345 582 345 582 385V500C582 535 545 540 533 557",
    "10-14": "M608 305C608 345 575 345 575 385V455C575 510 520 518 423 518",
    "11-14": "M365 450V472",
    "12-15": "M505 450C505 480 530 492 588 492",
    "12-17": "M485 450V557",
    "15-16": "M645 535V557",
}
MAP_TITLE = (
    "Which chapter needs which: 0 leads to the first two parts; 1, 2, 3 in a line, then 4 and 5; "
    "6 before 7, 8 before 9; 8 needs 1 and 9 needs 2; 10 needs 7 and 9; in the third part 11 needs "
    "2, 12 needs 3, 8 and 11, 13 needs 5 and 12, 14 needs 10 and 11; in the fourth 15 needs 12, 16 "
    "needs 15, and 17 needs 10 and 12."
)


def chapter_map(book: Path) -> str:
    """The map as SVG: a box a chapter of the contents, a tab for its second page.

    What has no place in `MAP` stands in rows below, with its number alone.
    """
    files = {
        chapter_number(name): path.relative_to(book).with_suffix(".html").as_posix()
        for name, path in runner.chapters(book).items()
    }
    others = [n for n in files if n.isdigit() and n not in MAP]
    places = dict(MAP)
    for i, number in enumerate(others):
        places[number] = (20 + 140 * (i % 5), BELOW + 80 * (i // 5), "b", "", "")
    height = BELOW - 10 + 80 * -(-len(others) // 5)
    curves = dict(DOWN)
    for start, end in (pair.split("-") for pair in NEEDS):
        (x0, y0), (x1, y1) = places[start][:2], places[end][:2]
        x0, y0, x1, y1 = x0 + 110, y0 + 30, x1 - 2, y1 + 30
        middle = (x0 + x1) // 2
        curves[f"{start}-{end}"] = f"M{x0} {y0}C{middle} {y0} {middle} {y1} {x1} {y1}"
    parts = [
        f'<path class="arrow" d="{curve}"/>'
        for pair, curve in curves.items()
        if files.keys() >= set(pair.split("-"))
    ]
    for number, (x, y, colour, *lines) in places.items():
        if number not in files:
            continue
        texts = [f'<text x="{x + 10}" y="{y + 18}" class="number">{number}</text>']
        texts += [
            f'<text x="{x + 10}" y="{y + 36 + 16 * i}">{line}</text>'
            for i, line in enumerate(lines)
            if line
        ]
        box = f'<rect x="{x}" y="{y}" width="110" height="60" rx="6"/>'
        parts.append(f'<a href="{files[number]}" class="{colour}">{box}{"".join(texts)}</a>')
        for i, second in enumerate(n for n in files if re.fullmatch(number + "[a-z]", n)):
            tab = f'<rect x="{x + 74 - 38 * i}" y="{y - 6}" width="32" height="22" rx="4"/>'
            text = f'<text x="{x + 90 - 38 * i}" y="{y + 9}" class="number second">{second}</text>'
            parts.append(f'<a href="{files[second]}" class="{colour}">{tab}{text}</a>')
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    head = (
        f'<svg class="map" viewBox="0 0 720 {height}" role="img" aria-labelledby="map-title">'
        f'<title id="map-title">{MAP_TITLE}</title>'
        f'<defs>{tip} orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    return head + "".join(parts) + "</svg>"


class ChapterMap(SphinxDirective):
    def run(self):
        self.env.note_reread()
        return [nodes.raw("", chapter_map(Path(self.env.srcdir)), format="html")]


class RunStatus(SphinxDirective):
    def run(self):
        self.env.note_reread()
        header = "chapter,last run,state,profile,device,wall time,checks,versions".split(",")
        book = Path(self.env.srcdir)
        lines = table(header, runner.status(runner.find_root(book), book))
        return self.parse_text_to_nodes("\n".join([":::{container} status", *lines, ":::"]))


def checks(records: list[dict]) -> str:
    """The verdicts of one cell as MyST: a line for one, a folded table for several."""
    found = [(reference.load()[r["key"]], r["value"], r["judged"]) for r in records]
    rows = [[e.what, *result(e, v, j)] for e, v, j in found]
    kinds = Counter(entry.evidence for entry, _, _ in found)
    if len(rows) == 1:
        ((what, value, held, evidence, mark),) = rows
        return f":::{{container}} check\n{mark} {what}: **{value}** ({evidence}: {held})\n:::"
    failed = sum(row[-1] == MARKS[False] for row in rows)
    title = f"{len(rows)} numbers: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}"
    title = f"{MARKS[not failed]} {title}" + (f"; {failed} failed" if failed else "")
    header = ["number", "the book gets", "reference", "evidence", ""]
    lines = table(header, rows)
    return "\n".join([f"::::{{dropdown}} {title}", ":class-container: checks", *lines, "::::"])


MARKS = {True: "✓", False: "✗", None: "–"}


def result(entry: reference.Reference, value: float, judged: bool) -> list[str]:
    """What the book gets, the reference, the evidence and a mark."""
    mark = MARKS[entry.holds(value) if judged else None]
    held = claim(entry)
    if entry.paper:
        held += f"; the paper has {entry.paper}, ours is {against(entry, value, judged)}"
    return [f"{value:.15g}", held, entry.evidence, mark]


def rewrite(app, docname, source):
    """Before a notebook is parsed: fold what is not the lesson, and show what was measured."""
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    for cell, solution in with_solutions(notebook["cells"]):
        if cell["cell_type"] == "code":
            if not solution:  # which is folded already
                fold(cell)
            show_checks(cell)
    title, *rest = "".join(notebook["cells"][0]["source"]).split("\n")
    title = f"# {chapter_number(Path(docname).name)}. {title.removeprefix('# ')}"
    notebook["cells"][0]["source"] = "\n".join([title, "", reading_time(notebook), *rest])
    source[0] = json.dumps(notebook)


def with_solutions(cells: list[dict]):
    """Each cell, and whether it belongs to the solution of an exercise."""
    solution = False
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            solution = "{solution-start}" in text or (solution and "{solution-end}" not in text)
        yield cell, solution


WORDS, EQUATION, LINE = 200, 0.5, 4 / 60  # a minute's words; minutes an equation, a line of code
FORMULA = re.compile(r"```\{math\}.*?```|\$\$.*?\$\$", re.DOTALL)


def reading_minutes(notebook: dict) -> float:
    """From words, displayed equations and visible code, without the solutions of exercises."""
    minutes = 0.0
    for cell, solution in with_solutions(notebook["cells"]):
        text = "".join(cell["source"])
        if solution:
            continue
        if cell["cell_type"] == "markdown":
            minutes += len(FORMULA.findall(text)) * EQUATION
            minutes += len(FORMULA.sub("", text).split()) / WORDS
        elif not hidden(cell):
            minutes += sum(bool(line.strip()) for line in text.split("\n")) * LINE
    return minutes


def reading_time(notebook: dict) -> str:
    minutes = max(5, 5 * round(reading_minutes(notebook) / 5))
    return f"*{minutes} minutes to read, without the exercises' solutions.*"


def hidden(cell: dict) -> str:
    """What a page folds away of this cell: figures stand without the code that draws them."""
    text, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
    if "plt.show()" in text:
        return "the code of this figure"
    if "parameters" in tags:
        return "the parameters of this chapter"
    if re.search(r"^\w+ = begin\(", text, re.MULTILINE):
        return "the imports"
    return "this code" if {"hide-input", "hide-cell", "remove-cell"} & set(tags) else ""


def fold(cell: dict) -> None:
    what = hidden(cell)
    if not what:
        return
    cell["metadata"].setdefault("tags", []).append("hide-input")
    prompts = {"code_prompt_show": f"Show {what}", "code_prompt_hide": f"Hide {what}"}
    cell["metadata"]["mystnb"] = cell["metadata"].get("mystnb", {}) | prompts


def show_checks(cell: dict) -> None:
    """The checks of a cell become one output, with their numbers."""
    outputs = cell["outputs"]
    records = [o["metadata"]["soundgreeks"] for o in outputs if is_check(o)]
    if not records:
        return
    first = next(i for i, o in enumerate(outputs) if is_check(o))
    shown = {"text/markdown": checks(records)}
    outputs[first] = {"output_type": "display_data", "metadata": {}, "data": shown}
    cell["outputs"] = [o for o in outputs if not is_check(o)]


def is_check(output: dict) -> bool:
    return "soundgreeks" in output.get("metadata", {})


MINUS, TIMES, GAP = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{NO-BREAK SPACE}"
# A number with an exponent or a sign; a hyphen within a word, a date or a range is none.
NUMBER = re.compile(r"((?<![\w.)\]}{^-])-)?((?<![\w.])\d+(?:\.\d+)?)(?:e([+-]?\d+)(?!\w))?")


def spelt(match: re.Match) -> list[nodes.Node]:
    """2.2e-03 as 2.2 x 10^-3 with a true superscript; what is near one, as a plain decimal."""
    sign, digits, exponent = match.groups()
    sign = MINUS if sign else ""
    if exponent is None:
        return [nodes.Text(sign + digits)]
    power, places = int(exponent), len(digits.partition(".")[2])
    if float(digits) == 0:
        return [nodes.Text("0")]
    if -2 <= power <= 3:
        return [nodes.Text(f"{sign}{float(digits) * 10.0**power:,.{max(0, places - power)}f}")]
    factor = "" if digits == "1" else f"{digits}{GAP}{TIMES}{GAP}"
    raised = str(power).replace("-", MINUS)
    return [nodes.Text(f"{sign}{factor}10"), nodes.superscript(raised, raised)]


# 6 x 128 and 51.8%, as code and formats write them.
SPACED = [
    (re.compile(r"(?<=\d) x (?=\d)"), f"{GAP}{TIMES}{GAP}"),
    (re.compile(r"(?<=\d) ?%"), f"{GAP}%"),
]


def typeset(text: str) -> list[nodes.Node]:
    """The text with its numbers as a person would write them."""
    for pattern, spaced in SPACED:
        text = pattern.sub(spaced, text)
    found, end = [], 0
    for match in NUMBER.finditer(text):
        if match[1] or match[3]:
            found += [nodes.Text(text[end : match.start()]), *spelt(match)]
            end = match.end()
    return [node for node in (*found, nodes.Text(text[end:])) if node.astext()]


CODE = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw)
EXACT = (*CODE, nodes.FixedTextElement, addnodes.desc_signature)  # stays as it was typed


class Numbers(SphinxPostTransform):
    """`typeset` on the text of every page: prose, glue, checks, tables, the record."""

    default_priority = 20  # after glue from other pages is in its place

    def run(self):
        for text in list(self.document.findall(nodes.Text)):
            above = text.parent
            while above is not None and not isinstance(above, EXACT):
                above = above.parent
            if above is None:
                text.parent.replace(text, typeset(text.astext()))


EXPLORED = ("sound_small", "deepsvm")
BASKET = {  # file and name of the networks on the basket's page
    "oversized": ("oversized", "decay"),
    "pruned": ("pruned", "IASA.0"),
    "tuned": ("finetuned", "model.sobolev.pruned.0"),
}


def encoded(tensors: dict) -> dict:
    """Shapes, and the numbers as float32 in base64: what a browser reads without a library."""
    return {
        key: {
            "shape": list(value.shape),
            "data": base64.b64encode(value.numpy().astype("<f4").tobytes()).decode(),
        }
        for key, value in tensors.items()
    }


def explorer_weights() -> str:
    """The shipped operators that the explorer evaluates in the browser, as a script."""
    found = {}
    for name in EXPLORED:
        tensors, provenance = weights.read(name)
        config = {k: provenance["config"][k] for k in ("network", "activation", "model", "ansatz")}
        found[name] = {"config": config, "tensors": encoded(tensors)}
    return f"window.SOUNDGREEKS = {json.dumps(found)};\n"


def basket_weights() -> str:
    """The basket of part II and its networks, oversized, pruned and fine-tuned, as a script."""
    basket = bachelier.Basket.random()
    found: dict = {"basket": {}, "networks": {}}
    for key in ("weights", "vols", "factor"):
        found["basket"][key] = getattr(basket, key).tolist()
    for key in ("strike", "centre", "spread"):
        found["basket"][key] = getattr(basket, key)
    found["basket"]["deviation"] = float(basket.volatility) * basket.maturity**0.5
    found["basket"]["rare"] = float(chi2.ppf(0.99, basket.dim))  # one training spot in a hundred
    for label, (file, name) in BASKET.items():
        group, provenance = weights.read_networks(file)
        network = group[name]
        inner = {f"network.{k}": v for k, v in network.network.state_dict().items()}
        frame = encoded(dict(network.named_buffers(recurse=False)))
        about = {"activation": provenance["activation"], "frame": frame}
        found["networks"][label] = about | {"tensors": encoded(inner)}
    return f"window.BASKET = {json.dumps(found)};\n"


def write_explorer(app, exception):
    if exception is None and app.builder.format == "html":
        (Path(app.outdir) / "explorer/weights.js").write_text(explorer_weights())
        (Path(app.outdir) / "basket/weights.js").write_text(basket_weights())


def skip_fields(app, what, name, obj, skip, options):
    """The fields of a named tuple say "Alias for field number 0", which helps nobody."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


LITERAL = re.compile(r"(``.*?``|:math:`.*?`)")


def escape_bars(app, what, name, obj, options, lines):
    """|x| is an absolute value in our docstrings, not a substitution."""
    formula = False
    for i, line in enumerate(lines):
        formula = line.lstrip().startswith(".. math::") or (formula and line[:1] in (" ", ""))
        if formula or line.lstrip().startswith((">>>", "...")):
            continue
        parts = LITERAL.split(line)  # text, literal, text, ...
        parts[::2] = [re.sub(r"(?<!\\)\|", r"\|", text) for text in parts[::2]]
        lines[i] = "".join(parts)


def without_thebe(app, pagename, templatename, context, doctree):
    """Drop the scripts of live cells: they are declared twice, and would need a network."""
    scripts = context.get("script_files", [])
    context["script_files"] = [
        s for s in scripts if "thebe" not in f"{s} {getattr(s, 'attributes', '')}"
    ]


def describe(app, what, name, obj, options, lines: list[str]) -> None:
    """Our docstrings say after a colon what something is; napoleon would take it for a type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # it looks at the first line alone: an empty comment
    found, inside = [], False
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch(r"-{3,}", below.strip()) and line.strip():
            inside = line.strip() in ("Parameters", "Attributes")
        entry = re.fullmatch(r"(\w[\w, *]*?) : (.+)", line) if inside else None
        found += [entry[1], f"    {entry[2]}"] if entry else [line]
    lines[:] = found


def setup(app):
    # Millions of nodes and few cycles: looking for them took a third of the build. 1.2 GB without.
    gc.disable()
    app.connect("source-read", rewrite)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("autodoc-process-docstring", describe, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("build-finished", write_explorer)
    app.connect("html-page-context", without_thebe, priority=900)
    app.add_post_transform(Numbers)
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("chapter-map", ChapterMap)
    app.add_directive("run-status", RunStatus)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
