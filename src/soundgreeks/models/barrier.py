r"""A down-and-out call under Heston, whose level is one of the parameters.

Where the spot falls to the level h (in units of strike, h < 1) the contract dies. For a variance
that grows evenly to W, with q = r tau and b = ln h, a payoff reflected in the barrier keeps the
price at zero there (Merton 1973; Reiner and Rubinstein 1991):

.. math:: D(x) = e^{-q}\big[F(x + q, W) - e^{(1 - 2q/W)(x - b)} F(2b - x + q, W)\big],

which vanishes at x = b whatever W is, its own smile in x too. Under Heston it is the anchor to
which a network adds a bump that vanishes there as well (the ansatz "bump").
"""

from collections import namedtuple
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import jets
from ..arithmetic.jets import Jet
from .claims import Call
from .claims import register as register_claim
from .heston import TABLE_I, Heston
from .model import ParameterTuple, register


class Parameters(ParameterTuple, namedtuple("Parameters", "kappa theta sigma rho level r")):
    """Heston's, and the level of the barrier in units of strike, in (0, 1]."""

    __slots__ = ()


class KnockOut(Heston):
    """Heston's coefficients, for contracts with a barrier: another parameter, no other equation.

    >>> from soundgreeks.models import barrier
    >>> barrier.MODEL.sample(4).level.shape
    torch.Size([4])
    """

    name = "heston_barrier"
    Parameters = Parameters  # type: ignore[assignment]
    domain = TABLE_I | {"level": (0.70, 0.95)}
    meaning = Heston.meaning | {"level": (1e-30, 1.0, "in (0, 1]")}
    closed_form = False

    def features(self, p, nu: Jet) -> list[Jet]:
        return [*super().features(p, nu), Jet(torch.log(p.level) * 5 + 1, pairs=nu.pairs)]


class DownAndOut(Call):
    """max(e^x - 1, 0), unless e^x has been at the level or below.

    >>> from soundgreeks.models.barrier import DownAndOut
    >>> x, y, tau = Jet(torch.tensor(0.0)), Jet(torch.tensor(0.04).log()), Jet(torch.ones(()))
    >>> DownAndOut(torch.tensor(0.9)).anchor(x, y, tau, torch.tensor(0.0)).value  # r = 0
    tensor(0.0647)
    """

    name, european = "down_and_out", False

    def __init__(self, level: Any = None):  # a tensor; none until `of` some parameters
        self.level = level

    def of(self, p):
        return DownAndOut(p.level)

    def alive(self, x, y, q):
        b = torch.log(self.level)
        return b + (x - b).abs()

    def _above(self, k: Jet, tau: Jet, r: Tensor) -> Jet:
        """x - b, and below the barrier zero with all its derivatives: so is then the price."""
        above = k - tau * r - torch.log(self.level)
        return above.clamp_min(0.0) * (above.value > 0).to(k.value.dtype)

    def anchor(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> Jet:
        q, above = tau * r, self._above(k, tau, r)
        image = jets.exp((1.0 - q * jets.exp(-y) * 2) * above)
        image = image * self.forward_price(k - above * 2, y)
        return jets.exp(-q) * (self.forward_price(k, y) - image)

    def vanishing(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> Jet:
        return jets.tanh(self._above(k, tau, r) * jets.exp(y * -0.5))

    def features(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> list[Jet]:
        """The distance to the barrier in standard deviations, and the drift in them."""
        width = jets.exp(y * -0.5)
        above = self._above(k, tau, r) * width
        return [jets.tanh(above * 0.5), jets.tanh(above * 2), tau * r * width]


MODEL = register(KnockOut())
DOWN_AND_OUT = register_claim(DownAndOut())
