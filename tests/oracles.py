"""Independent oracles: QuantLib's engines behind the book's normalised variables."""

import math

import numpy as np
import QuantLib as ql

_TODAY = ql.Date(1, 1, 2025)
_YEAR = ql.Actual365Fixed()


def quantlib_heston(x, nu, tau, kappa, theta, sigma, rho, r, engine="adaptive"):
    """One call price over strike from QuantLib, floats in and out.

    Time is scaled to one year, which leaves the price as it is (variance rates and speeds are
    multiplied by tau), so that any tau can be asked for and not only whole days.
    """
    ql.Settings.instance().evaluationDate = _TODAY
    scaled = dict(v0=nu * tau, kappa=kappa * tau, theta=theta * tau, sigma=sigma * tau)
    curve = ql.YieldTermStructureHandle(ql.FlatForward(_TODAY, r * tau, _YEAR))
    none = ql.YieldTermStructureHandle(ql.FlatForward(_TODAY, 0.0, _YEAR))
    spot = ql.QuoteHandle(ql.SimpleQuote(math.exp(x)))
    process = ql.HestonProcess(
        curve, none, spot, scaled["v0"], scaled["kappa"], scaled["theta"], scaled["sigma"], rho
    )
    option = ql.VanillaOption(
        ql.PlainVanillaPayoff(ql.Option.Call, 1.0), ql.EuropeanExercise(_TODAY + 365)
    )
    option.setPricingEngine(ENGINES[engine](ql.HestonModel(process)))
    return option.NPV()


_Integration = ql.AnalyticHestonEngine
ENGINES = {
    "adaptive": lambda m: ql.AnalyticHestonEngine(m, 1e-14, 1_000_000),
    "laguerre": lambda m: ql.AnalyticHestonEngine(m, 144),
    "cos": lambda m: ql.COSHestonEngine(m, 25, 600),
    "exponential fitting": lambda m: ql.ExponentialFittingHestonEngine(m),
    "andersen-piterbarg": lambda m: ql.AnalyticHestonEngine(
        m,
        ql.AnalyticHestonEngine.AndersenPiterbarg,
        ql.FourierIntegration.gaussLobatto(1e-14, 1e-14, 1_000_000),
        1e-25,
    ),
}


def quantlib_heston_many(x, nu, tau, p, engine="adaptive"):
    """`quantlib_heston` over 1-d tensors; a float64 array, NaN where QuantLib raises."""
    rows = zip(x.tolist(), nu.tolist(), tau.tolist(), *(v.tolist() for v in p), strict=True)
    prices = []
    for row in rows:
        try:
            prices.append(quantlib_heston(*row, engine=engine))
        except RuntimeError:
            prices.append(math.nan)
    return np.array(prices)
