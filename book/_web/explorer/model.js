// Heston's prices and two kinds of operators, with Delta and Gamma, in plain JavaScript.
//
// The same formulas as the Python core, to which the tests hold them. Everything is a function of
// log-moneyness x; a jet is a triple [value, d/dx, d2/dx2]. The weights come from the shipped files:
// the build writes them into weights.js as window.SOUNDGREEKS.
"use strict";

const Explorer = (() => {
  // -- jets in x ---------------------------------------------------------------------------------

  const constant = (c) => [c, 0, 0];
  const scaled = (a, c) => [a[0] * c, a[1] * c, a[2] * c];
  const sum = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
  const apply = (a, f, f1, f2) => [f, f1 * a[1], f2 * a[1] * a[1] + f1 * a[2]];

  function tanh(a) {
    const t = Math.tanh(a[0]);
    return apply(a, t, 1 - t * t, -2 * t * (1 - t * t));
  }

  // -- the normal distribution -------------------------------------------------------------------

  const density = (z) => Math.exp(-0.5 * z * z) / Math.sqrt(2 * Math.PI);

  // Phi(z): its series about zero, all terms of one sign, and a continued fraction far out.
  function normal(z) {
    const a = Math.abs(z);
    if (a < 4) {
      let term = a, total = a;
      for (let n = 1; term > 1e-17 * total; n++) total += term *= (a * a) / (2 * n + 1);
      return 0.5 + Math.sign(z) * density(z) * total;
    }
    let fraction = a;
    for (let n = 60; n > 0; n--) fraction = a + n / fraction;
    const tail = density(z) / fraction;
    return z < 0 ? tail : 1 - tail;
  }

  const ACTIVATIONS = {
    silu(a) {
      const s = 1 / (1 + Math.exp(-a[0])), d = s * (1 - s);
      return apply(a, a[0] * s, s + a[0] * d, d * (2 + a[0] * (1 - 2 * s)));
    },
    gelu(a) {
      const phi = density(a[0]), Phi = normal(a[0]);
      return apply(a, a[0] * Phi, Phi + a[0] * phi, phi * (2 - a[0] * a[0]));
    },
  };

  function softplus(a) {
    const s = 1 / (1 + Math.exp(-a[0]));
    return apply(a, Math.max(a[0], 0) + Math.log1p(Math.exp(-Math.abs(a[0]))), s, s * (1 - s));
  }

  // -- Black and Scholes: the undiscounted call F(k, y), y = ln w, and its partial derivatives ---

  function blackScholes(k, y) {
    const root = Math.exp(0.5 * y), d1 = k / root + 0.5 * root, e = Math.exp(k);
    const F_k = e * normal(d1), bell = e * density(d1), F_y = 0.5 * bell * root;
    return {
      value: F_k - normal(d1 - root), k: F_k, y: F_y, kk: F_k + bell / root,
      ky: F_y * (1 - d1 / root), yy: F_y * (0.5 - d1 * (0.25 * root - 0.5 * k / root)),
    };
  }

  // e^{-r tau} F at jets k and y.
  function anchor(k, y, tau, r) {
    const F = blackScholes(k[0], y[0]), discount = Math.exp(-r * tau);
    const slope = F.k * k[1] + F.y * y[1];
    const bend = F.kk * k[1] ** 2 + 2 * F.ky * k[1] * y[1] + F.yy * y[1] ** 2;
    return scaled([F.value, slope, bend + F.k * k[2] + F.y * y[2]], discount);
  }

  const expectedVariance = (nu, tau, p) =>
    p.theta * tau + ((nu - p.theta) * -Math.expm1(-p.kappa * tau)) / p.kappa;

  // -- networks ----------------------------------------------------------------------------------

  // An MLP on jets; a residual one has h <- h + act(W h + b) from the second hidden layer on. The three
  // channels lie in arrays of their own, for speed.
  function perceptron(layers, activation, inputs, skips = true) {
    let h = [0, 1, 2].map((channel) => Float64Array.from(inputs, (a) => a[channel]));
    layers.forEach(({ weight, bias, rows, columns }, i) => {
      const [value, slope, bend] = h, out = h.map(() => new Float64Array(rows));
      for (let row = 0; row < rows; row++) {
        let a = bias[row], b = 0, c = 0;
        for (let j = 0, at = row * columns; j < columns; j++, at++) {
          a += weight[at] * value[j];
          b += weight[at] * slope[j];
          c += weight[at] * bend[j];
        }
        let jet = [a, b, c];
        if (i < layers.length - 1) jet = activation(jet);
        const residual = skips && i > 0 && i < layers.length - 1;
        for (const channel of [0, 1, 2]) {
          out[channel][row] = jet[channel] + (residual ? h[channel][row] : 0);
        }
      }
      h = out;
    });
    return Array.from(h[0], (a, i) => [a, h[1][i], h[2][i]]);
  }

  function floats(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return Float64Array.from(new Float32Array(bytes.buffer));
  }

  // Layers called prefix.0, prefix.1, ...; where activations are counted too, every second one.
  function layersOf(tensors, prefix, stride = 1) {
    const layers = [];
    for (let i = 0; tensors[`${prefix}.${i}.weight`]; i += stride) {
      const { shape, data } = tensors[`${prefix}.${i}.weight`];
      const bias = floats(tensors[`${prefix}.${i}.bias`].data);
      layers.push({ weight: floats(data), bias, rows: shape[0], columns: shape[1] });
    }
    return layers;
  }

  const PARAMETERS = ["kappa", "theta", "sigma", "rho", "r"];

  // -- the smile to second order in sigma, as `models/smile.py` has it -----------------------------

  // Five Gauss nodes on [0, 1], with their weights.
  const GAUSS = [[0.5, 64 / 225]];
  for (const sign of [-1, 1]) {
    const far = Math.sqrt(5 + sign * 2 * Math.sqrt(10 / 7)) / 6, weight = (322 - sign * 13 * Math.sqrt(70)) / 1800;
    GAUSS.push([0.5 - far, weight], [0.5 + far, weight]);
  }
  const mean = (f) => GAUSS.reduce((total, [q, weight]) => total + weight * f(q), 0);

  // What the path of the variance without noise says, in units of its total w. No x in it.
  function moments(nu, tau, p, w) {
    const variance = (q) => p.theta + (nu - p.theta) * Math.exp(-p.kappa * tau * q);
    const adds = (q) => -Math.expm1(-p.kappa * tau * (1 - q)) / p.kappa; // a unit of variance at q tau, to w
    const before = (q) => q * mean((t) => variance(q * t) * Math.exp(-p.kappa * tau * q * (1 - t)));
    const A = tau * mean((q) => variance(q) * adds(q)), B = tau * mean((q) => variance(q) * adds(q) ** 2);
    const C = tau * tau * mean((q) => adds(q) * before(q)), skew = p.sigma * p.rho;
    return { skew: (skew * A) / w ** 1.5, bend: (skew ** 2 * C) / w ** 2, spread: (p.sigma ** 2 * B) / w ** 2 };
  }

  // ln W - ln w at the jet k: a parabola in m = s/2 - k/s, s = sqrt(w), flat in the far wings.
  function smile(k, y, { skew, bend, spread }) {
    const s = Math.exp(0.5 * y), far = scaled(tanh(scaled(k, 0.25 / s)), -4), m = sum(constant(0.5 * s), far);
    const c0 = 0.75 * skew ** 2 - bend - 0.25 * spread, c2 = bend + 0.25 * spread - 1.75 * skew ** 2;
    const c1 = skew + s * (0.75 * skew ** 2 - 0.25 * spread);
    const whole = apply(m, c0 + m[0] * (c1 + m[0] * c2), c1 + 2 * m[0] * c2, 2 * c2);
    return scaled(tanh(scaled(whole, 1 / 1.5)), 1.5);
  }

  // -- operators -----------------------------------------------------------------------------------

  // The price that the network's output n makes: eq. 10 of the first paper, or Black and Scholes at W e^{size n}.
  function printed(n, x, tau) {
    const payoff = x > 0 ? [Math.expm1(x), Math.exp(x), Math.exp(x)] : [0, 0, 0];
    return sum(payoff, scaled(softplus(n), tau));
  }

  // The small one, with the inputs that `ansatz.smile_features` lists for the model `heston_smooth`.
  function similarity(network, nu, tau, p) {
    const w = expectedVariance(nu, tau, p), y = Math.log(w), known = moments(nu, tau, p, w);
    const size = known.spread / (1 + known.spread), feller = p.sigma / Math.sqrt(2 * p.kappa * p.theta);
    return (x) => {
      const k = [x + p.r * tau, 1, 0], bent = smile(k, y, known);
      const [n] = network([
        tanh(scaled(k, Math.exp(-0.5 * y) / 3)),
        constant(0.25 * y + 1),
        constant((4 * nu) / (nu + p.theta) - 2),
        constant(Math.sqrt(tau)),
        tanh(k),
        constant(Math.log(p.kappa)),
        constant(0.5 * Math.log(p.theta) + 1.5),
        constant(feller),
        constant(2 * p.rho + 1),
        constant(4 * known.skew),
        constant(3 * Math.sqrt(known.spread)),
        scaled(bent, 2),
      ]);
      return anchor(k, sum(constant(y), sum(bent, scaled(n, size))), tau, p.r);
    };
  }

  const SHIPPED = { similarity: "heston_smooth, smile", deeponet: "heston, printed" };

  // An operator as x -> jet, for one (nu, tau, p): what does not depend on x is evaluated once.
  function operator({ config, tensors }) {
    const activation = ACTIVATIONS[config.activation], kind = `${config.model}, ${config.ansatz}`;
    if (!activation || SHIPPED[config.network] !== kind) throw new Error(`no ${config.activation}, ${kind} here`);
    if (config.network === "similarity") {
      const layers = layersOf(tensors, "network.layers");
      return (nu, tau, p) => similarity((inputs) => perceptron(layers, activation, inputs), nu, tau, p);
    }
    const branch = layersOf(tensors, "network.branch.layers"), trunk = layersOf(tensors, "network.trunk.layers");
    const scale = (part) => {
      const by = floats(tensors[`network.${part}_scale.scale`].data);
      const shift = floats(tensors[`network.${part}_scale.shift`].data);
      return (h) => h.map((a, i) => sum(scaled(a, by[i]), constant(shift[i])));
    };
    const ofBranch = scale("branch"), ofTrunk = scale("trunk");
    return (nu, tau, p) => {
      const mu = ofBranch(PARAMETERS.map((name) => constant(p[name])));
      const b = perceptron(branch, activation, mu);
      return (x) => {
        const t = perceptron(trunk, activation, ofTrunk([[x, 1, 0], constant(nu), constant(tau)]));
        const n = t.reduce((total, a, i) => sum(total, scaled(a, b[i][0])), constant(0));
        return printed(scaled(n, b.length ** -0.5), x, tau);
      };
    };
  }

  // -- the truth: Lewis' integral with the Black-Scholes control variate ---------------------------

  // ln phi(u - i/2) in the form that keeps to one branch; complex numbers are [re, im].
  const times = (a, b) => [a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]];
  const over = (a, b) => {
    const size = b[0] * b[0] + b[1] * b[1];
    return [(a[0] * b[0] + a[1] * b[1]) / size, (a[1] * b[0] - a[0] * b[1]) / size];
  };
  const root = (a) => {
    const size = Math.hypot(a[0], a[1]), re = Math.sqrt(0.5 * (size + Math.abs(a[0])));
    const im = a[1] / (2 * re);
    return a[0] >= 0 ? [re, im] : [Math.abs(im), a[1] < 0 ? -re : re];
  };
  const exp = (a) => [Math.exp(a[0]) * Math.cos(a[1]), Math.exp(a[0]) * Math.sin(a[1])];

  function exponent(u, nu, tau, p) {
    const { kappa, theta, sigma, rho } = p, q = u * u + 0.25;
    const b = [kappa - 0.5 * rho * sigma, -rho * sigma * u];
    const square = times(b, b), d = root([square[0] + sigma * sigma * q, square[1]]);
    const decay = exp([-d[0] * tau, -d[1] * tau]);
    const fall = [q * (1 - decay[0]), -q * decay[1]];
    const both = [b[0] + d[0], b[1] + d[1]];
    const less = times([d[0] - b[0], d[1] - b[1]], decay);
    const D = over([-fall[0], -fall[1]], [both[0] + less[0], both[1] + less[1]]);
    const twice = times([2 * d[0], 2 * d[1]], both);
    const z = over([-sigma * sigma * fall[0], -sigma * sigma * fall[1]], twice);
    const log = [0.5 * Math.log1p(z[0] * (2 + z[0]) + z[1] * z[1]), Math.atan2(z[1], 1 + z[0])];
    const linear = over([q * tau, 0], both);
    return [0, 1].map((i) => -kappa * theta * (linear[i] + (2 / sigma ** 2) * log[i]) + D[i] * nu);
  }

  const PERIOD = 40; // copies of the integral, as a function of k, lie so far apart
  const MOST = 20_000; // nodes

  // x -> jet for one (nu, tau, p): the transform is evaluated once, each x costs one rotation a node.
  function heston(nu, tau, p) {
    const step = (2 * Math.PI) / PERIOD, w = expectedVariance(nu, tau, p), nodes = [];
    for (let i = 0; i < MOST; i++) {
      const u = (i + 0.5) * step, q = u * u + 0.25;
      const phi = exp(exponent(u, nu, tau, p)), normal = Math.exp(-0.5 * w * q);
      if (Math.max(Math.hypot(...phi), normal) < 1e-17) break;
      nodes.push([u, q, phi[0] - normal, phi[1]]);
    }
    return (x) => {
      const k = x + p.r * tau, F = blackScholes(k, Math.log(w));
      let value = 0, slope = 0, bend = 0;
      const turn = [Math.cos(step * k), Math.sin(step * k)];
      let wave = [Math.cos(0.5 * step * k), Math.sin(0.5 * step * k)];
      for (const [u, q, re, im] of nodes) {
        const f = times([re, im], wave);
        value += f[0] / q;
        slope += (0.5 * f[0] - u * f[1]) / q; // (iu + 1/2) f
        bend += f[0]; // F_kk - F_k, for (iu + 1/2)^2 - (iu + 1/2) = -q
        wave = times(wave, turn);
      }
      const factor = (-Math.exp(0.5 * k) * step) / Math.PI;
      const first = F.k + factor * slope, second = F.kk - F.k - factor * bend + first;
      return scaled([F.value + factor * value, first, second], Math.exp(-p.r * tau));
    };
  }

  // -- out ---------------------------------------------------------------------------------------

  // Price, Delta and Gamma, eqs. 15 and 16 with K = 1.
  function greeks(curve, x) {
    const [u, u_x, u_xx] = curve(x);
    return { price: u, delta: Math.exp(-x) * u_x, gamma: Math.exp(-2 * x) * (u_xx - u_x) };
  }

  const feller = (p) => 2 * p.kappa * p.theta > p.sigma ** 2;

  const parts = { density, normal, perceptron, layersOf, floats, ACTIVATIONS };

  return { operator, heston, greeks, feller, PARAMETERS, parts };
})();
