"""The house style: orange is true, blue is predicted, and both survive a grey printer.

The two differ in lightness and in line style, and surfaces use a map of monotone lightness.
Nothing but the truth is orange.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import LogLocator, NullLocator

TRUE = {"color": "#E07B00", "linestyle": "-", "linewidth": 2.4}
PREDICTED = {"color": "#1B4F9C", "linestyle": "--", "linewidth": 1.6}
BAD = {"color": "#8C8C8C", "linestyle": ":", "linewidth": 2.0}  # the version that fails
OTHER = {"color": "#A05195", "linestyle": "-.", "linewidth": 1.6}  # one more beside these
GUIDE = {"color": "black", "linestyle": "-", "linewidth": 1.0}  # not measured: a slope, a bound
VALUES = "cividis"  # the colour map of surfaces

GREEKS = {
    "price": r"price $u = V/K$",
    "delta": r"Delta $\partial V/\partial S$",
    "gamma": r"Gamma $K\,\partial^2 V/\partial S^2$",
    "vega": r"vega $\partial u/\partial\nu$",
    "theta": r"Theta $-\partial u/\partial\tau$ (1/year)",
}
"""Axis labels of the fields of `heston.greeks`, normalised by the strike."""


def style() -> None:
    """Set the house style for all figures that follow; `chapter.begin` calls it."""
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(  # neither orange nor blue: those two have a meaning
                color=["#0B3B36", "#2F8F83", "#8C8C8C", "#A05195", "#5FBFB3"],
                linestyle=["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))],
            ),
            "image.cmap": VALUES,
            # A legend has paper of its own: over a curve its words stay readable.
            "legend.frameon": True,
            "legend.framealpha": 0.85,
            "legend.edgecolor": "none",
            "legend.borderpad": 0.2,
            "legend.fontsize": 9,
            "font.size": 10,
            "axes.titlesize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
        }
    )


def panels(columns: int, rows: int = 1, width: float = 3.4, height: float = 2.9, **options):
    """A figure and its flat list of axes, `rows` x `columns`."""
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, **options
    )
    return figure, list(axes.flat)


def compare(
    axis, x, true, predicted=None, *, xlabel: str, ylabel: str, title: str = "", legend=True
) -> None:
    """Draw the true curve and, on top of it, the predicted one."""
    axis.plot(_array(x), _array(true), label="true", **TRUE)
    if predicted is not None:
        axis.plot(_array(x), _array(predicted), label="predicted", **PREDICTED)
        if legend:
            axis.legend()
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)


def greeks(x, true, predicted=None, *, names=("price", "delta", "gamma"), xlabel: str):
    """A panel for each of `names`, fields of the two named tuples, the legend in the first."""
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        second = None if predicted is None else getattr(predicted, name)
        ours, first = getattr(true, name), axis is axes[0]
        compare(axis, x, ours, second, xlabel=xlabel, ylabel=GREEKS[name], legend=first)
    return figure


def legend_below(figure, columns: int | None = None) -> None:
    """One legend for all panels, under them, where it covers no curve."""
    found: dict = {}
    for axis in figure.axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    options = {"loc": "outside lower center", "ncols": columns or len(found)}
    figure.legend(list(found.values()), list(found), **options)


def strip(axis, row: float, values, color: str, spread: float = 0.15) -> None:
    """One row of a chart by name: a dot for each of `values`, a bar at their median."""
    values = _array(values)
    places = row + np.linspace(-spread, spread, len(values))
    axis.plot(values, places, "o", markersize=3.5, color=color)
    axis.plot(np.median(values), row, "|", markersize=15, markeredgewidth=1.6, color=color)


def name_rows(axis, names) -> None:
    """Name the rows 0, 1, ... of a chart, the first on top."""
    names = list(names)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def plain_log(axis) -> None:
    """Ticks 1, 2, 5 in plain numbers on a logarithmic `Axis` (say `panel.yaxis`)."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def surface(axis, x, y, z, *, xlabel: str, ylabel: str, label: str, most=None) -> None:
    """Draw z (len(y), len(x)) as a map with contour lines; beyond `most` the colour is the last."""
    x, y, z = _array(x), _array(y), _array(z)
    top = z.max() if most is None else most
    drawn = axis.pcolormesh(x, y, z, shading="gouraud", cmap=VALUES, vmin=z.min(), vmax=top)
    levels = np.linspace(z.min(), top, 10)[1:-1]  # the extremes would trace rounding noise
    axis.contour(x, y, z, levels=levels, colors="white", linewidths=0.5)
    axis.figure.colorbar(drawn, ax=axis, label=label, extend="neither" if most is None else "max")
    axis.grid(False)
    axis.set(xlabel=xlabel, ylabel=ylabel)


def network_trace(axis, trace, edges, *, shade=()) -> None:
    """Draw a small network: value intervals above each node, adjoint intervals below, in blue.

    Parameters
    ----------
    trace : `intervals.Trace` of one box, with one output
    edges : the weights (outputs, inputs) of each layer
    shade : (hidden layer, node) pairs to draw in grey, with their edges
    """
    values = [*trace.n, trace.k[-1]]
    slopes = [bar[0] for bar in [*trace.n_bar, trace.k_bar[-1]]]
    places = [[(c, (len(x) - 1) / 2 - i) for i in range(len(x))] for c, x in enumerate(values)]
    white = {"fc": "white", "ec": "none", "pad": 0.5}
    for column, weights in enumerate(edges):
        for j, row in enumerate(_array(weights)):
            for i, weight in enumerate(row):
                (x0, y0), (x1, y1) = places[column][i], places[column + 1][j]
                grey = (column - 1, i) in shade or (column, j) in shade
                axis.plot([x0, x1], [y0, y1], "-", color="#BBBBBB" if grey else "black", lw=1)
                at = (x0 + 0.39 * (x1 - x0), y0 + 0.39 * (y1 - y0))
                axis.text(*at, f"{weight:.4f}", fontsize=7, ha="center", va="center", bbox=white)
    note = {"fontsize": 8, "textcoords": "offset points", "ha": "center", "bbox": white}
    for column, (x, bar) in enumerate(zip(values, slopes, strict=True)):
        for i, place in enumerate(places[column]):
            fill = "#CCCCCC" if (column - 1, i) in shade else "white"
            axis.plot(*place, "o", markersize=15, color="black", markerfacecolor=fill)
            axis.annotate(f"[{x.lo[i]:.3f}, {x.hi[i]:.3f}]", place, (0, 14), **note)
            text = f"[{bar.lo[i]:.4f}, {bar.hi[i]:.4f}]"
            axis.annotate(text, place, (0, -21), color=PREDICTED["color"], **note)
    axis.margins(0.12, 0.3)
    axis.axis("off")


def _array(values):
    return torch.as_tensor(values).detach().cpu().numpy()
