"""`bench scan`: is every recurrence of `lightnet.scan` exact, and how fast is it beside what a user would write?

`functions` has what is measured and draws inputs, `baselines` and `torch_peers` what it is compared with, `cases` says
which sizes and what is asked of them, `gate` refuses to time what is not exact, `measure` takes the times, `machine`
what this machine could do at best, `growth` the time per token of long sequences, `report` tells it.
"""

FUNCTIONS = ("linear", "diagonal", "selective", "gated", "additive", "additive_global", "conv")
