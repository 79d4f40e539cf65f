// The basket of Bachelier assets and plain networks that price it, along a line of spots.
//
// A line is a point, seven spots, and a direction; a jet is [value, d/ds, d2/ds2] in units of
// currency along it. With all assets in the direction those are Delta and Gamma of the basket as
// `bachelier.Greeks` defines them, with one asset its own. The build writes basket and weights into
// weights.js as window.BASKET.
"use strict";

const BasketExplorer = (() => {
  const { density, normal, perceptron, layersOf, floats, ACTIVATIONS } = Explorer.parts;
  const dot = (a, b) => a.reduce((total, x, i) => total + x * b[i], 0);

  // u = s (z Phi(z) + phi(z)), z = (B - K)/s: the closed form.
  function truth({ weights, strike, deviation }) {
    return (spots, direction) => {
      const z = (dot(weights, spots) - strike) / deviation, along = dot(weights, direction);
      const price = deviation * (z * normal(z) + density(z));
      return { price, delta: along * normal(z), gamma: (along * along * density(z)) / deviation };
    };
  }

  // A network on standardised inputs, seen in raw units.
  function network({ activation, frame, tensors }) {
    const act = ACTIVATIONS[activation.toLowerCase()];
    if (!act) throw new Error(`no ${activation} here`);
    const layers = layersOf(tensors, "network", 2);
    const [mean, std, [shift], [scale]] =
      ["x_mean", "x_std", "y_mean", "y_std"].map((name) => floats(frame[name].data));
    return (spots, direction) => {
      const inputs = spots.map((x, i) => [(x - mean[i]) / std[i], direction[i] / std[i], 0]);
      const [y, slope, bend] = perceptron(layers, act, inputs, false)[0];
      return { price: shift + scale * y, delta: scale * slope, gamma: scale * bend };
    };
  }

  // Squared distance from the centre of the training spots, in their own covariance: factor f = spots.
  function rarity({ centre, factor, spread }, spots) {
    const z = [];
    spots.forEach((x, i) => {
      const rest = (x - centre) / spread - dot(z, factor[i]);
      z.push(rest / factor[i][i]);
    });
    return dot(z, z);
  }

  const count = ({ tensors }) => Object.values(tensors)
    .reduce((total, { shape }) => total + shape.reduce((a, b) => a * b, 1), 0);

  return { truth, network, rarity, count, dot };
})();
