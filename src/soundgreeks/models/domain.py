"""Ranges of named quantities: where parameters and states are drawn, trained on, and watched."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from .._validate import require


@dataclass(frozen=True)
class Domain(Mapping):
    """A box of named ranges, and a condition on the parameters that a model knows by name.

    It is a mapping from names to pairs (low, high), in the order given.

    >>> box = Domain({"nu": (0.01, 0.4), "tau": (0.0, 1.0)})
    >>> box["nu"], (box | {"nu": (0.0, 0.8)})["nu"]
    ((0.01, 0.4), (0.0, 0.8))

    Parameters
    ----------
    ranges : (low, high) by name, finite, low <= high
    where : name of a condition in the model's `conditions`, "" for none
    logarithmic : names of the quantities that are drawn uniformly in their logarithm

    Raises
    ------
    ValueError
        A range that is reversed or not finite, or a logarithmic one that is not positive.
    """

    ranges: Mapping[str, tuple[float, float]]
    where: str = ""
    logarithmic: tuple[str, ...] = ()

    def __post_init__(self):
        ranges = {k: (float(low), float(high)) for k, (low, high) in dict(self.ranges).items()}
        for name, (low, high) in ranges.items():
            ok = float("-inf") < low <= high < float("inf")
            require(ok, f"range of {name}", (low, high), "finite, low <= high")
        for name in self.logarithmic:
            require(name in ranges, "logarithmic", repr(name), f"one of {tuple(ranges)}")
            require(ranges[name][0] > 0, f"range of {name}", ranges[name], "positive")
        object.__setattr__(self, "ranges", ranges)
        object.__setattr__(self, "logarithmic", tuple(self.logarithmic))

    def __getitem__(self, name: str) -> tuple[float, float]:
        return self.ranges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)

    def __hash__(self):
        return hash((tuple(self.ranges.items()), self.where, self.logarithmic))

    def __or__(self, other: Mapping[str, tuple[float, float]]) -> "Domain":
        """The same with some ranges replaced; the condition stays."""
        return Domain({**self.ranges, **other}, self.where, self.logarithmic)

    def of(self, *names: str) -> list[tuple[float, float]]:
        """The ranges of some names, in their order.

        >>> Domain({"nu": (0.01, 0.4), "tau": (0.0, 1.0)}).of("tau")
        [(0.0, 1.0)]
        """
        return [self.ranges[name] for name in names]

    def scale(self, name: str, unit: Tensor) -> Tensor:
        """From [0, 1] to the range, in its units; same shape.

        >>> Domain({"x": (-2.0, 2.0)}).scale("x", torch.tensor([0.0, 0.75]))
        tensor([-2.,  1.])
        """
        low, high = self.ranges[name]
        if name in self.logarithmic:
            return low * (high / low) ** unit
        return low + (high - low) * unit

    def outside(self, **values: Tensor) -> list[str]:
        """A sentence for each name with a value outside its range, with the first such value.

        >>> Domain({"x": (-2.0, 2.0)}).outside(x=torch.tensor([0.0, 3.0]))
        ['x = 3 is outside [-2.0, 2.0]']
        """
        found = []
        for name, value in values.items():
            low, high = self.ranges[name]
            slack = 1e-6 * (high - low)  # a float32 0.01 is not quite 0.01
            out = (value < low - slack) | (value > high + slack)
            if bool(out.any()):
                first = value[out].flatten()[0].item()
                found.append(f"{name} = {first:.6g} is outside [{low}, {high}]")
        return found

    def to_dict(self) -> dict:
        """Plain values, from which `from_dict` makes the domain again.

        >>> Domain({"x": (-2.0, 2.0)}).to_dict()
        {'ranges': {'x': [-2.0, 2.0]}, 'where': ''}
        """
        found: dict = {"ranges": {k: list(v) for k, v in self.ranges.items()}, "where": self.where}
        return found | ({"logarithmic": list(self.logarithmic)} if self.logarithmic else {})

    @classmethod
    def from_dict(cls, values: dict) -> "Domain":
        """The domain of `to_dict`'s plain values.

        >>> Domain.from_dict({"ranges": {"x": [-2.0, 2.0]}})["x"]
        (-2.0, 2.0)
        """
        ranges = {k: tuple(v) for k, v in values["ranges"].items()}
        return cls(ranges, values.get("where", ""), tuple(values.get("logarithmic", ())))
