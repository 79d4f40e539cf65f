"""Worst errors of torch's elementary functions, and of activations and their derivatives.

Run `OMP_NUM_THREADS=1 python benchmarks/ulps.py` (minutes), on a GPU with `--device cuda`, more
quickly with `--points 1_000_000`. It measures what IEEE 754 does not promise and
`soundgreeks.intervals` assumes:

- the functions under its own kernels, which run in float64, in units in the last place of the true
  result (float32 beside them): at most `functions.KERNEL` = 4, for erfc `KERNEL_ERFC` = 8;
- what a network evaluates between its layers, and autograd on the way back, in eps (1 + |x|): at
  most `rounding.ACTIVATION` = 4.

Half the arguments are uniform in the range given below, half of every magnitude in it. The
reference is numpy's long double (64 bits of mantissa: an x86 machine), with series of our own for
erf and erfc; `tests/test_interval_rounding.py` holds it against ball arithmetic. The rows of one
device are replaced in book/data/ulps.json.
"""

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn

FILE = Path(__file__).parents[1] / "book/data/ulps.json"
LONG = np.longdouble
TWO_OVER_ROOT_PI = 1 / np.sqrt(np.arctan(LONG(1)))


def sliced(function):
    """`function` on slices of sorted arguments: each costs no more terms than its own need."""

    def whole(x):
        order = np.argsort(np.abs(x))
        result = np.empty_like(x)
        for part in np.array_split(order, 32):
            result[part] = function(x[part])
        return result

    return whole


def bell(x):
    """exp(-x^2): the square of the first 24 bits of x is exact, and the rest of it is small."""
    first = x.astype(np.float32).astype(LONG)
    return np.exp(-first * first) * np.exp(-(x - first) * (x + first))


def series(x):
    """erf(x) = 2/sqrt(pi) x exp(-x^2) sum_n (2 x^2)^n / (2n + 1)!!, all terms of one sign."""
    term = total = np.ones_like(x)
    square = 2 * x * x
    for n in range(1, 24 + int(3 * np.abs(x).max(initial=0) ** 2)):
        term = term * (square / (2 * n + 1))
        total = total + term
    return TWO_OVER_ROOT_PI * x * bell(x) * total


def tail(x):
    """erfc(x) for x >= 1 by Laplace's continued fraction, from its last term backward."""
    fraction = np.zeros_like(x)
    for n in range(12 + int(290 / x.min(initial=30) ** 2), 0, -1):
        fraction = n / (2 * (x + fraction))
    return TWO_OVER_ROOT_PI / 2 * bell(x) / (x + fraction)


erf = sliced(series)


@sliced
def erfc(x):
    result, large = np.empty_like(x), x >= 1
    result[~large] = 1 - series(np.maximum(x[~large], -6.9))  # below, 2 to the last digit
    result[large] = tail(x[large])
    return result


def logistic(x):
    return 1 / (1 + np.exp(-x))


def cdf(x):
    return erfc(-x / np.sqrt(LONG(2))) / 2


def pdf(x):
    return TWO_OVER_ROOT_PI / np.sqrt(LONG(8)) * np.exp(-x * x / 2)


FUNCTIONS = {  # name: (torch's, the reference, ranges of arguments in float64 and in float32)
    "exp": (torch.exp, np.exp, (-700, 700), (-86, 86)),
    "log": (torch.log, np.log, (1e-300, 1e300), (1e-36, 1e36)),
    "log1p": (torch.log1p, np.log1p, (0, 1), (0, 1)),
    "sin": (torch.sin, np.sin, (-(2**30), 2**30), (-(2**30), 2**30)),
    "cos": (torch.cos, np.cos, (-(2**30), 2**30), (-(2**30), 2**30)),
    "tanh": (torch.tanh, np.tanh, (-30, 30), (-30, 30)),
    "erf": (torch.erf, erf, (-6.5, 6.5), (-6.5, 6.5)),
    "erfc": (torch.erfc, erfc, (-6.5, 26.5), (-6.5, 9)),
    "pow 1.75": (lambda x: x**1.75, lambda x: x ** LONG(1.75), (1e-170, 1e170), (1e-21, 1e21)),
    "pow 3": (lambda x: x**3, lambda x: x * x * x, (-1e100, 1e100), (-1e12, 1e12)),
}
ACTIVATIONS = {  # activation: (its value, its derivative, range); beyond it nothing happens
    nn.SiLU: (
        lambda x: x * logistic(x), lambda x: logistic(x) * (1 + x * logistic(-x)), (-100, 100)
    ),
    nn.GELU: (lambda x: x * cdf(x), lambda x: cdf(x) + x * pdf(x), (-9, 9)),
    nn.Tanh: (np.tanh, lambda x: 4 * logistic(2 * x) * logistic(-2 * x), (-30, 30)),
    nn.Sigmoid: (logistic, lambda x: logistic(x) * logistic(-x), (-100, 100)),
    nn.Softplus: (lambda x: np.log1p(np.exp(x)), logistic, (-100, 20)),
}  # fmt: skip


def arguments(n, span, dtype, generator):
    low, high = (float(s) for s in span)
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    x = low + (high - low) * u
    size = u[::2]
    if low > 0:
        x[::2] = low * (high / low) ** size
        x[::4] = torch.exp(4 * u[::4] - 2)  # where a logarithm changes its sign
    else:
        end = torch.where(size < 0.5, x.new_tensor(low), x.new_tensor(high))
        x[::2] = end * 10.0 ** (-16 * size.flip(0))
    return x.clamp(low, high).to(dtype)


def long(x):
    return x.detach().cpu().double().numpy().astype(LONG)


def ulp(x, truth):
    """One unit in the last place of the true results, in the dtype of x."""
    return np.spacing(np.abs(truth).astype(str(x.dtype)[6:])).astype(LONG)


def eps(x, truth):
    return LONG(torch.finfo(x.dtype).eps) * (1 + np.abs(long(x)))


def slope(module, x, back):
    """What autograd returns for x when `back` arrives at the module, over `back`."""
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(module(x), x, back)
    return long(found) / long(back)


def cases(dtype, generator, device):
    """(name, unit's name, what torch computes, truth, range, unit) for all that is measured."""
    for name, (f, truth, *spans) in FUNCTIONS.items():
        span = spans[dtype == torch.float32]
        yield name, "ulp", lambda x, f=f: long(f(x)), truth, span, ulp
    for kind, (value, derivative, span) in ACTIVATIONS.items():
        module = kind()

        def backward(x, module=module):
            back = 1 + torch.rand(len(x), generator=generator, dtype=dtype)
            return slope(module, x, back.to(device))

        name = kind.__name__
        yield name, "eps (1 + |x|)", lambda x, m=module: long(m(x)), value, span, eps
        yield f"{name}, derivative", "eps (1 + |x|)", backward, derivative, span, eps


def measure(points, device="cpu", seed=0, chunk=2**17):
    """One row a function and dtype: points, worst error in its unit, and where that was."""
    if np.finfo(LONG).nmant < 63:
        raise SystemExit("long double is no longer than double here: there is no reference")
    generator = torch.Generator()
    for dtype in (torch.float64, torch.float32):
        for name, units, compute, reference, span, unit in cases(dtype, generator, device):
            generator.manual_seed(seed)
            worst, at = 0.0, 0.0
            for done in range(0, points, chunk):
                x = arguments(min(chunk, points - done), span, dtype, generator)
                truth = reference(long(x))
                error = np.abs(compute(x.to(device)) - truth) / unit(x, truth)
                i = int(np.nanargmax(error))
                if not np.isfinite(error).all():
                    raise SystemExit(f"{name}: no number at {float(x[i])}")
                if error[i] > worst:
                    worst, at = float(error[i]), float(x[i])
            yield {"function": name, "dtype": str(dtype)[6:], "points": points, "unit": units,
                   "worst": round(worst, 3), "at": at}  # fmt: skip


def processor(device):
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    names = [n for n in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in n]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print, and leave the file alone")
    given = parser.parse_args()
    about = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(),
             "processor": processor(given.device), "seed": given.seed}  # fmt: skip
    rows = []
    for row in measure(given.points, given.device, given.seed):
        rows.append({"device": given.device.partition(":")[0]} | row)
        print("{function:20s} {dtype} {points:>12,d} {worst:8.3f} {unit} at {at:.9g}".format(**row))
    if not given.dry:
        old = json.loads(FILE.read_text()) if FILE.exists() else {"devices": {}, "rows": []}
        device = rows[0]["device"]
        old["devices"][device] = about
        old["rows"] = [r for r in old["rows"] if r["device"] != device] + rows
        FILE.write_text(json.dumps(old, indent=1) + "\n")


if __name__ == "__main__":
    main()
