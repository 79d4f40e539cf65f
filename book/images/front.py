"""The book's front picture: a network that has learned prices, and what became of its Greeks."""

from pathlib import Path

import torch

from soundgreeks import heston
from soundgreeks.book import plotting


def greeks_of(network, x):
    """Price, Delta and Gamma of a network's normalised price u(x), by automatic differentiation."""
    x = x.clone().requires_grad_()
    u = network(x[:, None])[:, 0]
    (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x.sum(), x)
    true = heston.greeks(0.0, 0.04, 0.1, PARAMETERS)
    return true._replace(
        price=u.detach(),
        delta=(torch.exp(-x) * u_x).detach(),
        gamma=(torch.exp(-2 * x) * (u_xx - u_x)).detach(),
    )


PARAMETERS = heston.Parameters(kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, r=0.02)
torch.manual_seed(0)
plotting.style()
labels_at = torch.linspace(-0.5, 0.5, 65, dtype=torch.float64)
labels = heston.call(labels_at, 0.04, 0.1, PARAMETERS)
network = torch.nn.Sequential(
    torch.nn.Linear(1, 128), torch.nn.GELU(),
    torch.nn.Linear(128, 128), torch.nn.GELU(),
    torch.nn.Linear(128, 1),
).double()  # fmt: skip
optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
for _ in range(1500):
    optimiser.zero_grad()
    (network(labels_at[:, None])[:, 0] - labels).square().mean().backward()
    optimiser.step()

x = torch.linspace(-0.35, 0.35, 281, dtype=torch.float64)
true, predicted = heston.greeks(x, 0.04, 0.1, PARAMETERS), greeks_of(network, x)
figure = plotting.greeks(x, true, predicted, xlabel=r"log-moneyness $x = \ln(S/K)$")
figure.savefig(Path(__file__).with_name("front.png"), dpi=150, metadata={"Software": None})
