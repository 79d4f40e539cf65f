// The explorer's page: sliders, three curves, their errors, and a table at one point.
"use strict";

(() => {
  const box = document.getElementById("explorer-box");
  const own = SOUNDGREEKS.sound.config.domain.ranges;
  const MODELS = {
    true: { label: "true", make: Explorer.heston, stroke: "#E07B00", width: 2.4 },
    sound: { label: "sound", make: Explorer.operator(SOUNDGREEKS.sound),
             stroke: "#3B78D8", width: 1.8, dash: [7, 4] },
    deepsvm: { label: "deepsvm", make: Explorer.operator(SOUNDGREEKS.deepsvm),
               stroke: "#8C8C8C", width: 1.8, dash: [2, 3] },
  };
  const GREEKS = { price: "price", delta: "Delta", gamma: "Gamma" };
  const SLIDERS = {
    kappa: ["κ", "speed of mean reversion, 1/year", 0.5, 3, 1.5],
    theta: ["θ", "long-run variance, 1/year", 0.01, 0.2, 0.06],
    sigma: ["σ", "volatility of variance, 1/year", 0.1, 1, 0.4],
    rho: ["ρ", "correlation", -0.95, -0.05, -0.7],
    r: ["r", "interest rate, 1/year", 0, 0.08, 0.03],
    nu: ["ν", "variance now, 1/year", 0.01, 0.4, 0.05],
    tau: ["τ", "time to maturity, years", 0.005, 1, 0.5],
    x: ["x", "log-moneyness of the point", -1, 1, 0],
  };
  // No point of the grid is at the money, where the printed price has no derivative.
  const N = 160, grid = Float64Array.from({ length: N }, (_, i) => -1 + (2 * i + 1) / N);
  const inputs = {}, charts = {};

  const element = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };

  function slider(name) {
    const [symbol, meaning, min, max, value] = SLIDERS[name];
    const id = `explorer-${name}`, step = (max - min) / 1000;
    const input = element("input", { id, type: "range", min, max, step, title: meaning });
    input.value = fromAddress(name) ?? value;
    const output = element("output", { htmlFor: id });
    const label = element("label", { htmlFor: id, title: meaning }, element("i", {}, symbol));
    const small = element("small", {}, meaning);
    input.addEventListener("input", () => { show(name); schedule(); });
    inputs[name] = { input, output };
    return element("div", { className: "explorer-slider" }, label, input, output, small);
  }

  const show = (name) => (inputs[name].output.value = (+inputs[name].input.value).toPrecision(3));
  const value = (name) => +inputs[name].input.value;

  // The address keeps the state, so that a point can be sent to somebody: explorer.html#tau=0.1
  const given = new URLSearchParams(location.hash.slice(1));
  function fromAddress(name) {
    const number = parseFloat(given.get(name));
    return Number.isFinite(number) ? number : undefined;
  }

  function chart(parent, title, names, log) {
    const muted = "#888", line = { stroke: muted, width: 1 };
    const axis = { stroke: muted, grid: { stroke: "#8883", width: 1 }, ticks: line, size: 48 };
    const powers = [1e-8, 1e-6, 1e-4, 1e-2, 1];
    const decades = { ...axis, splits: () => powers, values: () => powers.map((t) => t.toExponential(0)) };
    const series = names.map((n) => ({ ...MODELS[n], spanGaps: false, points: { show: false } }));
    const options = {
      title, width: 300, height: 210, legend: { show: false }, cursor: { y: false },
      scales: { x: { time: false }, y: log ? { distr: 3, range: [3e-9, 20] } : {} },
      axes: [axis, log ? decades : axis],
      series: [{}, ...series],
    };
    const place = element("div", { className: "explorer-chart" });
    parent.append(place);
    const empty = [grid, ...names.map(() => Array(N).fill(null))];
    return new uPlot(options, empty, place);
  }

  function resize() {
    for (const plot of Object.values(charts)) {
      const width = plot.root.parentElement.clientWidth;
      plot.setSize({ width, height: Math.max(180, Math.round(0.62 * width)) });
    }
  }

  let pending = false;
  function schedule() {
    if (!pending) requestAnimationFrame(() => { pending = false; draw(); });
    pending = true;
  }

  function draw() {
    const p = Object.fromEntries(Explorer.PARAMETERS.map((name) => [name, value(name)]));
    const nu = value("nu"), tau = value("tau"), curves = {}, found = {};
    for (const [name, { make }] of Object.entries(MODELS)) {
      curves[name] = make(nu, tau, p);
      found[name] = Array.from(grid, (x) => Explorer.greeks(curves[name], x));
    }
    for (const greek of Object.keys(GREEKS)) {
      const of = (name) => found[name].map((g) => g[greek]);
      const truth = of("true");
      const error = (name) => of(name).map((v, i) => Math.abs(v - truth[i]) || null);
      charts[greek].setData([grid, truth, of("sound"), of("deepsvm")]);
      charts[`${greek} error`].setData([grid, error("sound"), error("deepsvm")]);
    }
    const offGrid = Math.abs(value("x")) < 1e-9 ? 1e-9 : value("x"); // see above
    table(Object.fromEntries(
      Object.entries(curves).map(([name, curve]) => [name, Explorer.greeks(curve, offGrid)])));
    const text = Explorer.feller(p) ? "" :
      "2κθ ≤ σ²: outside the Feller condition under which both were trained.";
    document.getElementById("explorer-warning").textContent = text;
    const state = new URLSearchParams(Object.keys(SLIDERS).map((n) => [n, value(n).toPrecision(4)]));
    history.replaceState(null, "", `#${state}`);
  }

  function table(at) {
    const body = document.getElementById("explorer-table");
    body.replaceChildren(...Object.keys(MODELS).map((name) => {
      const cells = Object.keys(GREEKS).flatMap((greek) => {
        const error = Math.abs(at[name][greek] - at.true[greek]);
        const shown = name === "true" ? "" : error.toExponential(1);
        return [element("td", {}, at[name][greek].toFixed(6)), element("td", {}, shown)];
      });
      return element("tr", {}, element("th", { scope: "row" }, MODELS[name].label), ...cells);
    }));
  }

  function legend() {
    return element("p", { className: "explorer-legend" }, ...Object.values(MODELS).map((m) => {
      const line = element("span", {}, "");
      line.style.borderTop = `3px ${m.dash ? (m.dash[0] > 3 ? "dashed" : "dotted") : "solid"} ${m.stroke}`;
      return element("span", {}, line, ` ${m.label} `);
    }));
  }

  const sliders = element("div", { className: "explorer-sliders" });
  sliders.append(...Object.keys(SLIDERS).map(slider));
  const plots = element("div", { className: "explorer-plots" });
  const heads = Object.values(GREEKS).flatMap((title) => [title, "error"]);
  const head = element("tr", {}, ...["at x", ...heads].map((text) => element("th", {}, text)));
  const warning = element("p", { id: "explorer-warning", role: "status" });
  const numbers = element("table", {}, element("thead", {}, head),
    element("tbody", { id: "explorer-table" }));
  box.replaceChildren(sliders, warning, legend(), plots,
    element("div", { className: "explorer-numbers" }, numbers));
  for (const [greek, title] of Object.entries(GREEKS)) {
    charts[greek] = chart(plots, title, ["true", "sound", "deepsvm"], false);
  }
  for (const greek of Object.keys(GREEKS)) {
    charts[`${greek} error`] = chart(plots, `error of ${GREEKS[greek]}`, ["sound", "deepsvm"], true);
  }
  Object.keys(SLIDERS).forEach(show);
  new ResizeObserver(resize).observe(box);
  resize();
  draw();
})();
