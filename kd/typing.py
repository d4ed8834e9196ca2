"""The dimension letters and the array types built from them, defined once.

Letter  Meaning
------  -------------------------------------------------------------
B       batch
T       sequence length
N       tokens, of any number of axes: B, or B and T
V       size of the vocabulary
C       number of classes
H       width of the hidden states that a head reads
K       number of entries of a sparse teacher
D       size of a feature

Everywhere t are the teacher's logits and s the student's, p = softmax(t / tau) and q = softmax(s / tau), and
KL(a || b) = sum a (log a - log b). Where a paper names them the other way round the docstring says so.
"""

from typing import TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
Number: TypeAlias = float | int | np.floating | np.integer | Array
