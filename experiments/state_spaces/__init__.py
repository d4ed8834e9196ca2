"""S4, S4D, S5, Mamba and Mamba-2: small experiments with claims."""
