r"""What is paid: payoffs, values at the edges, and the anchor that a network corrects.

All per unit of strike, as functions of x = ln(S/K). A claim has what the ansatz and the loss ask
for; a new one is a subclass, registered under its name. The quickest barrier overrides `shape`,
which makes the price vanish there; the quickest early exercise `condition`, which turns the
equation into a complementarity. Anchors that know more are in `barrier` and `american`.
"""

import torch
from torch import Tensor

from ..arithmetic import jets
from ..arithmetic.jets import Jet
from . import black_scholes


class Claim:
    """A European payoff max(sign (e^x - 1), 0), eq. 6 of DeepSVM for sign = 1.

    >>> claims.PUT.name, claims.PUT.sign, claims.PUT.european
    ('put', -1.0, True)
    """

    name: str
    sign: float
    european = True  # all is paid at maturity, whatever happened before

    def inner(self, x):
        """What the payoff is the positive part of; tensors and jets.

        >>> claims.PUT.inner(torch.tensor(2.0).log())
        tensor(-1.)
        """
        return jets.expm1(x) * self.sign

    def payoff(self, x):
        """Value at maturity; for a jet with its derivatives off the kink: eq. 10 has no others.

        >>> claims.PUT.payoff(torch.tensor([0.5, 2.0]).log())
        tensor([0.5000, 0.0000])
        """
        v = self.inner(x)
        if not isinstance(x, Jet):
            return v.clamp_min(0)
        alive = (v.value > 0).to(v.value.dtype)
        return v.chain(v.value.clamp_min(0), alive, torch.zeros_like(alive))

    def smoothed_payoff(self, x, width: float):
        """v sigmoid(v / width) with v = `inner` (Sobolev Pruning, section 5.2.4).

        >>> claims.CALL.smoothed_payoff(torch.tensor(2.0).log(), 1.0)  # sigmoid(1)
        tensor(0.7311)
        """
        v = self.inner(x)
        return v * jets.sigmoid(v * (1 / width))

    def edge(self, x: Tensor, tau: Tensor, r: Tensor) -> Tensor:
        """Limit far from the strike, eqs. 7 and 8: what the forward contract leaves, or nothing.

        >>> x, tau, r = torch.tensor([1.0, 1.0, 0.0])
        >>> claims.CALL.edge(x, tau, r)  # e - 1
        tensor(1.7183)
        """
        forward = self.sign * (torch.exp(x) - torch.exp(-r * tau))
        return forward * (self.sign * x > 0)

    def forward_price(self, k: Jet, y: Jet) -> Jet:
        """Undiscounted Black-Scholes price at forward log-moneyness k and ln total variance y.

        >>> k, y = Jet(torch.tensor(0.0), x=1), Jet(torch.tensor(0.04).log(), nu=1)
        >>> claims.CALL.forward_price(k, y).value  # 2 Phi(0.1) - 1
        tensor(0.0797)
        """
        call = jets.compose(black_scholes.partials(k.value, y.value), k, y)
        return call if self.sign > 0 else call - jets.expm1(k)  # put-call parity

    def anchor(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> Jet:
        """e^{-r tau} times `forward_price`: solves the equation with a deterministic variance.

        >>> k, y = Jet(torch.tensor(0.0), x=1), Jet(torch.tensor(0.04).log(), nu=1)
        >>> tau = Jet(torch.tensor(1.0), tau=1)
        >>> claims.CALL.anchor(k, y, tau, torch.tensor(0.05)).value  # 0.0797 e^{-0.05}
        tensor(0.0758)
        """
        return jets.exp(tau * -r) * self.forward_price(k, y)

    def of(self, p) -> "Claim":
        """The claim with those of its terms that are among the parameters, as a barrier's level.

        >>> claims.CALL.of(heston.Parameters(2.0, 0.04, 0.3, -0.7, 0.05)) is claims.CALL
        True
        """
        return self

    def alive(self, x: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """Points moved to where the equation holds, as to the living side of a barrier.

        y and q, of the shape of x, are the logarithm of the expected total variance and r tau.

        >>> claims.CALL.alive(*torch.tensor([-3.0, -2.0, 0.05]))
        tensor(-3.)
        """
        return x

    def features(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> list[Jet]:
        """What a network should see of the claim beside the model's coordinates.

        >>> claims.CALL.features(*map(Jet, torch.zeros(3)), torch.tensor(0.05))
        []
        """
        return []

    def slack(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> Jet | float:
        """How far the anchor is off, as a relative change of its variance, without any smile.

        >>> claims.CALL.slack(*map(Jet, torch.zeros(3)), torch.tensor(0.05))  # it is exact
        0.0
        """
        return 0.0

    def vanishing(self, k: Jet, y: Jet, tau: Jet, r: Tensor) -> Jet | float:
        """A factor that is zero where the price is known to be, and else about one.

        >>> claims.CALL.vanishing(*map(Jet, torch.zeros(3)), torch.tensor(0.05))
        1.0
        """
        return 1.0

    def shape(self, u: Jet, x: Jet, tau: Jet) -> Jet:
        """The last word on the ansatz: for a barrier, a factor that vanishes on it."""
        return u

    def condition(self, residual: Tensor, u: Tensor, x: Tensor) -> Tensor:
        """What must vanish in the interior: the residual u_tau - N[u] itself.

        With early exercise it would be the smaller of the residual and u - payoff.
        """
        return residual


class Call(Claim):
    """max(e^x - 1, 0).

    >>> Call().payoff(torch.tensor([0.5, 2.0]).log())
    tensor([0., 1.])
    """

    name, sign = "call", 1.0


class Put(Claim):
    """max(1 - e^x, 0).

    >>> Put().payoff(torch.tensor([0.5, 2.0]).log())
    tensor([0.5000, 0.0000])
    """

    name, sign = "put", -1.0


CLAIMS: dict[str, Claim] = {}


def register(claim: Claim) -> Claim:
    """Enter a claim under its name, so that configurations and weights files find it."""
    CLAIMS[claim.name] = claim
    return claim


CALL, PUT = register(Call()), register(Put())
