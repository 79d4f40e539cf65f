// The basket's page: seven spots, and the three networks of the second part beside the closed form.
"use strict";

(() => {
  const { basket, networks } = BASKET, dim = basket.weights.length, { dot } = BasketExplorer;
  const { minus } = Controls;
  const of = (name) => ({
    make: BasketExplorer.network(networks[name]),
    note: `${BasketExplorer.count(networks[name]).toLocaleString("en")} weights`,
  });
  const MODELS = {
    true: { label: "true", make: BasketExplorer.truth(basket), stroke: "#E07B00", width: 2.4 },
    oversized: { label: "6 × 128", ...of("oversized"), stroke: "#2F8F83", width: 1.6, dash: [9, 3, 2, 3] },
    pruned: { label: "pruned", ...of("pruned"), stroke: "#8C8C8C", width: 1.8, dash: [2, 3] },
    tuned: { label: "fine-tuned", ...of("tuned"), stroke: "#3B78D8", width: 1.8, dash: [7, 4] },
  };
  const LOW = 20, HIGH = 180, N = 120; // of spots and basket, currency; points of a curve
  const schedule = Controls.scheduler(draw);

  const specs = { all: ["all", "added to every spot, currency", -60, 60, 0] };
  basket.weights.forEach((weight, i) => {
    const share = Math.round(100 * weight), vol = Math.round(basket.vols[i]);
    specs[`F${i + 1}`] = [`F${i + 1}`, `weight ${share} %, volatility ${vol}`, LOW, HIGH, basket.centre];
  });
  const sliders = Controls.sliders(specs, schedule);

  // What moves along the horizontal axis.
  const lines = ["all assets together", ...basket.weights.map((_, i) => `asset ${i + 1} alone`)];
  const choice = Controls.element("select", { id: "explorer-line" },
    ...lines.map((text, value) => Controls.element("option", { value }, text)));
  const kept = parseInt(Controls.given.get("line"));
  choice.value = kept > 0 && kept <= dim ? kept : 0;
  choice.addEventListener("change", schedule);
  const picker = Controls.element("p", { className: "explorer-choice" },
    Controls.element("label", { htmlFor: choice.id }, "Along the axis: "), choice, " ");
  const axis = Controls.element("span", {});
  picker.append(axis);

  const digits = { price: 4, delta: 5, gamma: 6 };
  const charts = Controls.charts(MODELS), table = Controls.table(MODELS, "at the spots", digits);
  const warning = Controls.warning();

  function draw() {
    const line = +choice.value;
    const spots = basket.weights.map((_, i) => sliders.value(`F${i + 1}`) + sliders.value("all"));
    const direction = spots.map((_, i) => (line === 0 || line === i + 1 ? 1 : 0));
    const here = line === 0 ? dot(basket.weights, spots) : spots[line - 1];
    const grid = Float64Array.from({ length: N }, (_, i) => LOW + ((HIGH - LOW) * i) / (N - 1));
    const found = {}, at = {};
    for (const [name, { make }] of Object.entries(MODELS)) {
      at[name] = make(spots, direction);
      found[name] = Array.from(grid, (x) =>
        make(spots.map((s, i) => s + direction[i] * (x - here)), direction));
    }
    charts.set(grid, found);
    table.set(at);
    axis.textContent = line === 0
      ? `the level of the basket, now ${minus(here.toFixed(1))}; the strike is ${basket.strike}`
      : `spot ${line}, now ${minus(here.toFixed(1))}; Delta and Gamma with respect to it`;
    const far = BasketExplorer.rarity(basket, spots) > basket.rare;
    warning.textContent = far ? "Fewer than one in a hundred training spots lay so far out." : "";
    Controls.keep({ ...sliders.state(), line });
  }

  document.getElementById("explorer-box").replaceChildren(
    sliders.node, picker, warning, Controls.legend(MODELS), charts.node, table.node);
  charts.resize();
  draw();
})();
