"""Reference numbers, the check that holds the book to them, and glue into its prose.

The numbers live in ``reference.toml``, one table each::

    [heston.feller_share]
    what = "share of Table I under the Feller condition"
    value = 0.517
    tolerance = 5e-4          # absolute: what would be a regression
    unit = "1"
    source = "DeepSVM, Table I; our own quadrature"
    evidence = "independent"  # or another key of EVIDENCE
    paper = "0.52"            # optional: the paper's own number, as printed
    kind = "equal"            # or "at most", "at least": only the worse side fails
    trained = false           # true: comes from training, not judged in the smoke profile
"""

import difflib
import math
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib.resources import files

from .._validate import require

KINDS = {"equal": "=", "at most": "<=", "at least": ">="}
EVIDENCE = {
    "external": "a paper, a published table, a library by others",
    "independent": "a closed form, a theorem, or another method, computed in this repository",
    "regression": "an earlier run of our own, or our code compared with itself",
    "quotation": "read from a file of an earlier run, and not computed anew here",
}
"""What a reference number can be held against, the strongest first."""

GLUE = "application/papermill.record/"  # the prefix myst-nb gives to what it keeps for prose

profile = "read"
"""The profile in force; `chapter.begin` sets it."""


class Disagreement(AssertionError):
    """A measured number lies outside the tolerance of its reference."""


@dataclass(frozen=True)
class Reference:
    """One reference number: `value` within the absolute `tolerance`, and where it comes from.

    `evidence` is one of `EVIDENCE`. `paper` is the paper's own number as it is printed there: its
    last digit says how exactly it is known.
    """

    key: str
    what: str
    value: float
    tolerance: float
    source: str
    evidence: str
    unit: str = "1"
    kind: str = "equal"
    trained: bool = False
    paper: str = ""

    def __post_init__(self):
        require(self.kind in KINDS, f"{self.key}.kind", repr(self.kind), f"one of {list(KINDS)}")
        require(
            self.evidence in EVIDENCE,
            f"{self.key}.evidence",
            repr(self.evidence),
            f"one of {list(EVIDENCE)}",
        )
        require(math.isfinite(self.value), f"{self.key}.value", self.value, "finite")
        require(0 <= self.tolerance < math.inf, f"{self.key}.tolerance", self.tolerance, ">= 0")
        require(bool(self.source.strip()), f"{self.key}.source", repr(self.source), "not empty")
        if self.paper != "":
            self._printed()

    def holds(self, measured: float) -> bool:
        """Whether `measured` agrees; a NaN never does."""
        excess = {
            "equal": abs(measured - self.value),
            "at most": measured - self.value,
            "at least": self.value - measured,
        }[self.kind]
        return excess <= self.tolerance

    def against_paper(self, measured: float) -> str:
        """`measured` beside the paper's number: "better", "same" or "worse"; "" if there is none.

        "same" is within half a unit of the last digit that the paper prints. Otherwise the side
        that `kind` calls the worse one is worse; of an "equal" number either side is.
        """
        if self.paper == "":
            return ""
        number, unit = self._printed()
        if abs(measured - number) <= unit / 2:
            return "same"
        better = {"at most": measured < number, "at least": measured > number}
        return "better" if better.get(self.kind, False) else "worse"

    def _printed(self) -> tuple[float, float]:
        """The paper's number and the unit of its last digit."""
        digits: object = None
        if isinstance(self.paper, str):
            try:
                digits = Decimal(self.paper).as_tuple().exponent
            except InvalidOperation:
                pass
        meaning = 'a finite number in quotes, as printed: "0.9987"'
        require(isinstance(digits, int), f"{self.key}.paper", repr(self.paper), meaning)
        return float(self.paper), 10.0 ** int(str(digits))

    def statement(self) -> str:
        """The claim without any measured digit, so that every machine prints the same text."""
        slack = f" ± {self.tolerance:g}" if self.kind == "equal" else ""
        if self.kind != "equal" and self.tolerance:
            slack = f" (leeway {self.tolerance:g})"
        unit = "" if self.unit == "1" else f" {self.unit}"
        return f"{self.key} {KINDS[self.kind]} {self.value:.15g}{slack}{unit}"

    def rounded(self, measured: float) -> float:
        """`measured` to one digit below the tolerance: what the machine does not decide.

        Two digits of what is smaller than the tolerance, where only the size has a meaning; and
        never fewer than one digit more than the paper prints, where there is a paper's number.
        """
        if not math.isfinite(measured):
            return measured
        if abs(measured) <= self.tolerance or self.tolerance == 0:
            short = float(f"{measured:.1e}")
        else:
            short = round(measured, max(0, math.ceil(-math.log10(self.tolerance))) + 1)
        if self.paper == "":
            return short
        long = round(measured, max(0, -round(math.log10(self._printed()[1]))) + 1)
        return min(short, long, key=lambda v: abs(v - measured))


def parse(text: str) -> dict[str, Reference]:
    """The reference numbers in a TOML text, by dotted key.

    Raises
    ------
    ValueError
        A table that lacks a field, has an unknown one, or a value outside its meaning.
    """
    found: dict[str, Reference] = {}

    def walk(table: dict, path: str) -> None:
        if "value" not in table:
            for name, entry in table.items():
                below = f"{path}.{name}".lstrip(".")
                require(isinstance(entry, dict), below, repr(entry), "a table with a value")
                walk(entry, below)
            return
        try:
            found[path] = Reference(key=path, **table)
        except TypeError as error:
            raise ValueError(f"reference.toml, [{path}]: {error}") from error

    walk(tomllib.loads(text), "")
    return found


@cache
def load() -> dict[str, Reference]:
    """All reference numbers of the book, by key, in the order of ``reference.toml``."""
    return parse(files(__package__).joinpath("reference.toml").read_text("utf-8"))


def counts(entries: Iterable[Reference]) -> dict[str, int]:
    """How many of `entries` there are of each evidence, in the order of `EVIDENCE`."""
    found = Counter(entry.evidence for entry in entries)
    return {evidence: found[evidence] for evidence in EVIDENCE}


def check(key: str, value) -> float:
    """Hold `value` against the reference number `key`; print one verdict line; return the value.

    The printed line is the same on every machine. The measured value, rounded one digit below the
    tolerance, travels in the output's metadata, from where the scoreboard takes it.

    Raises
    ------
    KeyError
        There is no such reference number.
    Disagreement
        The value lies outside the tolerance, or is not a number.
    """
    if key not in load():
        near = difflib.get_close_matches(key, load(), 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise KeyError(f"key must be a number in reference.toml, got {key!r}{hint}")
    reference, measured = load()[key], _number(value)
    judged = not (reference.trained and profile == "smoke")
    ok = reference.holds(measured)
    good = "quoted:" if reference.evidence == "quotation" else "ok:"
    mark = "not judged (smoke profile):" if not judged else good if ok else "FAILED:"
    record = {"key": key, "value": reference.rounded(measured), "ok": ok, "judged": judged}
    _display(f"{mark} {reference.statement()}", {"soundgreeks": record})
    if judged and not ok:
        raise Disagreement(
            f"{key}: got {measured:.15g}, reference {reference.statement()} ({reference.source})"
        )
    return measured


def glue(name: str, value) -> None:
    """Keep `value`, a number or a short text, for the prose: ``{glue:text}`name:.1f```.

    Writes the output that myst-nb looks for, without importing Sphinx.
    """
    value = value if isinstance(value, str | int) else _number(value)
    metadata = {"scrapbook": {"name": name, "mime_prefix": GLUE}}
    _display(repr(value), metadata, prefix=GLUE)


def _number(value) -> float:
    """Of a tensor that still knows its history as well: float() warns of that, once a process."""
    return float(value.detach() if hasattr(value, "detach") else value)


def _display(text: str, metadata: dict, prefix: str = "") -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = lambda: None  # noqa: E731
    if get_ipython() is not None:
        display({f"{prefix}text/plain": text}, raw=True, metadata=metadata)
    elif not prefix:
        print(text)
