"""The dimension letters and the array types built from them, defined once.

Letter  Meaning
------  -------------------------------------------------------------
B       batch
L       sequence length
S       slots of a cache
D       channels (the width of the residual stream)
H       heads
K       size of a key (and query) per head
M       size of a key with its position in it, K or 2 K
V       size of a value per head; size of the vocabulary at an output

Where a paper uses other letters, the docstring of the module that implements it gives the translation. The shapes are
checked by beartype when the tests run and cost nothing otherwise.
"""

from typing import TypeAlias

import jax

Array: TypeAlias = jax.Array
