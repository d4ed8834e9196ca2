"""Token dynamics of deep selective state space models (arXiv 2410.03292): the layer, its limit in depth, its theory.

| what | functions |
|---|---|
| the layer analysed | `input_output_matrix`, `hidden_attention`, `s6_layer`, `residual_stack` |
| its limit in depth | `simulate` (one dimension), `simulate_tokens` (any) |
| one dimension in closed form | `regime`, `blow_up_bound`, `blow_up_law`, `convergence_constants`, `slow_first_token` |
| more dimensions | `scenario`, `projection_scenario`, `eigenvalue_label`, `inertia`, `spectrum`, `symmetric_spectrum` |
| layers of a model | `analyse`, `projections`, `layer_spectrum`, `activations`, `growth_rates`, `layer_attention` |

The full text of the paper was not available: what is claimed is from its abstract and from summaries, theorem numbers
are not known, and what is derived here is marked as ours. Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssm.dynamics.analysis import (
        Analysis,
        activations,
        analyse,
        growth_rates,
        importance,
        layer_attention,
        layer_spectrum,
        projections,
    )
    from ssm.dynamics.layer import hidden_attention, input_output_matrix, residual_stack, s6_layer
    from ssm.dynamics.limit import simulate
    from ssm.dynamics.limit_tokens import simulate_tokens
    from ssm.dynamics.scenarios import (
        eigenvalue_label,
        inertia,
        projection_scenario,
        scenario,
        spectrum,
        symmetric_spectrum,
    )
    from ssm.dynamics.stepping import Simulation
    from ssm.dynamics.theory import blow_up_bound, blow_up_law, convergence_constants, regime, slow_first_token

_MODULE_OF = {
    "Analysis": "analysis",
    "Simulation": "stepping",
    "activations": "analysis",
    "analyse": "analysis",
    "blow_up_bound": "theory",
    "blow_up_law": "theory",
    "convergence_constants": "theory",
    "eigenvalue_label": "scenarios",
    "growth_rates": "analysis",
    "hidden_attention": "layer",
    "importance": "analysis",
    "layer_attention": "analysis",
    "inertia": "scenarios",
    "input_output_matrix": "layer",
    "layer_spectrum": "analysis",
    "projection_scenario": "scenarios",
    "projections": "analysis",
    "regime": "theory",
    "residual_stack": "layer",
    "s6_layer": "layer",
    "scenario": "scenarios",
    "simulate": "limit",
    "simulate_tokens": "limit_tokens",
    "slow_first_token": "theory",
    "spectrum": "scenarios",
    "symmetric_spectrum": "scenarios",
}

__all__ = [
    "Analysis",
    "Simulation",
    "activations",
    "analyse",
    "blow_up_bound",
    "blow_up_law",
    "convergence_constants",
    "eigenvalue_label",
    "growth_rates",
    "hidden_attention",
    "importance",
    "inertia",
    "input_output_matrix",
    "layer_attention",
    "layer_spectrum",
    "projection_scenario",
    "projections",
    "regime",
    "residual_stack",
    "s6_layer",
    "scenario",
    "simulate",
    "simulate_tokens",
    "slow_first_token",
    "spectrum",
    "symmetric_spectrum",
]


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return __all__
