r"""A lifted model: one noise moves two factors of different speeds.

V = v + c_1 U_1 + c_2 U_2 with dU_i = (lam (v - V) - x_i U_i) dt + vol sqrt(V) dW.
"""

from collections import namedtuple

from soundgreeks import Domain
from soundgreeks.models.model import (
    CORRELATION,
    FINITE,
    POSITIVE,
    Model,
    ParameterTuple,
    mean_reverting,
    register,
)

SPEEDS, WEIGHTS = (0.5, 8.0), (0.7, 0.6)


class Parameters(ParameterTuple, namedtuple("Parameters", "v lam vol rho r")):
    __slots__ = ()


class TwoFactor(Model):
    name = "two_factor"
    Parameters = Parameters
    states = ("u1", "u2")
    noises = {"d": {"u1": 1.0, "u2": 1.0}}
    separable = False  # V depends on the parameter v
    domain = Domain(
        dict(v=(0.05, 0.2), lam=(0.1, 1.0), vol=(0.1, 0.4), rho=(-0.9, -0.1), r=(0.0, 0.08),
             x=(-1.0, 1.0), u1=(-0.02, 0.05), u2=(-0.02, 0.05), tau=(0.01, 1.0))
    )  # fmt: skip
    meaning = dict(v=POSITIVE, lam=POSITIVE, vol=POSITIVE, rho=CORRELATION, u1=FINITE, u2=FINITE)

    def total(self, p, u1, u2):
        return u1 * WEIGHTS[0] + u2 * WEIGHTS[1] + p.v

    def variance(self, p, u1, u2):
        return self.total(p, u1, u2).clamp_min(1e-8)

    def covariances(self, p, u1, u2):
        v = self.variance(p, u1, u2)
        return {("x", "d"): [(p.rho * p.vol, v)], ("d", "d"): [(p.vol**2, v)]}

    def drift(self, p, u1, u2):
        back = [(p.lam * p.v, 1.0), (-p.lam, self.total(p, u1, u2))]
        return {"u1": [*back, (-SPEEDS[0], u1)], "u2": [*back, (-SPEEDS[1], u2)]}

    def expected_variance(self, p, tau, u1, u2):
        return mean_reverting(self.total(p, u1, u2), tau, p.lam, p.v)

    def clamp(self, name, y):
        return y


MODEL = register(TwoFactor())
