"""Intervals of tensors and their arithmetic; the proofs are in the package's docstring."""

import math

import torch
from torch import Tensor

from ..._validate import floating, require

INF = math.inf
LARGEST = torch.finfo(torch.float64).max
EPS = 2.0**-52  # two units of round-off u; one unit in the last place is at most EPS |x|
ETA = 2.0**-1074


def down(x: Tensor) -> Tensor:
    """The next number below; the constant is made where x is, nothing is copied to a GPU.

    >>> down(torch.tensor(1.0, dtype=torch.float64)) == 1 - 2.0**-53
    tensor(True)
    """
    return torch.nextafter(x, x.new_full((), -INF))


def up(x: Tensor) -> Tensor:
    """The next number above.

    >>> up(torch.tensor(1.0, dtype=torch.float64)) == 1 + 2.0**-52
    tensor(True)
    """
    return torch.nextafter(x, x.new_full((), INF))


class Interval:
    """A tensor of closed intervals.

    >>> x = Interval(1.0, 2.0)
    >>> x - x, x.contains(1.5)  # two different numbers may hide in x
    (Interval(lo=-1.0, hi=1.0), tensor(True))

    Parameters
    ----------
    lo, hi : tensors or numbers that broadcast; `hi` defaults to `lo`. Numbers are what floating
        point makes of them: ``Interval(0.1)`` is the float64 nearest to one tenth.

    Arithmetic with tensors and numbers takes them as points. ``==`` and ``!=`` are of sets, entry
    by entry, as of tensors; `contains` and `subset` are methods, and there is no order.

    Raises
    ------
    ValueError
        NaN, lo > hi, lo = +inf, hi = -inf, shapes that do not broadcast, or two devices.
    TypeError
        A dtype other than float32 and float64.
    """

    __slots__ = ("hi", "lo")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, lo, hi=None):
        point = hi is None or hi is lo
        _one_device("lo and hi", lo, hi)
        lo, hi = floating(lo=lo, hi=lo if point else hi)
        if lo.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"an interval is of float32 or float64, got {lo.dtype}")
        require(~lo.isnan() & (lo < INF), "lo", lo, "a number below +inf")
        require(~hi.isnan() & (hi > -INF), "hi", hi, "a number above -inf")
        require(lo <= hi, "lo", lo, "at most hi")
        self.lo, self.hi = lo, lo if point else hi  # one tensor twice marks a point

    @classmethod
    def _make(cls, lo: Tensor, hi: Tensor) -> "Interval":
        new = object.__new__(cls)
        new.lo, new.hi = lo, hi
        return new

    @classmethod
    def empty(cls, *shape: int, dtype=torch.float64, device=None) -> "Interval":
        """The empty set, held as a pair of NaN so that it spreads by itself.

        >>> bool(Interval.empty() == (Interval(0.0, 1.0) & Interval(2.0, 3.0)))
        True
        """
        nan = torch.full(shape, math.nan, dtype=dtype, device=device)
        return cls._make(nan, nan)

    @classmethod
    def hull(cls, points: Tensor, dim: int = 0) -> "Interval":
        """The smallest box around `points`, over their dimension `dim`.

        >>> Interval.hull(torch.tensor([3.0, 1.0, 2.0]))
        Interval(lo=1.0, hi=3.0)
        """
        return cls(points.amin(dim), points.amax(dim))

    # What it is -----------------------------------------------------------------------------

    shape = property(lambda self: self.lo.shape)
    ndim = property(lambda self: self.lo.ndim)
    dtype = property(lambda self: self.lo.dtype)
    device = property(lambda self: self.lo.device)
    is_empty = property(lambda self: self.lo.isnan())

    @property
    def mid(self) -> Tensor:
        """A number near the middle and inside; NaN if empty, an end or 0 if unbounded.

        >>> Interval(1.0, 4.0).mid
        tensor(2.5000, dtype=torch.float64)
        """
        middle = self.lo / 2 + self.hi / 2
        middle = torch.where(middle.isnan() & ~self.is_empty, 0.0, middle)
        largest = torch.finfo(self.dtype).max
        return middle.clamp(self.lo, self.hi).clamp(-largest, largest)

    @property
    def width(self) -> Tensor:
        """hi - lo, rounded up.

        >>> Interval(1.0, 4.0).width
        tensor(3.0000, dtype=torch.float64)
        """
        return up(self.hi - self.lo).where(self.hi != self.lo, 0.0)

    @property
    def mag(self) -> Tensor:
        """The largest absolute value.

        >>> Interval(-3.0, 2.0).mag
        tensor(3., dtype=torch.float64)
        """
        return torch.maximum(self.lo.abs(), self.hi.abs())

    def contains(self, x) -> Tensor:
        """Where the numbers x lie inside. Boolean.

        >>> Interval(0.0, 1.0).contains(torch.tensor([0.5, 1.0, 1.5]))
        tensor([ True,  True, False])
        """
        return (self.lo <= x) & (x <= self.hi)

    def subset(self, other: "Interval") -> Tensor:
        """Where this interval lies inside `other`; the empty set always does. Boolean.

        >>> Interval(0.0, 1.0).subset(Interval(0.0, 2.0))
        tensor(True)
        """
        return (other.lo <= self.lo) & (self.hi <= other.hi) | self.is_empty

    def __eq__(self, other) -> Tensor:  # type: ignore[override]
        """Where two intervals are the same set of numbers: equal bounds, or both empty. Boolean.

        Tensors and numbers are points, float32 is widened, shapes broadcast.
        """
        if not isinstance(other, Interval | Tensor | int | float):
            return NotImplemented
        (a, b), _ = _operands(self, other)
        return (a.lo == b.lo) & (a.hi == b.hi) | a.is_empty & b.is_empty

    def __ne__(self, other) -> Tensor:  # type: ignore[override]
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else ~equal

    def __repr__(self):
        return f"Interval(lo={self.lo}, hi={self.hi})"

    # Shape and storage ----------------------------------------------------------------------

    def _both(self, function) -> "Interval":
        lo = function(self.lo)
        return Interval._make(lo, lo if self.hi is self.lo else function(self.hi))

    def __len__(self):
        return len(self.lo)

    def __getitem__(self, index) -> "Interval":
        return self._both(lambda x: x[index])

    def reshape(self, *shape) -> "Interval":
        return self._both(lambda x: x.reshape(*shape))

    def unsqueeze(self, dim: int) -> "Interval":
        return self._both(lambda x: x.unsqueeze(dim))

    @property
    def mT(self) -> "Interval":
        return self._both(lambda x: x.mT)

    def to(self, dtype: torch.dtype | None = None, device=None) -> "Interval":
        """The same intervals in another dtype, rounded outward, or on another device.

        >>> x = Interval(0.1).to(torch.float32)  # no float32 is that number
        >>> float(x.lo) < 0.1 < float(x.hi)
        True
        """
        if device is not None:
            return self._both(lambda t: t.to(device)).to(dtype)
        if dtype is None or dtype == self.dtype:
            return self
        if dtype == torch.float64:
            return self._both(torch.Tensor.double)
        require(dtype == torch.float32, "dtype", dtype, "torch.float32 or torch.float64")
        lo, hi = self.lo.float(), self.hi.float()
        return Interval._make(
            torch.where(lo.double() > self.lo, down(lo), lo),
            torch.where(hi.double() < self.hi, up(hi), hi),
        )

    # Sets -----------------------------------------------------------------------------------

    def __and__(self, other) -> "Interval":
        """Intersection."""
        (a, b), dtype = _operands(self, other)
        lo, hi = torch.maximum(a.lo, b.lo), torch.minimum(a.hi, b.hi)
        outside = ~(lo <= hi)
        return Interval._make(
            lo.masked_fill(outside, math.nan), hi.masked_fill(outside, math.nan)
        ).to(dtype)

    def __or__(self, other) -> "Interval":
        """Interval hull of the union."""
        (a, b), dtype = _operands(self, other)
        return Interval._make(torch.fmin(a.lo, b.lo), torch.fmax(a.hi, b.hi)).to(dtype)

    # Arithmetic -----------------------------------------------------------------------------

    def __neg__(self) -> "Interval":
        return Interval._make(-self.hi, -self.lo)

    def __abs__(self) -> "Interval":
        low = torch.maximum(torch.maximum(self.lo, -self.hi), self.lo.new_zeros(()))
        return Interval._make(low, self.mag)

    def __add__(self, other) -> "Interval":
        (a, b), dtype = _operands(self, other)
        return Interval._make(_add_down(a.lo, b.lo), -_add_down(-a.hi, -b.hi)).to(dtype)

    def __sub__(self, other) -> "Interval":
        return self + -interval(other)

    def __rsub__(self, other) -> "Interval":
        return -self + other

    def __mul__(self, other) -> "Interval":
        (a, b), dtype = _operands(self, other)
        return _corners(torch.mul, a, b).to(dtype)

    def __truediv__(self, other) -> "Interval":
        (a, b), dtype = _operands(self, other)
        # Signed zeros make every quotient by an end at zero run to the right infinity.
        ends = Interval._make(b.lo + 0.0, torch.where(b.hi == 0, -0.0, b.hi))
        q = _corners(torch.div, a, ends)
        zero = (a.lo == 0) & (a.hi == 0)
        whole = (b.lo < 0) & (b.hi > 0) & ~zero & ~a.is_empty
        none = (b.lo == 0) & (b.hi == 0)
        lo = q.lo.masked_fill(whole, -INF).masked_fill(none, math.nan)
        hi = q.hi.masked_fill(whole, INF).masked_fill(none, math.nan)
        return Interval._make(lo, hi).to(dtype)

    def __rtruediv__(self, other) -> "Interval":
        return interval(other) / self

    def __pow__(self, exponent: int | float) -> "Interval":
        """x**n for an integer n, and x**p, x >= 0, for any other number p."""
        require(math.isfinite(exponent), "exponent", exponent, "a finite number")
        if exponent < 0:
            return (1 / self.to(torch.float64) ** -exponent).to(self.dtype)
        if exponent == 0:
            return self._both(lambda x: torch.where(x.isnan(), x, 1.0))
        from .functions import power  # built on this module

        if exponent != int(exponent):
            return power(self & Interval(0.0, INF), exponent)
        return power(self if exponent % 2 else abs(self), int(exponent))

    def __matmul__(self, other) -> "Interval":
        """Matrix product of any size, in midpoint-radius form; both at least two-dimensional.

        With one side a point the radius is exact up to rounding; with two true intervals it is at
        most 1.5 times too large (Rump, BIT 39, 1999). Unbounded entries take a slow path.
        """
        (a, b), dtype = _operands(self, other, broadcast=False)
        return _matmul(a, b).to(dtype)

    def __rmatmul__(self, other) -> "Interval":
        return interval(other) @ self

    def sum(self, dim: int = -1) -> "Interval":
        """Sum over a dimension.

        >>> Interval(torch.ones(10), 2 * torch.ones(10)).sum().contains(torch.tensor([10.0, 20.0]))
        tensor([True, True])
        """
        a = self.to(torch.float64)
        gamma = (a.lo.shape[dim] + 4) * EPS  # twice gamma_n: covers the rounding of the bound too

        def below(x):
            size = x.abs().sum(dim)
            return torch.where(size == 0, 0.0, down(x.sum(dim) - gamma * size))

        lo, hi = below(a.lo), -below(-a.hi)
        return _whole_if_nan(lo, hi, self.is_empty.any(dim)).to(self.dtype)

    __radd__, __rmul__ = __add__, __mul__

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return NotImplemented  # so that tensor + interval comes to __radd__


def interval(x) -> Interval:
    """x as an interval; numbers and tensors are points.

    >>> interval(2.0)
    Interval(lo=2.0, hi=2.0)
    """
    return x if isinstance(x, Interval) else Interval(x)


def _operands(*arguments, broadcast=True) -> tuple[list[Interval], torch.dtype]:
    """The operands in float64, broadcast, and the dtype of the result; numbers adapt."""
    device = _one_device("operands", *arguments)
    dtypes = [x.dtype for x in arguments if isinstance(x, Interval | Tensor)]
    dtype = torch.promote_types(dtypes[0], dtypes[-1])
    intervals = [interval(x).to(torch.float64) for x in arguments]
    intervals = [x if x.device == device else x.to(device=device) for x in intervals]
    if broadcast:
        try:
            shape = torch.broadcast_shapes(*(x.shape for x in intervals))
        except RuntimeError as error:
            shapes = " and ".join(str(tuple(x.shape)) for x in intervals)
            raise ValueError(f"shapes do not broadcast: {shapes}") from error
        intervals = [
            x if x.shape == shape else x._both(lambda t: t.expand(shape)) for x in intervals
        ]
    return intervals, dtype


def _one_device(names: str, *arguments) -> torch.device | None:
    """The device of the tensors and intervals given; single numbers on the CPU go anywhere."""
    given = [x for x in arguments if isinstance(x, Interval | Tensor)]
    bound = dict.fromkeys(x.device for x in given if x.ndim or x.device.type != "cpu")
    if len(bound) > 1:
        raise ValueError(f"{names} must be on one device, got {' and '.join(map(str, bound))}")
    return next(iter(bound), given[0].device if given else None)


def _whole_if_nan(lo: Tensor, hi: Tensor, empty: Tensor) -> Interval:
    """NaN from inf - inf knows nothing: the whole line, unless an operand was empty."""
    unknown = (lo.isnan() | hi.isnan()) & ~empty
    if bool(unknown.any()):
        lo, hi = lo.masked_fill(unknown, -INF), hi.masked_fill(unknown, INF)
    return Interval._make(lo.masked_fill(empty, math.nan), hi.masked_fill(empty, math.nan))


def _add_down(a: Tensor, b: Tensor) -> Tensor:
    """a + b rounded down: the sign of the exact error (Knuth's TwoSum) says where to."""
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t)
    return torch.where((error >= 0) & (error < INF), s, down(s))


def _corners(op, a: Interval, b: Interval) -> Interval:
    """Hull of op at the four corners, rounded outward, for a product or a quotient."""
    if a.lo is a.hi or b.lo is b.hi:  # a point: two corners
        corners = [op(a.lo, b.lo), op(a.hi, b.hi)]
    else:
        corners = [op(x, y) for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    lo = hi = corners[0]
    for c in corners[1:]:
        lo, hi = torch.minimum(lo, c), torch.maximum(hi, c)
    if bool(lo.isnan().any()):  # 0 * inf, 0 / 0 and inf / inf: zero is in the closure of each
        empty = a.is_empty | b.is_empty
        every = torch.stack([c.nan_to_num(0.0, INF, -INF) for c in corners])
        lo = every.amin(0).masked_fill(empty, math.nan)
        hi = every.amax(0).masked_fill(empty, math.nan)
    below, above = down(lo), up(hi)
    if bool(((lo == 0) | (hi == 0)).any()):  # a zero is exact unless its sign was lost to underflow
        negative = (a.lo < 0) & (b.hi > 0) | (a.hi > 0) & (b.lo < 0)
        positive = (a.hi > 0) & (b.hi > 0) | (a.lo < 0) & (b.lo < 0)
        below = torch.where((lo == 0) & ~negative, 0.0, below)
        above = torch.where((hi == 0) & ~positive, 0.0, above)
    return Interval._make(below, above)


def _mid_rad(x: Interval) -> tuple[Tensor, Tensor | None]:
    """m and r with [lo, hi] inside [m - r, m + r]; no radius for a point."""
    if x.lo is x.hi:
        return x.lo, None
    m = x.lo / 2 + x.hi / 2
    return m, torch.maximum(x.hi - m, m - x.lo) * (1 + 4 * EPS)  # zero stays zero


def _matmul(a: Interval, b: Interval) -> Interval:
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"shapes do not match: {tuple(a.shape)} @ {tuple(b.shape)}")
    (ma, ra), (mb, rb) = _mid_rad(a), _mid_rad(b)
    n = a.shape[-1]
    gamma = (n + 8) * EPS  # above 2 gamma_n: covers the rounding of radius and ends too
    left = ma.abs() * gamma if ra is None else ra + ma.abs() * gamma
    radius = left @ mb.abs()
    if rb is not None:
        radius = radius + (ma.abs() if ra is None else ma.abs() + ra) @ rb
    underflow = (2 + 2 * mb.abs().amax() if mb.numel() else 2) * (2 * n * ETA)
    radius = radius * (1 + gamma) + underflow
    mid = ma @ mb
    lo, hi = mid - radius, mid + radius
    if not bool((mid.isfinite() & radius.isfinite()).all()):  # unbounded, empty or overflown
        return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)
    return Interval._make(lo, hi)
