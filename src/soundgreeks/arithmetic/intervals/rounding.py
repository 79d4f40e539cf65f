r"""What rounding adds to a network that computes in floating point.

An enclosure of the function that a network's weights define says nothing of the number that a
program prints for it: that one carries the rounding errors of every product, sum and activation.
They are bounded here, layer by layer, from the enclosures of what enters, and `forward` and `trace`
add them with ``computed=True``. With u the unit round-off of the network's own dtype:

1. *Layers.* n products and a bias, summed in any order, blocked, in a tree or fused, give

   .. math:: |fl(w \cdot x + b) - (w \cdot x + b)| \le \gamma_{n+1} (|w| \cdot |x| + |b|),
             \qquad \gamma_n = \frac{n u}{1 - n u},

   and what underflow loses (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
   eq. 3.5 and sec. 2.1). Backward the same holds for the products with the transposed weights.
2. *Activations* err by at most ``ACTIVATION`` eps (1 + \|x\|), eps = 2 u, and their derivatives,
   times what comes back to them, by that times its size. This is an assumption about torch's
   kernels; `benchmarks/ulps.py` measures it. ReLU is exact.

Not covered: products in less precision than the weights' (TF32 and bfloat16 kernels, autocast),
fast matrix products (Strassen), flushed operands, and an input that has to be rounded first.
"""

import torch
from torch import Tensor, nn

from ..._validate import require
from .arithmetic import Interval

ACTIVATION = 4  # assumed error of an activation or of its derivative, in eps (1 + |x|)


def layer_error(x: Interval, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Bound on the rounding error of x w' + b in the dtype of w, for x in (..., n); float64.

    >>> layer_error(Interval(torch.ones(1, 1000)), torch.ones(1, 1000)) / 2**-24
    tensor([[1001060.6822]], dtype=torch.float64)

    Raises
    ------
    ValueError
        A dtype for which no rounding is known, or a row too long for a bound.
    """
    require(weight.dtype in (torch.float32, torch.float64), "weight.dtype", weight.dtype,
            "torch.float32 or torch.float64")  # fmt: skip
    kind, terms = torch.finfo(weight.dtype), weight.shape[-1] + 1
    nu = terms * kind.eps / 2
    require(nu < 0.5, "weight", tuple(weight.shape), f"rows shorter than {1 / kind.eps:g}")
    size = x.mag.double() @ weight.detach().abs().double().mT
    if bias is not None:
        size = size + bias.detach().abs().double()
    return nu / (1 - nu) * size * (1 + 2.0**-20) + 4 * terms * kind.tiny


def activation_error(x: Interval, activation: type[nn.Module], dtype: torch.dtype) -> Tensor:
    """Bound on the rounding error of an activation, or its derivative, at x; float64.

    >>> activation_error(Interval(1.0), nn.SiLU, torch.float32) / 2**-23
    tensor(8., dtype=torch.float64)
    """
    exact = activation is nn.ReLU
    return (1 + x.mag.double()) * (0.0 if exact else ACTIVATION * torch.finfo(dtype).eps)


def widened(y: Interval, error: Tensor) -> Interval:
    """y and everything that is no further from it than `error`.

    >>> widened(Interval(1.0), torch.tensor(0.5))
    Interval(lo=0.5, hi=1.5)
    """
    return y + Interval(-error, error)
