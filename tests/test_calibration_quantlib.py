"""The calibration chapter's optimum by QuantLib's own calibration, with the chapter's weights."""

import numpy as np
import QuantLib as ql
from test_heston_routes import quantlib_market

from soundgreeks.book import reference, runner
from soundgreeks.calibration import FormulaSurface, Quotes


def test_the_best_heston_model_of_the_market():
    path = runner.find_root() / "book" / "data" / "dax_2002-07-05.csv"
    strike, days, rate, vol = np.genfromtxt(path, delimiter=",", comments="#", skip_header=3).T
    market = Quotes(np.log(4468.17 / strike), days / 365, rate, vol)
    vega = FormulaSurface(market).scale[0].numpy() * strike
    model, helpers = quantlib_market(error=ql.BlackCalibrationHelper.PriceError)
    method, small = ql.LevenbergMarquardt(1e-12, 1e-12, 1e-12), 1e-12
    end = ql.EndCriteria(2000, 200, small, small, small)
    weights = [float(w) for w in vega**-2 / (vega**-2).sum()]
    model.calibrate(helpers, method, end, ql.NoConstraint(), weights)
    theta, kappa, sigma, rho, nu = model.params()
    found = dict(nu=nu, kappa=kappa, theta=theta, sigma=sigma, rho=rho)
    for name, value in found.items():
        entry = reference.load()[f"calibration.dax_wide_{name}"]
        assert entry.holds(value) and entry.evidence == "external", (name, value)
