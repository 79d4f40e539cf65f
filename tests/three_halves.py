"""The 3/2 model, taken from the diff that CONTRIBUTING.md shows: one new file and one line."""

import re
import types
from pathlib import Path

_TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
(DIFF,) = re.findall(r"```diff\n(.*?)```", _TEXT, re.DOTALL)


def new_file() -> str:
    """The text of models/three_halves.py."""
    _, added = DIFF.split("+++ b/src/soundgreeks/models/three_halves.py\n")
    lines = [line for line in added.splitlines() if not line.startswith("@@")]
    assert all(line.startswith("+") for line in lines)
    return "\n".join(line[1:] for line in lines) + "\n"


_module = types.ModuleType("soundgreeks.models.three_halves")
_module.__package__ = "soundgreeks.models"
exec(compile(new_file(), "three_halves.py", "exec"), _module.__dict__)
MODEL, Parameters = _module.MODEL, _module.Parameters
