"""Token dynamics of deep selective state space models (arXiv 2410.03292): theory, refinements and trained models."""
