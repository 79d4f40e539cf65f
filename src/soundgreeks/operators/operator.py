r"""Pricing operators: a configuration, the network it describes, prices and Greeks.

The configuration is all there is to know about a training run; presets name the ones the book
uses. `paper` is DeepSVM's section III.C to the letter, but for what the paper leaves open. It
states neither the width nor the length p of the embeddings, 128 both is our choice, and <b, t> is
scaled by 1/sqrt(p), of which it says nothing.
"""

import math
import warnings
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from .._validate import require, tensors
from ..arithmetic import jets
from ..arithmetic.jets import Jet
from ..models import barrier, garch, heston, lifted_heston, lognormal
from ..models.claims import CLAIMS
from ..models.domain import Domain
from ..models.model import MODELS, Greeks, as_states, delta_gamma
from ..models.paths import Estimate
from ..training import Phase
from ..training.phases import is_real
from . import ansatz, equation
from .collocation import MAPS
from .correction import Corrected, Correction, estimate
from .networks import MLP, DeepONet


@dataclass(frozen=True)
class Config:
    """Everything that determines a training run, on a given machine and number of threads.

    >>> sum(phase.steps for phase in Config().phases), Config().points
    (15000, 200000)

    Attributes
    ----------
    network : "deeponet" (branch and trunk) or "similarity" (one residual MLP, see
        `ansatz.similarity_features` and, for the ansatz "smile", `ansatz.smile_features`)
    model, claim : names of a `models.Model` and a `claims.Claim`
    ansatz : a key of `ansatz.ANSATZ`
    domain : ranges of parameters, x, states and tau to collocate in; the model's own by default
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
    edge_share : share of parameter vectors moved next to the edge of the domain's condition
    spread, tau_power : of fresh points, see `collocation.draw_similar`
    early : years below which residuals count less, by the factor (tau/(tau + early))^{1/4}; there
        they are large and matter to no price, as this is what they are integrated over
    robust : size above which residuals count by their absolute value, `equation.physics_loss`; 0
        for mean squares. Where the domain is wide, a few residuals at tiny variances hold those
    sobolev : weights (lambda_1, lambda_2) of the mean squares of s R_x and s^2 R_xx beside that of
        R, with s = sqrt(w), w the expected total variance; (0, 0) for the equation alone
    sobolev_step : of these, central differences over this many s to either side, at twice or
        three times the cost of R; 0 for exact derivatives, by reverse mode, at several times that
    gamma_penalty : weight of the mean square of s Gamma where it is negative, in the last phase,
        on the at-the-money points or, if there are none, the residual points
    chunk : residual points evaluated at a time; bounds memory, changes nothing else

    Raises
    ------
    ValueError
        An unknown name, a number outside its range, or a domain that lacks a coordinate.
    """

    name: str = "custom"
    model: str = "heston"
    claim: str = "call"
    network: str = "deeponet"
    ansatz: str = "printed"
    domain: Domain = None  # type: ignore[assignment]  # set in __post_init__
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
    edge_share: float = 0.0
    spread: float = 1.6
    tau_power: float = 2.0
    early: float = 0.0
    robust: float = 0.0
    sobolev: tuple[float, float] = (0.0, 0.0)
    sobolev_step: float = 0.1
    gamma_penalty: float = 0.0
    chunk: int = 16_384
    phases: tuple[Phase, ...] = field(
        default=(Phase("adam", 10_000, 1e-4, halve_every=2_000), Phase("lbfgs", 5_000))
    )
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        for name, known in dict(
            model=tuple(MODELS), claim=tuple(CLAIMS), network=("deeponet", "similarity"),
            ansatz=tuple(ansatz.ANSATZ), activation=tuple(jets.ACTIVATIONS),
            sampling=("rar", "fresh"), x_map=tuple(MAPS), dtype=("float32", "float64"),
        ).items():  # fmt: skip
            require(getattr(self, name) in known, name, getattr(self, name), f"one of {known}")
        model = MODELS[self.model]
        if self.domain is None:
            object.__setattr__(self, "domain", model.domain)
        needed = {*model.Parameters._fields, *model.states, "x", "tau"}
        require(set(self.domain) == needed, "domain", list(self.domain), f"of {sorted(needed)}")
        model.condition(self.domain)
        for name, least in dict(
            width=1, hidden=1, latent=1, rar_every=1, chunk=1, seed=0, atm=0, boundary=0,
            boundary_second=0, points=1,
        ).items():  # fmt: skip
            value = getattr(self, name)
            parts = value if isinstance(value, tuple) else (value,)
            whole = all(isinstance(v, int) and not isinstance(v, bool) for v in parts)
            require(whole and min(parts) >= least, name, value, f"whole and at least {least}")
        names = ("lambda_max", "lambda_boundary", "lambda_atm", "spread", "tau_power", "early",
                 "robust", "sobolev_step", "gamma_penalty")  # fmt: skip
        for name in names:
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "finite and non-negative")
        pair = isinstance(self.sobolev, tuple) and len(self.sobolev) == 2
        pair = pair and all(is_real(v) and v >= 0 for v in self.sobolev)
        require(pair, "sobolev", self.sobolev, "a pair of finite and non-negative numbers")
        require(0 <= self.edge_share <= 1, "edge_share", self.edge_share, "in [0, 1]")
        require(
            0 < self.rar_replaced <= self.rar_candidates <= 1,
            "rar_replaced",
            self.rar_replaced,
            "in (0, rar_candidates], rar_candidates in (0, 1]",
        )
        require(len(self.phases) > 0, "phases", self.phases, "at least one")
        squares = "gauss-newton" in {phase.optimizer for phase in self.phases}
        require(not (self.robust and squares), "robust", self.robust, "0 for gauss-newton")

    def to_dict(self) -> dict:
        """A dictionary of plain values, from which `from_dict` makes the configuration again."""
        return asdict(self) | {"domain": self.domain.to_dict()}

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """Raises ValueError on a key that is not an attribute; reads the first format too.

        >>> Config.from_dict(Config(width=32).to_dict()).width
        32
        """
        values = _first_format(dict(values))
        unknown = set(values) - {f.name for f in fields(cls)}
        require(not unknown, "configuration keys", sorted(unknown), "attributes of Config")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        values["phases"] = tuple(Phase(**p) for p in values.get("phases", ()))
        if "domain" in values:
            values["domain"] = Domain.from_dict(values["domain"])
        return cls(**values)


def _first_format(values: dict) -> dict:
    """Configurations of the first format knew Heston alone, and its domain by four edges."""
    if "nu_low" not in values:
        return values
    nu = values.pop("nu_low"), values.pop("nu_high")
    half, early = values.pop("x_half"), values.pop("tau_low")
    domain = heston.TABLE_I | {"nu": nu, "x": (-half, half), "tau": (early, 1.0)}
    values |= {"domain": domain.to_dict(), "edge_share": values.pop("feller_share")}
    require(values.pop("features") == "plain", "features", "other", "plain")
    return values


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

# Where the paths of Table I really go, with points where the price bends.
_VISITED = {"nu": (1e-4, 1.2), "x": (-3.5, 3.5), "tau": (5e-4, 1.0)}
_SOUND = Config(
    model="heston_smooth", network="similarity", ansatz="smile", width=96, hidden=4,
    activation="silu", sampling="fresh", points=6144, atm=0, boundary=0, boundary_second=0,
    lambda_max=0.0, edge_share=0.25, spread=2.2, tau_power=1.6, early=0.1,
    domain=heston.TABLE_I | _VISITED,
    phases=(
        Phase("soap", 10_000, 1.5e-2, warmup=100, epsilon=1e-15),
        Phase("soap", 6_000, 4e-3, warmup=100, epsilon=1e-15),  # on from the first's plateau
    ),
)  # fmt: skip

PRESETS: dict[str, Config] = {
    "paper": Config(name="paper"),
    # Every point has parameters of its own, as in `paper`: as many as a CPU core can pay for.
    "paper_points": Config(
        name="paper_points", points=4096, atm=256, boundary=128, boundary_second=128, chunk=2048
    ),
    "paper_grid": replace(_PAPER_GRID, name="paper_grid"),
    "paper_anchor": replace(_PAPER_GRID, name="paper_anchor", ansatz="anchor"),
    "paper_implied": replace(_PAPER_GRID, name="paper_implied", ansatz="implied"),
    "printed": replace(_LAPTOP, name="printed"),
    "smoothed": replace(_LAPTOP, name="smoothed", ansatz="smoothed"),
    "anchor": replace(_LAPTOP, name="anchor", ansatz="anchor"),
    "implied": replace(_LAPTOP, name="implied", ansatz="implied"),
    # A short last phase lifts the few Gammas below zero that are left, far in the wings.
    "sound": replace(
        _SOUND, name="sound", gamma_penalty=1e4,
        phases=(*_SOUND.phases, Phase("soap", 2_000, 1e-3, warmup=100, epsilon=1e-15)),
    ),
    # Without it, and with ln nu for the coordinate of the variance: chapter 11b compares them.
    "sound_log": replace(_SOUND, name="sound_log", model="heston"),
    "sound_wide": replace(
        _SOUND, name="sound_wide", model="heston_wide", width=80, points=4096, robust=1e-3,
        domain=heston.WIDE | {"nu": (1e-4, 1.8), "x": (-4.5, 4.5), "tau": (5e-4, 2.0)},
        phases=(Phase("soap", 12_000, 2e-2, warmup=100, epsilon=1e-15),),
    ),
    # `sound` in small, for a browser.
    "sound_small": replace(
        _SOUND, name="sound_small", width=48, points=2048,
        domain=heston.TABLE_I | {"nu": (1e-4, 0.8), "x": (-2.5, 2.5), "tau": (5e-4, 1.0)},
        phases=(Phase("soap", 5_000, 2e-2, warmup=100, epsilon=1e-15),),
    ),
    "garch": replace(
        _SOUND, name="garch", model="garch", width=64, points=4096,
        domain=garch.MODEL.domain | _VISITED,
        phases=(Phase("soap", 4_000, 2e-2, warmup=100, epsilon=1e-15),),
    ),
    "lognormal": replace(
        _SOUND, name="lognormal", model="lognormal", width=64, points=4096,
        domain=lognormal.MODEL.domain | _VISITED | {"nu": (1e-4, 5.0)},
        phases=(Phase("soap", 4_000, 2e-2, warmup=100, epsilon=1e-15),),
    ),
    # Close to the exercise boundary a few residuals are large: they count by their size.
    "american_put": replace(
        _SOUND, name="american_put", claim="american_put", width=64, points=2048, robust=5e-4,
        phases=(Phase("soap", 2_000, 1.5e-2, warmup=100, epsilon=1e-15),),
    ),
    "down_and_out": replace(
        _SOUND, name="down_and_out", model="heston_barrier", claim="down_and_out", ansatz="bump",
        width=64, points=2048, domain=barrier.MODEL.domain | _VISITED | {"nu": (1e-4, 0.8)},
        phases=(Phase("soap", 2_000, 1.5e-2, warmup=100, epsilon=1e-15),),
    ),
    # A variance that forgets in days is wild there: a few residuals count by their size.
    "rough_heston": replace(
        _SOUND, name="rough_heston", model="lifted_heston", width=64, points=4096,
        edge_share=0.1, robust=2e-3,
        domain=lifted_heston.MODEL.domain | _VISITED | {
            "x": (-4.0, 4.0), "tau": (5e-4, 2.0), "u2": (-1.0, 1.0), "u3": (-1.0, 1.0)
        },
        phases=(Phase("soap", 4_000, 1.5e-2, warmup=100, epsilon=1e-15),),
    ),
    "smoke": replace(
        _LAPTOP, name="smoke", width=16, latent=16, hidden=2, points=(8, 32), atm=(4, 8),
        boundary=(8, 4), boundary_second=(8, 4), rar_every=5,
        phases=(Phase("adam", 12, 1e-3, halve_every=5), Phase("soap", 6), Phase("lbfgs", 30)),
    ),
}  # fmt: skip
"""Named configurations; `dataclasses.replace` changes one."""


_XX = (("x", "x"),)  # the only second derivative that the Greeks need
_CHUNK = {"cpu": 2**13}  # options at a time: on a CPU the channels stay in the cache
_LARGE_CHUNK = 2**18


class Operator(nn.Module):
    """A network in its ansatz: u(x, state, tau; p) with the derivatives that the equation needs.

    Prices are per unit of strike. Arguments broadcast; the state is a tensor, or a tuple where the
    model has several. M parameter vectors of shape (M, 1) against P points of shape (P,) give
    (M, P), for a DeepONet at the cost of P trunk and M branch evaluations. `price` and `greeks`
    check their arguments and are differentiable in all of them, parameters too.

    >>> sum(w.numel() for w in Operator(PRESETS["sound"]).parameters())
    29281

    Attributes
    ----------
    config, model, claim : what it is and what it prices
    chunk : options that `price` and `greeks` evaluate at a time; None for what suits the device
    provenance : of a loaded operator, how it came about
    """

    chunk: int | None = None
    provenance: dict

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model, self.claim = MODELS[config.model], CLAIMS[config.claim]
        # between maturity, where an ansatz is exact, and the shortest time trained it is no guess
        self._known = config.domain | {"tau": (0.0, config.domain["tau"][1])}
        shape = dict(width=config.width, hidden=config.hidden, activation=config.activation)
        self.network: MLP | DeepONet
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if config.network == "similarity":
                self.network = MLP(self._similarity_size(), 1, **shape)
            else:
                trunk = config.domain.of("x", *self.model.states, "tau")
                branch = config.domain.of(*self.model.Parameters._fields)
                self.network = DeepONet(branch, trunk, latent=config.latent, **shape)
        self.to(getattr(torch, config.dtype))

    def _similarity_size(self) -> int:
        p = self.model.Parameters(*(torch.ones(()) for _ in self.model.Parameters._fields))
        one = Jet(torch.ones(()), pairs=self.model.pairs)
        at = self.at((one, (one,) * len(self.model.states), one), p)
        return len(self._features(at))

    def _features(self, at: ansatz.At) -> list[Jet]:
        smile = self.config.ansatz == "smile"
        return (ansatz.smile_features if smile else ansatz.similarity_features)(at)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    # -- on jets, without validation -------------------------------------------------------------

    def at(self, coordinates, p) -> ansatz.At:
        """Where to evaluate: jets (x, state, tau) and parameters."""
        x, state, tau = coordinates
        return ansatz.At(x, state, tau, p, self.model, self.claim.of(p))

    def correction(self, at: ansatz.At, embedded: Tensor | None = None) -> Jet:
        """The network's output N as a jet; `embedded` is the branch's, if known from before."""
        if isinstance(self.network, MLP):
            h = jets.stack(self._features(at))
            return h.jet(self.network.jet(h).data[..., 0].unbind(0))
        b = self.network.embed(at.p.stack()) if embedded is None else embedded
        return self.network.pair(b, self.network.basis([at.x, *as_states(at.state), at.tau]))

    def on(self, coordinates, p, embedded: Tensor | None = None) -> Jet:
        """u on jets (x, state, tau), with the channels that these carry."""
        at = self.at(coordinates, p)
        u = ansatz.ANSATZ[self.config.ansatz](self.correction(at, embedded), at)
        return at.claim.shape(u, at.x, at.tau)

    def jet(self, x: Tensor, state, tau: Tensor, p) -> Jet:
        """u and its derivatives, in the dtype of the network."""
        return self.on(equation.full_coordinates(x, state, tau, self.model), p)

    def value(self, x: Tensor, state, tau: Tensor, p) -> Tensor:
        """u alone, at the cost of one channel."""
        return self._value(x, as_states(state), tau, p)[0]

    # -- at the door -----------------------------------------------------------------------------

    def price(self, x, state, tau, p, *, with_error=False, paths=2**12, seed=0):
        """Price in units of strike; `with_error`, freed of its error by `correction.estimate`.

        >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
        >>> weights.load("sound").price(0.0, 0.04, 1.0, p)  # the exact price is .1039422
        tensor(0.1039, dtype=torch.float64)

        Parameters
        ----------
        x : log-moneyness ln(S/K)
        state : instantaneous variance, >= 0; a tuple of the model's states if it has several
        tau : time to maturity in years, >= 0
        p : the model's parameters; everything broadcasts. Tensors of any device and dtype
        with_error : subtract the error that `paths` paths of each option estimate, from `seed`

        Returns
        -------
        Tensor of the broadcast shape, on the operator's device and in its dtype; with its standard
        error, a `correction.Corrected`.

        Raises
        ------
        ValueError
            An argument that is not finite or outside its meaning, shapes that do not broadcast.

        Warns
        -----
        UserWarning
            An argument outside the domain of training, or its condition violated.
        """
        arguments = self._arguments(x, state, tau, p)
        found = self._in_pieces(self._value, 1, *arguments)[0]
        if not with_error:
            return found
        off = self._correction(arguments, paths, seed, 0)
        return Corrected(found - off.value, off.value_error)

    def greeks(self, x, state, tau, p, *, with_error=False, paths=2**12, seed=0):
        """Price, Delta and Gamma (eqs. 15 and 16, K = 1), vega (d/dnu) and theta (-d/dtau).

        Arguments and errors as for `price`. With several states vega is a tuple. `with_error` the
        result is a `paths.Estimate`: the first three, corrected, with their standard errors.

        >>> p = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.05)
        >>> weights.load("sound").greeks(0.0, 0.04, 1.0, p).delta  # the exact Delta is .6919
        tensor(0.6919, dtype=torch.float64)
        """
        arguments = self._arguments(x, state, tau, p)
        price, delta, gamma, *vega, theta = self._in_pieces(self._greeks, 5, *arguments)
        if with_error:
            off, e = self._correction(arguments, paths, seed, 2), torch.exp(-arguments[0])
            delta, gamma = delta - e * off.slope, gamma - e * e * off.bend
            errors = off.value_error, e * off.slope_error, e * e * off.bend_error
            return Estimate(price - off.value, delta, gamma, *errors)
        return Greeks(price, delta, gamma, vega[0] if len(vega) == 1 else tuple(vega), theta)

    def _correction(self, arguments, paths: int, seed: int, order: int) -> Correction:
        x, state, tau, p = arguments
        shape = _common_shape((x, *state, tau, *p))
        x, tau, *state = (v.expand(shape).reshape(-1) for v in (x, tau, *state))
        p = p.map(lambda v: v.expand(shape).reshape(-1))
        options = dict(paths=paths, seed=seed, order=order)
        found = estimate(self, x, tuple(state), tau, p, **options)
        return Correction(*(v.view(shape) for v in found))

    def _value(self, x, state, tau, p, embedded=None) -> tuple[Tensor, ...]:
        x, tau, *states = (Jet(v, pairs=self.model.pairs) for v in (x, tau, *state))
        return (self.on((x, tuple(states), tau), p, embedded).value,)

    def _greeks(self, x, state, tau, p, embedded=None) -> tuple[Tensor, ...]:
        names = self.model.states
        along = (Jet(y, pairs=_XX, **{n: 1}) for n, y in zip(names, state, strict=True))
        at = Jet(x, pairs=_XX, x=1), tuple(along), Jet(tau, pairs=_XX, tau=1)
        u = self.on(at, p, embedded)
        vega = [u.part(n) if n in u.parts else torch.zeros_like(u.value) for n in names]
        found = u.value, *delta_gamma(x, u.x, u.xx), *vega, -u.tau
        shape = _common_shape(found)
        return tuple(v if v.shape == shape else v.expand(shape) for v in found)

    def _arguments(self, x, state, tau, p):
        """(x, states, tau, p) as checked tensors in the network's dtype and on its device."""
        model, state = self.model, self.model.whole(state)
        require(len(state) == len(model.states), "state", len(state), f"{model.states}")
        names = ("x", *model.states, "tau", *model.Parameters._fields)
        values = tensors(**dict(zip(names, (x, *state, tau, *p), strict=True)))
        by_name = dict(zip(names, values, strict=True))
        found = model.require(by_name)
        known = self._known
        if any(
            low < known[n][0] or high > known[n][1]
            for n, (low, high) in zip(names, found, strict=True)
        ):
            for sentence in known.outside(**by_name):
                _warn(f"{sentence}, the range of training")
        p = model.Parameters(*values[2 + len(state) :])
        if known.where and not bool(model.condition(known)(p).all()):
            _warn(f"parameters outside the {known.where} condition of training")
        try:
            _common_shape(values)
        except RuntimeError as error:
            shapes = ", ".join(f"{n} {tuple(v.shape)}" for n, v in by_name.items())
            raise ValueError(f"shapes do not broadcast: {shapes}") from error
        like = next(self.parameters())
        values = [v.to(like) for v in values]
        x, *state, tau = values[: 2 + len(state)]
        return x, tuple(state), tau, model.Parameters(*values[2 + len(state) :])

    def _in_pieces(self, function, channels: int, x, state, tau, p) -> tuple[Tensor, ...]:
        """`function` on pieces of at most `chunk` options, joined and in the arguments' shape."""
        given = (x, *state, tau, *p)
        tracked = torch.is_grad_enabled() and any(v.requires_grad for v in given)
        shape = _common_shape(given)
        if tracked:
            pieces = self._pieces(function, channels, (x, *state, tau), p, shape)
        else:
            with torch.inference_mode():  # a quarter faster than no_grad for a single option
                pieces = self._pieces(function, channels, (x, *state, tau), p, shape)
        if len(pieces) == 1:
            joined = [c.reshape(shape) for c in pieces[0]]
        else:
            joined = [torch.cat(c, -1).reshape(shape) for c in zip(*pieces, strict=True)]
        # an inference tensor could not be a label in training, its clone can
        return tuple(joined if tracked else (c.clone() for c in joined))

    def _pieces(self, function, channels: int, points, p, shape) -> list[tuple[Tensor, ...]]:
        chunk = self.chunk or _CHUNK.get(points[0].device.type, _LARGE_CHUNK)
        if isinstance(self.network, DeepONet) and _is_grid(points, p):
            points = torch.broadcast_tensors(*points)
            embedded = self.network.embed(p.stack())
            step, count = max(1, 32 * chunk // len(embedded)), len(points[0])
        else:  # one dimension; what is the same for all options stays one number
            points, p = _flat(points, shape), type(p)(*_flat(p, shape))
            step, count, embedded = 5 * chunk // channels, shape.numel(), None

        def part(values, i):
            return [v[i : i + step] if len(v) > 1 else v for v in values]

        if count <= step:
            x, *state, tau = points
            return [function(x, tuple(state), tau, p, embedded)]
        pieces = []
        for i in range(0, count, step):
            x, *state, tau = part(points, i)
            q = p if embedded is not None else type(p)(*part(p, i))
            pieces.append(function(x, tuple(state), tau, q, embedded))
        return pieces


def _common_shape(values) -> torch.Size:
    shapes = {v.shape for v in values}
    return shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*shapes)


def _is_grid(points, p) -> bool:
    """Whether M parameter vectors, (M, 1), meet a line of points."""
    return len(p.shape) == 2 and p.shape[1] == 1 and max(v.ndim for v in points) == 1


def _flat(values, shape) -> list[Tensor]:
    return [v.reshape(1) if v.numel() == 1 else v.expand(shape).reshape(-1) for v in values]


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)  # the caller of `price` or `greeks`
