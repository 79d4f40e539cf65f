r"""Rigorous intervals of tensors, and the interval values and adjoints of a network.

An interval [x] = [lo, hi] stands for every real number between its bounds. Whatever is computed
here contains the true result of real arithmetic on all those numbers: rounding errors are bounded
and the bounds moved outward. Three facts carry the proof.

1. *One operation.* All arithmetic is done in float64, where +, -, \*, / and sqrt are correctly
   rounded (IEEE 754, round to nearest, subnormal numbers kept), so one step of `torch.nextafter`
   encloses. float32 is a storage format: bounds are rounded outward once, at the end.
2. *Elementary functions.* The kernels behind `torch.exp` and its like promise one to two units in
   the last place (SLEEF, MKL, CUDA; five for erfc). We assume no more than `KERNEL` = 4 (erfc: 8);
   no proof of that is known, `benchmarks/ulps.py` measures it on ten million arguments each.
   Everything else is built from these by written error bounds.
3. *Inner products.* In any order of summation, with or without fused multiply-add,
   |fl(x.y) - x.y| <= gamma_n |x|.|y| + n eta, where gamma_n = n u / (1 - n u), u = 2^-53 and
   eta = 2^-1074 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, sec. 3.1, 2.1).

The numbers that a network prints carry the rounding errors of its own precision besides; `forward`
and `trace` enclose those too with ``computed=True``, by the bounds in `rounding`.

The rules for empty, unbounded and domain-crossing arguments are those of IEEE 1788-2015, set-based
flavour: a function acts on the part of its argument inside its domain, log([-1, 1]) = [-inf, 0],
sqrt([-2, -1]) is empty, 1/[0, 1] = [1, inf], 1/[-1, 1] is the whole line, 0 * [-inf, inf] = 0.
Where we stop short of the standard: no decorations and no text input; functions are accurate to a
few units in the last place, not the tightest possible; sin and cos give up, returning [-1, 1],
beyond |x| = 2^30; below about 1e-300 bounds are valid but no longer tight.
"""

from .arithmetic import Interval
from .functions import (
    cos,
    erf,
    exp,
    gelu,
    gelu_prime,
    log,
    normal_cdf,
    normal_pdf,
    relu,
    relu_prime,
    sigmoid,
    sigmoid_prime,
    silu,
    silu_prime,
    sin,
    softplus,
    softplus_prime,
    sqrt,
    tanh,
    tanh_prime,
)
from .networks import ACTIVATIONS, Trace, forward, layers_of, mean_value, split, trace, values

__all__ = [
    "ACTIVATIONS",
    "Interval",
    "Trace",
    "cos",
    "erf",
    "exp",
    "forward",
    "gelu",
    "gelu_prime",
    "layers_of",
    "log",
    "mean_value",
    "normal_cdf",
    "normal_pdf",
    "relu",
    "relu_prime",
    "sigmoid",
    "sigmoid_prime",
    "silu",
    "silu_prime",
    "sin",
    "softplus",
    "softplus_prime",
    "split",
    "sqrt",
    "tanh",
    "tanh_prime",
    "trace",
    "values",
]
