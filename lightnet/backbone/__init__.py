"""The residual stack and the heads around any mixer, and the contract that a mixer keeps.

A **mixer** moves information between positions: attention, a recurrence, a convolution. Everything else of a sequence
model is here, once. A mixer is a linen module with

    mixer(x, state=None, *, segment_ids=None, mask=None) -> (y, state)      x, y (B, L, D)
    mixer.step(x_t, state) -> (y_t, state)                                 x_t, y_t (B, D)
    mixer.init_state(batch) -> state
    mixer.capabilities -> Capabilities

and `Backbone(mixer=...)` takes a constructor of mixers, so that models which differ only in their mixer differ in one
field. A mixer that cannot do something says so in its capabilities, and asking for it raises.
"""

from lightnet.backbone.language_model import CausalLM, DecodingState
from lightnet.backbone.layers import stack_layers, unstack_layers
from lightnet.backbone.mixer import Capabilities, Mixer, partitioned
from lightnet.backbone.stack import MLP, REMAT_POLICIES, Backbone, Block

__all__ = [
    "MLP",
    "REMAT_POLICIES",
    "Backbone",
    "Block",
    "Capabilities",
    "CausalLM",
    "DecodingState",
    "Mixer",
    "partitioned",
    "stack_layers",
    "unstack_layers",
]
