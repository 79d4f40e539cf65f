"""Two directives, ``scoreboard`` and ``run-status``, that write their tables at build time."""

from pathlib import Path

import nbformat
from sphinx.util.docutils import SphinxDirective

from soundgreeks.book import reference, runner


def scoreboard(book: Path) -> list[list[str]]:
    """One row a reference number: what, reference, source, what the book gets, agrees, where.

    Measured values come from the stored outputs of the notebooks in `book`, the rest from
    reference.toml; the table holds nothing of its own.
    """
    measured: dict[str, list[str]] = {}
    for name, path in runner.chapters(book).items():
        link = f"[{name[:2]}](/{path.relative_to(book).as_posix()})"
        for verdict in runner.verdicts(nbformat.read(path, as_version=4)):
            key, value = verdict["key"], verdict["value"]
            if key not in reference.load():
                raise ValueError(f"{path.name} checks {key}, which reference.toml does not hold")
            entry = reference.load()[key]
            word = ["**no**", "yes"][entry.holds(value)] if verdict["judged"] else "not judged"
            measured.setdefault(key, []).append((f"{value:.15g}", word, link))
    rows = []
    for key, entry in reference.load().items():
        for got in measured.get(key, [("–", "not checked yet", "")]):
            rows.append([entry.what, claim(entry), entry.source, *got])
    return rows


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
    def run(self):
        self.env.note_reread()
        header = ["number", "reference", "source", "the book gets", "agrees", "chapter"]
        lines = table(header, scoreboard(Path(self.env.srcdir)))
        return self.parse_text_to_nodes("\n".join(lines))


class RunStatus(SphinxDirective):
    def run(self):
        self.env.note_reread()
        header = "chapter,last run,state,profile,device,wall time,checks,versions".split(",")
        book = Path(self.env.srcdir)
        lines = table(header, runner.status(runner.find_root(book), book))
        return self.parse_text_to_nodes("\n".join(lines))


def without_thebe(app, pagename, templatename, context, doctree):
    """Drop the scripts of live cells: they are declared twice, and would need a network."""
    scripts = context.get("script_files", [])
    context["script_files"] = [
        s for s in scripts if "thebe" not in f"{s} {getattr(s, 'attributes', '')}"
    ]


def setup(app):
    app.connect("html-page-context", without_thebe, priority=900)
    app.add_directive("scoreboard", Scoreboard)
    app.add_directive("run-status", RunStatus)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
