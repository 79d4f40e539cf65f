// The explorer's page: sliders, three curves, their errors, and a table at one point.
"use strict";

(() => {
  const MODELS = {
    true: { label: "true", make: Explorer.heston, stroke: "#E07B00", width: 2.4 },
    sound_small: { label: "sound (small)", make: Explorer.operator(SOUNDGREEKS.sound_small),
             stroke: "#3B78D8", width: 1.8, dash: [7, 4] },
    deepsvm: { label: "deepsvm", make: Explorer.operator(SOUNDGREEKS.deepsvm),
               stroke: "#8C8C8C", width: 1.8, dash: [2, 3] },
  };
  // No point of the grid is at the money, where the printed price has no derivative.
  const N = 160, grid = Float64Array.from({ length: N }, (_, i) => -1 + (2 * i + 1) / N);

  const sliders = Controls.sliders({
    kappa: ["κ", "speed of mean reversion, 1/year", 0.5, 3, 1.5],
    theta: ["θ", "long-run variance, 1/year", 0.01, 0.2, 0.06],
    sigma: ["σ", "volatility of variance, 1/year", 0.1, 1, 0.4],
    rho: ["ρ", "correlation", -0.95, -0.05, -0.7],
    r: ["r", "interest rate, 1/year", 0, 0.08, 0.03],
    nu: ["ν", "variance now, 1/year", 0.01, 0.4, 0.05],
    tau: ["τ", "time to maturity, years", 0.005, 1, 0.5],
    x: ["x", "log-moneyness of the point", -1, 1, 0],
  }, Controls.scheduler(draw));
  const charts = Controls.charts(MODELS), table = Controls.table(MODELS, "at x");
  const warning = Controls.warning();

  function draw() {
    const { value } = sliders, curves = {}, found = {};
    const p = Object.fromEntries(Explorer.PARAMETERS.map((name) => [name, value(name)]));
    for (const [name, { make }] of Object.entries(MODELS)) {
      curves[name] = make(value("nu"), value("tau"), p);
      found[name] = Array.from(grid, (x) => Explorer.greeks(curves[name], x));
    }
    charts.set(grid, found);
    const offGrid = Math.abs(value("x")) < 1e-9 ? 1e-9 : value("x"); // see above
    table.set(Object.fromEntries(
      Object.entries(curves).map(([name, curve]) => [name, Explorer.greeks(curve, offGrid)])));
    warning.textContent = Explorer.feller(p) ? "" :
      "2κθ ≤ σ²: outside the Feller condition under which both were trained.";
    Controls.keep(sliders.state());
  }

  document.getElementById("explorer-box").replaceChildren(
    sliders.node, warning, Controls.legend(MODELS), charts.node, table.node);
  charts.resize();
  draw();
})();
