"""HiSS: hierarchical state space models for sensors (Bhirangi et al., arXiv 2402.10211)."""
