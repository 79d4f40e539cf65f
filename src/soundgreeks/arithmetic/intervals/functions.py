"""Elementary and activation functions of intervals.

Each kernel below takes float64 numbers and returns (value, scale, k) with an error of at most
k EPS |scale| + TINY. The counts k add 4 for a call of torch (8 for erfc) and 1/2 for every other
rounding; whatever remains to the next integer covers the products of these errors.

>>> exp(Interval(0.0, 1.0)).contains(torch.tensor([1.0, math.e, 2.72]))
tensor([ True,  True, False])
>>> sin(Interval(0.0, 3.0)).hi, tanh(Interval(-1.0, 1.0)).contains(math.tanh(1.0))
(tensor(1., dtype=torch.float64), tensor(True))
"""

import math

import torch
from torch import Tensor

from .arithmetic import EPS, INF, LARGEST, Interval, down, interval, up

KERNEL = 4  # assumed error of torch's exp, log, log1p, sin, cos, tanh, erf and pow, in EPS |value|
KERNEL_ERFC = 8
TINY = 2.0**-1060  # covers every loss to underflow


def _bounds(kernel, x: Interval) -> tuple[Tensor, Tensor]:
    """Hull of the kernel's values at both ends of x (float64), with their error taken outward."""

    def value_and_error(t):
        y, scale, k = kernel(t)
        return y, scale.abs().clamp(max=LARGEST) * ((k + 0.5) * EPS) + TINY

    y0, e0 = value_and_error(x.lo)
    y1, e1 = (y0, e0) if x.lo is x.hi else value_and_error(x.hi)
    # The clamps keep an overflow from saying that the true value is infinite.
    lo = torch.minimum(y0.clamp(max=LARGEST) - e0, y1.clamp(max=LARGEST) - e1)
    hi = torch.maximum(y0.clamp(min=-LARGEST) + e0, y1.clamp(min=-LARGEST) + e1)
    return lo, hi


def _function(formula: str, kernel, *, turns=(), image=(-INF, INF)):
    """A function of intervals from a kernel of numbers.

    turns : (x, f(x)) at every interior extremum, good to the last digit of a float64
    image : exact bounds of the function's values
    """

    def function(x: Interval) -> Interval:
        x = interval(x)
        x64 = x.to(torch.float64)
        lo, hi = _bounds(kernel, x64)
        for at, value in turns:
            inside = (x64.lo <= at + 4 * EPS) & (x64.hi >= at - 4 * EPS)
            error = 2 * EPS * math.fabs(value)
            lo = torch.where(inside, lo.clamp(max=value - error), lo)
            hi = torch.where(inside, hi.clamp(min=value + error), hi)
        return Interval._make(lo.clamp(*image), hi.clamp(*image)).to(x.dtype)

    function.__doc__ = f"Enclosure of {formula} over every x in the interval; same shape and dtype."
    return function


def _torch(torch_function):
    def kernel(x):
        y = torch_function(x)
        return y, y, KERNEL

    return kernel


def _split_product(a: Tensor, b: Tensor | float) -> tuple[Tensor, Tensor]:
    """a b = p + e exactly (Dekker 1971), for |a|, |b| < 2^500 and e not subnormal."""
    p = a * b
    c, d = 134217729.0 * a, 134217729.0 * b  # 2^27 + 1
    a1, b1 = c - (c - a), d - (d - b)
    a2, b2 = a - a1, b - b1
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def _logistic(x: Tensor) -> tuple[Tensor, Tensor]:
    """s(x), k = 7, and s(x) s(-x), k = 9.5, where s(x) = 1/(1 + exp(-x))."""
    e = torch.exp(-x.abs())
    below = 1 + e  # k = 2.5: the error of e counts at most half in 1 + e
    return torch.exp(x.clamp(max=0.0)) / below, e / (below * below)


def _sigmoid(x):
    s, _ = _logistic(x)
    return s, s, 7


def _sigmoid_prime(x):
    _, p = _logistic(x)
    return p, p, 10


def _tanh_prime(x):
    _, p = _logistic(2 * x)
    return 4 * p, 4 * p, 10


def _softplus(x):
    y = x.clamp(min=0.0) + torch.log1p(torch.exp(-x.abs()))
    return y, y, 9


def _silu(x):
    x = x.clamp(min=-800.0)  # where the value is far below TINY; and no -inf * 0
    y = x * _logistic(x)[0]
    return y, y, 8


def _silu_prime(x):
    x = x.clamp(-800.0, 800.0)  # beyond, it is 0 or 1 up to TINY
    s, p = _logistic(x)
    slope = x * p
    return s + slope, s + slope.abs(), 11


def _normal_cdf(x):
    # erfc(-x/sqrt 2)/2 with the rounding error dz of the argument put back to first order.
    x = x.clamp(-40.0, 40.0)
    z, dz = _split_product(-x, 0.7071067811865476)
    dz = dz + x * 4.833646656726457e-17
    y = torch.erfc(z) / 2 - dz * torch.exp(-z * z) * 0.5641895835477563  # 1/sqrt(pi)
    return y, y, KERNEL_ERFC + 1


def _normal_pdf(x):
    x = x.clamp(-40.0, 40.0)
    square, rest = _split_product(x, x)
    y = torch.exp(-square / 2) * (1 - rest / 2) * 0.3989422804014327  # 1/sqrt(2 pi)
    return y, y, 7


def _gelu(x):
    y = x.clamp(min=-40.0) * _normal_cdf(x)[0]
    return y, y, KERNEL_ERFC + 2


def _gelu_prime(x):
    cdf, _, _ = _normal_cdf(x)
    slope = x.clamp(-40.0, 40.0) * _normal_pdf(x)[0]
    return cdf + slope, cdf + slope.abs(), KERNEL_ERFC + 2


exp = _function("exp(x)", _torch(torch.exp), image=(0.0, INF))
tanh = _function("tanh(x)", _torch(torch.tanh), image=(-1.0, 1.0))
erf = _function("erf(x)", _torch(torch.erf), image=(-1.0, 1.0))
sigmoid = _function("1/(1 + exp(-x))", _sigmoid, image=(0.0, 1.0))
softplus = _function("log(1 + exp(x))", _softplus, image=(0.0, INF))
normal_cdf = _function("the normal distribution function", _normal_cdf, image=(0.0, 1.0))
silu = _function("x/(1 + exp(-x))", _silu, turns=[(-1.278464542761073795, -0.278464542761073795)])
gelu = _function("x Phi(x)", _gelu, turns=[(-0.751791524693564457, -0.169971207479903662)])
normal_pdf = _function(
    "the normal density", _normal_pdf, turns=[(0.0, 0.398942280401432678)], image=(0.0, 0.4)
)
tanh_prime = _function("1 - tanh(x)^2", _tanh_prime, turns=[(0.0, 1.0)], image=(0.0, 1.0))
sigmoid_prime = _function(
    "the derivative of the sigmoid", _sigmoid_prime, turns=[(0.0, 0.25)], image=(0.0, 0.25)
)
softplus_prime = sigmoid
silu_prime = _function(
    "the derivative of SiLU",
    _silu_prime,
    turns=[
        (-2.399357280520547668, -0.0998393201288669170),
        (2.399357280520547668, 1.09983932012886691696),
    ],
)
gelu_prime = _function(
    "the derivative of GELU",
    _gelu_prime,
    turns=[
        (-1.414213562373095049, -0.128904145185154786),
        (1.414213562373095049, 1.12890414518515478634),
    ],
)


def log(x: Interval) -> Interval:
    """Enclosure of the natural logarithm over the positive part of x; same shape.

    >>> log(Interval(-1.0, 1.0)).lo, log(Interval(1.0)).contains(0.0)
    (tensor(-inf, dtype=torch.float64), tensor(True))
    """
    x = interval(x)
    lo, hi = _bounds(_torch(torch.log), x.to(torch.float64) & Interval(0.0, INF))
    never = x.hi <= 0  # the domain is open at zero
    return Interval._make(lo.masked_fill(never, math.nan), hi.masked_fill(never, math.nan)).to(
        x.dtype
    )


def sqrt(x: Interval) -> Interval:
    """Enclosure of the square root over the non-negative part of x; same shape.

    >>> sqrt(Interval(-1.0, 4.0)).contains(torch.tensor([0.0, 2.0, 2.1]))
    tensor([ True,  True, False])
    >>> sqrt(Interval(-2.0, -1.0)).is_empty
    tensor(True)
    """
    x = interval(x)
    domain = x.to(torch.float64) & Interval(0.0, INF)
    lo, hi = domain.lo.sqrt(), domain.hi.sqrt()
    return Interval._make(down(lo).clamp(min=0.0), torch.where(hi == 0, hi, up(hi))).to(x.dtype)


def power(x: Interval, exponent: float) -> Interval:
    """Enclosure of x**exponent where that increases: exponent > 0, and x >= 0 unless it is odd.

    >>> power(Interval(-2.0, 3.0), 3).contains(torch.tensor([-8.0, 27.0, 28.0]))
    tensor([ True,  True, False])
    """
    lo, hi = _bounds(_torch(lambda t: torch.pow(t, exponent)), x.to(torch.float64))
    lo = torch.where(x.lo >= 0, lo.clamp(min=0.0), lo)
    hi = torch.where(x.hi <= 0, hi.clamp(max=0.0), hi)
    return Interval._make(lo, hi).to(x.dtype)


PI = Interval(math.pi, math.nextafter(math.pi, 4.0))


def _wave(torch_function, shift: float):
    """sin (shift 1/2) or cos (shift 0): 1 at (2 j + shift) pi, -1 one half turn further."""

    def function(x: Interval) -> Interval:
        x = interval(x)
        x64 = x.to(torch.float64)
        lo, hi = _bounds(_torch(torch_function), x64)
        half_turns = x64 / PI - shift
        top = torch.floor(half_turns.hi / 2) >= torch.ceil(half_turns.lo / 2)
        half_turns = half_turns - 1
        bottom = torch.floor(half_turns.hi / 2) >= torch.ceil(half_turns.lo / 2)
        far = x64.mag > 2.0**30
        lo = lo.masked_fill(bottom | far, -1.0).clamp(-1.0, 1.0)
        hi = hi.masked_fill(top | far, 1.0).clamp(-1.0, 1.0)
        return Interval._make(lo, hi).to(x.dtype)

    function.__doc__ = f"Enclosure of {torch_function.__name__}(x); [-1, 1] beyond |x| = 2^30."
    return function


cos = _wave(torch.cos, 0.0)
sin = _wave(torch.sin, 0.5)


def relu(x: Interval) -> Interval:
    """max(x, 0), exact; same shape and dtype.

    >>> relu(Interval(-1.0, 2.0))
    Interval(lo=0.0, hi=2.0)
    """
    return interval(x)._both(lambda t: t.clamp(min=0.0))


def relu_prime(x: Interval) -> Interval:
    """The step, and all of [0, 1] where x touches zero (Clarke's derivative).

    >>> relu_prime(Interval(-1.0, 2.0)), relu_prime(Interval(1.0, 2.0))
    (Interval(lo=0.0, hi=1.0), Interval(lo=1.0, hi=1.0))
    """
    x = interval(x)
    lo, hi = (x.lo > 0).to(x.dtype), (x.hi >= 0).to(x.dtype)
    return Interval._make(lo.where(~x.is_empty, x.lo), hi.where(~x.is_empty, x.lo))
