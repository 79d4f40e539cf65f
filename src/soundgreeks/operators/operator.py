r"""Pricing operators: a configuration, the network it describes, prices and Greeks.

The configuration is all there is to know about a training run; presets name the ones the book
uses. `paper` is DeepSVM's section III.C to the letter; the paper states neither the width nor
the length p of the embeddings, 128 both is our choice.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from .._validate import floating, require
from ..arithmetic import jets
from ..arithmetic.jets import Jet
from ..models.heston import TABLE_I, Greeks, Parameters
from ..training import Phase
from . import ansatz
from .networks import MLP, DeepONet

_BRANCH = ("kappa", "theta", "sigma", "rho", "r")
_COORDINATES = ("x", "nu", "tau")


@dataclass(frozen=True)
class Config:
    """Everything that determines a training run, on a given machine and number of threads.

    Attributes
    ----------
    network : "deeponet" (branch and trunk) or "similarity" (one residual MLP, see
        `ansatz.similarity_features`)
    ansatz : a key of `ansatz.ANSATZ`
    features : trunk inputs, "plain" or "scales"
    width, hidden, latent, activation : of the networks
    sampling : "rar" (a set that adaptive refinement renews) or "fresh" (new points every step)
    grid : False for points that each have parameters of their own; True for M x P products
    points : residual points with parameters of their own, or (M, P): M parameter vectors, each
        against P points
    x_map : "tanh" (eq. 14), "sinh" or "uniform"
    atm, boundary, boundary_second : points, likewise, in the at-the-money and boundary sets; the
        second boundary set joins before the first L-BFGS phase
    rar_every, rar_candidates, rar_replaced : steps between refinements; candidates drawn and
        points replaced in each, as fractions of the active set
    lambda_max, lambda_boundary, lambda_atm : weights of eqs. 11 and 12
    nu_low, nu_high, x_half, tau_low : edges of the collocation domain, if not Table I's
    feller_share : share of parameter vectors moved next to the Feller boundary
    chunk : residual points evaluated at a time; bounds memory, changes nothing else
    """

    name: str = "custom"
    network: str = "deeponet"
    ansatz: str = "printed"
    features: str = "plain"
    width: int = 128
    hidden: int = 4
    latent: int = 128
    activation: str = "gelu"
    sampling: str = "rar"
    points: int | tuple[int, int] = 200_000
    x_map: str = "tanh"
    atm: int | tuple[int, int] = 4096
    boundary: int | tuple[int, int] = 2048
    boundary_second: int | tuple[int, int] = 2048
    rar_every: int = 500
    rar_candidates: float = 0.25
    rar_replaced: float = 0.10
    lambda_max: float = 0.1
    lambda_boundary: float = 1.0
    lambda_atm: float = 1.0
    nu_low: float = TABLE_I["nu"][0]
    nu_high: float = TABLE_I["nu"][1]
    x_half: float = TABLE_I["x"][1]
    tau_low: float = TABLE_I["tau"][0]
    feller_share: float = 0.0
    chunk: int = 16_384
    phases: tuple[Phase, ...] = field(
        default=(Phase("adam", 10_000, 1e-4, halve_every=2_000), Phase("lbfgs", 5_000))
    )
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        for name, known in dict(
            network=("deeponet", "similarity"),
            ansatz=tuple(ansatz.ANSATZ),
            features=("plain", "scales"),
            sampling=("rar", "fresh"),
            x_map=("tanh", "sinh", "uniform"),
            dtype=("float32", "float64"),
        ).items():
            require(getattr(self, name) in known, name, getattr(self, name), f"one of {known}")
        require(
            0 < self.rar_replaced <= self.rar_candidates <= 1,
            "rar_replaced",
            self.rar_replaced,
            "in (0, rar_candidates], rar_candidates in (0, 1]",
        )
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1")

    def to_dict(self) -> dict:
        """A dictionary of plain values, from which `from_dict` makes the configuration again."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """Raises ValueError on a key that is not an attribute."""
        unknown = set(values) - {f.name for f in fields(cls)}
        require(not unknown, "configuration keys", sorted(unknown), "attributes of Config")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        values["phases"] = tuple(Phase(**p) for p in values.get("phases", ()))
        return cls(**values)


_LAPTOP = Config(
    points=(64, 256), atm=(32, 64), boundary=(32, 32), boundary_second=(32, 32),
    width=64, latent=64,
    phases=(Phase("adam", 2_000, 1e-3, halve_every=500), Phase("lbfgs", 500)),
)  # fmt: skip

# The paper's numbers, with the 200,000 points as 256 parameter vectors x 784 points: what a
# CPU can do in an hour, because the trunk then sees 784 points instead of 200,000.
_PAPER_GRID = Config(
    points=(256, 784), atm=(64, 64), boundary=(64, 32), boundary_second=(64, 32), chunk=65_536
)

PRESETS: dict[str, Config] = {
    "paper": Config(name="paper"),
    "paper_grid": replace(_PAPER_GRID, name="paper_grid"),
    "paper_anchor": replace(_PAPER_GRID, name="paper_anchor", ansatz="anchor"),
    "paper_implied": replace(_PAPER_GRID, name="paper_implied", ansatz="implied"),
    "printed": replace(_LAPTOP, name="printed"),
    "smoothed": replace(_LAPTOP, name="smoothed", ansatz="smoothed"),
    "anchor": replace(_LAPTOP, name="anchor", ansatz="anchor"),
    "implied": replace(_LAPTOP, name="implied", ansatz="implied"),
    "sound": Config(
        name="sound", network="similarity", ansatz="implied_scaled", width=64, hidden=4,
        activation="silu", sampling="fresh", points=4096, atm=0, boundary=0, boundary_second=0,
        lambda_max=0.0, nu_low=1e-4, nu_high=0.8, x_half=2.5, tau_low=5e-4, feller_share=0.25,
        phases=(Phase("soap", 6_000, 3e-3, warmup=100),),
    ),
    "smoke": replace(
        _LAPTOP, name="smoke", width=16, latent=16, hidden=2, points=(8, 32), atm=(4, 8),
        boundary=(8, 4), boundary_second=(8, 4), rar_every=5,
        phases=(Phase("adam", 12, 1e-3, halve_every=5), Phase("soap", 6), Phase("lbfgs", 30)),
    ),
}  # fmt: skip
"""Named configurations; `dataclasses.replace` changes one."""


class Operator(nn.Module):
    """A network in its ansatz: u(x, nu, tau; p) with all derivatives that the equation needs.

    Prices are per unit of strike. Arguments broadcast; M parameter vectors of shape (M, 1)
    against P points of shape (P,) give (M, P) at the cost of P trunk and M branch evaluations.
    `price` and `greeks` take `chunk` options at a time.
    """

    chunk = 4096

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        shape = dict(width=config.width, hidden=config.hidden, activation=config.activation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if config.network == "similarity":
                self.network = MLP(9, 1, **shape)
            else:
                trunk = [TABLE_I[name] for name in _COORDINATES]
                trunk += ansatz.SCALE_RANGES if config.features == "scales" else []
                branch = [TABLE_I[name] for name in _BRANCH]
                self.network = DeepONet(branch, trunk, latent=config.latent, **shape)
        self.to(getattr(torch, config.dtype))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def features(self, x: Jet, nu: Jet, tau: Jet) -> list[Jet]:
        """The trunk's inputs."""
        scales = self.config.features == "scales"
        return (ansatz.scale_features if scales else ansatz.plain_features)(x, nu, tau)

    def correction(self, x: Jet, nu: Jet, tau: Jet, p: Parameters) -> Jet:
        """The network's output N as a jet."""
        if self.config.network == "similarity":
            h = jets.stack(ansatz.similarity_features(x, nu, tau, p))
            return jets.unstack(self.network.jet(h)[..., 0].unbind(0))
        return self.network.jet(p.stack(), self.features(x, nu, tau))

    def jet(self, x: Tensor, nu: Tensor, tau: Tensor, p: Parameters) -> Jet:
        """u and its six derivatives, in the dtype of the network; no validation."""
        return self.on(jets.coordinates(x, nu, tau), p)

    def value(self, x: Tensor, nu: Tensor, tau: Tensor, p: Parameters) -> Tensor:
        """u alone, at the cost of one channel; no validation."""
        return self.on((Jet(x), Jet(nu), Jet(tau)), p).value

    def on(self, coordinates: Sequence[Jet], p: Parameters) -> Jet:
        """u on jets of (x, nu, tau), with the channels that these carry."""
        n = self.correction(*coordinates, p)
        return ansatz.ANSATZ[self.config.ansatz](n, *coordinates, p)

    @torch.no_grad()
    def price(self, x, nu, tau, p: Parameters) -> Tensor:
        """Call price in units of strike.

        Parameters
        ----------
        x : log-moneyness ln(S/K)
        nu : instantaneous variance, >= 0
        tau : time to maturity in years, >= 0
        p : model parameters; everything broadcasts

        Raises
        ------
        ValueError
            `nu` or `tau` negative or NaN, or shapes that do not broadcast.

        Warns
        -----
        UserWarning
            An argument outside Table I, the range of training, or a violated Feller condition.
        """
        return _in_pieces(
            lambda *a: (self.value(*a),), *self._arguments(x, nu, tau, p), 7 * self.chunk
        )[0]

    @torch.no_grad()
    def greeks(self, x, nu, tau, p: Parameters) -> Greeks:
        """Price, Delta and Gamma (eqs. 15 and 16, K = 1), vega (d/dnu) and theta (-d/dtau).

        Arguments and errors as for `price`.
        """
        x, nu, tau, p = self._arguments(x, nu, tau, p)
        return Greeks(*_in_pieces(self._greeks, x, nu, tau, p, self.chunk))

    def _greeks(self, x, nu, tau, p: Parameters) -> tuple[Tensor, ...]:
        u = self.jet(x, nu, tau, p)
        e = torch.exp(-x)
        return torch.broadcast_tensors(u.value, e * u.x, e * e * (u.xx - u.x), u.nu, -u.tau)

    def _arguments(self, x, nu, tau, p: Parameters):
        x, nu, tau = floating(x=x, nu=nu, tau=tau)
        require(torch.isfinite(x), "x", x, "finite")
        require((nu >= 0) & torch.isfinite(nu), "nu", nu, "non-negative and finite")
        require((tau >= 0) & torch.isfinite(tau), "tau", tau, "non-negative and finite")
        try:
            torch.broadcast_tensors(x, p.kappa)
        except RuntimeError as error:
            raise ValueError(
                f"shapes do not broadcast: x {tuple(x.shape)}, p {tuple(p.shape)}"
            ) from error
        _warn_outside(p, x=x, nu=nu, tau=tau, **{k: getattr(p, k) for k in _BRANCH})
        like = dict(dtype=self.dtype, device=self.device)
        return x.to(**like), nu.to(**like), tau.to(**like), Parameters(*(v.to(**like) for v in p))


def _in_pieces(function, x, nu, tau, p: Parameters, chunk: int) -> tuple[Tensor, ...]:
    """`function` on slices of the last dimension, joined: the memory of at most `chunk` options."""
    n = max((1, *x.shape[-1:], *p.shape[-1:]))
    rows = max(1, math.prod(torch.broadcast_tensors(x, p.kappa)[0].shape[:-1]))
    step = max(1, chunk // rows)
    if n <= step:
        return function(x, nu, tau, p)

    def cut(a, i):
        return a[..., i : i + step] if a.shape[-1:] == (n,) else a

    pieces = [
        function(*(cut(a, i) for a in (x, nu, tau)), Parameters(*(cut(v, i) for v in p)))
        for i in range(0, n, step)
    ]
    return tuple(torch.cat(channel, dim=-1) for channel in zip(*pieces, strict=True))


def _warn_outside(p: Parameters, **arguments: Tensor) -> None:
    for name, value in arguments.items():
        low, high = TABLE_I[name]
        slack = 1e-6 * (high - low)  # a float32 0.01 is not quite 0.01
        outside = (value < low - slack) | (value > high + slack)
        if bool(outside.any()):
            first = value[outside].flatten()[0].item()
            _warn(f"{name} = {first:.6g} is outside [{low}, {high}], the range of training")
    if bool((p.sigma**2 >= (1 + 1e-6) * 2 * p.kappa * p.theta).any()):
        _warn("2 kappa theta <= sigma^2 is outside the Feller condition of training")


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=5)
