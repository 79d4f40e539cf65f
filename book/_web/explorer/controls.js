// What the explorers' pages share: sliders whose positions the address keeps, charts, legend, table.
"use strict";

const Controls = (() => {
  const GREEKS = { price: "price", delta: "Delta", gamma: "Gamma" };

  const element = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };

  // 0.00123 as 1.2 × 10⁻³, 0.0123 as 0.012, and a minus that is one.
  const minus = (text) => text.replace("-", "−");
  const power = (n) => "10" + [...String(n)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
  function scientific(number) {
    const [digits, exponent] = number.toExponential(1).split("e");
    if (number === 0 || (exponent >= -2 && exponent <= 3)) return minus(String(+number.toPrecision(2)));
    return `${minus(digits)} × ${power(+exponent)}`;
  }

  // The address keeps the state, so that a point can be sent to somebody: explorer.html#tau=0.1
  const given = new URLSearchParams(location.hash.slice(1));
  const keep = (state) => history.replaceState(null, "", `#${new URLSearchParams(state)}`);

  // Sliders by name, each [symbol, meaning, min, max, value]; `changed` is called when one moves.
  function sliders(specs, changed) {
    const node = element("div", { className: "explorer-sliders" }), inputs = {};
    const value = (name) => +inputs[name].value;
    for (const [name, [symbol, meaning, min, max, start]] of Object.entries(specs)) {
      const id = `explorer-${name}`, step = (max - min) / 1000, kept = parseFloat(given.get(name));
      const input = element("input", { id, type: "range", min, max, step, title: meaning });
      input.value = Number.isFinite(kept) ? kept : start;
      const output = element("output", { htmlFor: id });
      const label = element("label", { htmlFor: id, title: meaning }, element("i", {}, symbol));
      const show = () => (output.value = minus(value(name).toPrecision(3)));
      input.addEventListener("input", () => { show(); changed(); });
      inputs[name] = input;
      show();
      const small = element("small", {}, meaning);
      node.append(element("div", { className: "explorer-slider" }, label, input, output, small));
    }
    const state = () => Object.fromEntries(Object.keys(specs).map((n) => [n, value(n).toPrecision(4)]));
    return { node, value, state };
  }

  // A function that draws in the next frame, once, however often it is called before.
  function scheduler(draw) {
    let pending = false;
    return () => {
      if (!pending) requestAnimationFrame(() => { pending = false; draw(); });
      pending = true;
    };
  }

  const ink = () => // of the theme's light or dark mode
    getComputedStyle(document.documentElement).getPropertyValue("--pst-color-text-muted") || "#666";

  // One chart each Greek, and below it one of the errors of all but the first of `models`, the truth.
  function charts(models) {
    const node = element("div", { className: "explorer-plots" }), made = [];
    const POWERS = [-8, -6, -4, -2, 0], TENS = POWERS.map((n) => 10 ** n);

    function chart(title, names, log) {
      const faint = { stroke: "#8883", width: 1 };
      const values = (_, ticks) => ticks.map((t) => minus(String(t)));
      const axis = { values, stroke: ink, grid: faint, ticks: { stroke: "#8888", width: 1 }, size: 48 };
      const decades = { ...axis, splits: () => TENS, values: () => POWERS.map(power) };
      const series = names.map((n) => ({ ...models[n], spanGaps: false, points: { show: false } }));
      const options = {
        title, width: 300, height: 210, legend: { show: false }, cursor: { y: false },
        scales: { x: { time: false }, y: log ? { distr: 3, range: [3e-9, 20] } : {} },
        axes: [axis, log ? decades : axis],
        series: [{}, ...series],
      };
      const place = element("div", { className: "explorer-chart" });
      node.append(place);
      const plot = new uPlot(options, [[0, 1], ...names.map(() => [null, null])], place);
      made.push(plot);
      return plot;
    }

    const names = Object.keys(models), [truth, ...others] = names, byGreek = {};
    for (const [greek, title] of Object.entries(GREEKS)) byGreek[greek] = chart(title, names, false);
    for (const [greek, title] of Object.entries(GREEKS)) {
      byGreek[`${greek} error`] = chart(`error of ${title}`, others, true);
    }

    // found[name][i] holds the Greeks at grid[i].
    function set(grid, found) {
      for (const greek of Object.keys(GREEKS)) {
        const of = (name) => found[name].map((g) => g[greek]), right = of(truth);
        const error = (name) => of(name).map((v, i) => Math.abs(v - right[i]) || null);
        byGreek[greek].setData([grid, ...names.map(of)]);
        byGreek[`${greek} error`].setData([grid, ...others.map(error)]);
      }
    }

    function resize() {
      for (const plot of made) {
        const width = plot.root.parentElement.clientWidth;
        plot.setSize({ width, height: Math.max(180, Math.round(0.62 * width)) });
      }
    }
    new ResizeObserver(resize).observe(node);
    new MutationObserver(() => made.forEach((plot) => plot.redraw(false, true)))
      .observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return { node, set, resize };
  }

  // The Greeks at one point: a row each model, the error below each number.
  function table(models, where, digits = { price: 6, delta: 6, gamma: 6 }) {
    const below = (text) => element("small", {}, text);
    const heads = Object.values(GREEKS).map((text) => element("th", {}, text, below("error")));
    heads.unshift(element("th", {}, where));
    const body = element("tbody", { id: "explorer-table" });
    const whole = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
    const [truth] = Object.keys(models);
    const set = (at) => body.replaceChildren(...Object.keys(models).map((name) => {
      const cells = Object.keys(GREEKS).map((greek) => {
        const number = minus(at[name][greek].toFixed(digits[greek]));
        const error = Math.abs(at[name][greek] - at[truth][greek]);
        return element("td", {}, number, ...(name === truth ? [] : [below(scientific(error))]));
      });
      return element("tr", {}, element("th", { scope: "row" }, models[name].label), ...cells);
    }));
    return { node: element("div", { className: "explorer-numbers" }, whole), set };
  }

  function legend(models) {
    return element("p", { className: "explorer-legend" }, ...Object.values(models).map((m) => {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      line.innerHTML = `<line x2="36" y1="4" y2="4" stroke="${m.stroke}" stroke-width="3" ` +
        `stroke-dasharray="${m.dash ?? ""}"/>`;
      return element("span", {}, line, ` ${m.label}${m.note ? `, ${m.note}` : ""} `);
    }));
  }

  const warning = () => element("p", { id: "explorer-warning", role: "status" });

  return { element, minus, given, keep, sliders, scheduler, charts, table, legend, warning };
})();
