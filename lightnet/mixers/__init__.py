"""Mixers of the LightNet package: LightNet's own and the ones that it is compared with.

| mixer | keys | order | scans | needs |
|---|---|---|---|---|
| `LightNetAttention` | a softmax over tokens | causal or none | 1 | `max_segments` for packed rows without an order |
| `LinearAttention` | an activation | causal or none | 1 | |
| `MultiplicativeDecay` | 1 - forget gate | causal, or 2 and 4 scans for all tokens | 1, 2, 4 | a grid for 4 |
| `SoftmaxAttention` | a softmax over pairs | causal or none | | a cache, L^2 work |

All have the fields `relative`, a constructor of relative encodings such as `functools.partial(MDLRPE, axes=2)`, and
`grid` with `num_extra`, the places of the tokens where they are no sequence. The first three share projections, gate,
norm and output (`GatedMixer`), and so differ in nothing but how tokens are weighted.
"""

from lightnet.mixers.gated import GatedMixer, LinearState
from lightnet.mixers.lightnet import DecayState, LightNetAttention, LightNetState
from lightnet.mixers.linear import LinearAttention
from lightnet.mixers.multiplicative import MultiplicativeDecay, scan_orders
from lightnet.mixers.parts import GatedOutput
from lightnet.mixers.softmax import AttentionState, SoftmaxAttention

__all__ = [
    "AttentionState",
    "DecayState",
    "GatedMixer",
    "GatedOutput",
    "LightNetAttention",
    "LightNetState",
    "LinearAttention",
    "LinearState",
    "MultiplicativeDecay",
    "SoftmaxAttention",
    "scan_orders",
]
