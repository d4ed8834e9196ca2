"""Positions: LightNet's MD-TPE and MD-LRPE, and the encodings that they are compared with.

| encoding | acts on | axes | sequences | grids |
|---|---|---|---|---|
| `MDTPE` | embedded tokens, once | any | segments, mask, state, step (not two-directional) | mask, extra tokens |
| `LearnedAbsolute` | embedded tokens, once | any | segments, mask, state, step, up to a length | mask, extra tokens |
| `SeqPE` | embedded tokens, once | any | segments, mask, state, step, up to a length | mask, extra tokens |
| `MDLRPE` | queries and keys, in every layer | any | through `token_coordinates` | through `grid_coordinates` |
| `Rotary` | queries and keys, in every layer | any | through `token_coordinates` | through `grid_coordinates` |

With one axis MD-TPE is TPE and MD-LRPE is LRPE. Positions restart at each segment of a packed sequence and masked
tokens take none, as everywhere in this project; a grid cannot be packed. Modules only declare parameters and call the
functions beside them. What is read from the papers, what from their authors' code, and what is our choice, is said in
each module.
"""

from lightnet.positions.absolute import LearnedAbsolute
from lightnet.positions.coordinates import grid_coordinates, token_coordinates
from lightnet.positions.inputs import InputPositions
from lightnet.positions.phases import (
    axial_angles,
    cosine_features,
    frequencies,
    phase_factor,
    rotary_angles,
    rotary_queries,
    rotate,
)
from lightnet.positions.relative import MDLRPE, RelativePositions, Rotary
from lightnet.positions.seqpe import (
    SeqPE,
    auxiliary_losses,
    contrastive_loss,
    contrastive_positions,
    distillation_loss,
    position_digits,
    shifted_blocks,
    squared_distance,
)
from lightnet.positions.toeplitz import (
    toeplitz_along,
    toeplitz_decays,
    toeplitz_fft,
    toeplitz_kernel,
    toeplitz_matrix,
    toeplitz_scan,
    toeplitz_step,
)
from lightnet.positions.tpe import MDTPE

__all__ = [
    "MDLRPE",
    "MDTPE",
    "InputPositions",
    "LearnedAbsolute",
    "RelativePositions",
    "Rotary",
    "SeqPE",
    "auxiliary_losses",
    "axial_angles",
    "contrastive_loss",
    "contrastive_positions",
    "cosine_features",
    "distillation_loss",
    "frequencies",
    "grid_coordinates",
    "phase_factor",
    "position_digits",
    "rotary_angles",
    "rotary_queries",
    "rotate",
    "shifted_blocks",
    "squared_distance",
    "toeplitz_along",
    "toeplitz_decays",
    "toeplitz_fft",
    "toeplitz_kernel",
    "toeplitz_matrix",
    "toeplitz_scan",
    "toeplitz_step",
    "token_coordinates",
]
