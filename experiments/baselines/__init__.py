"""Models that are only ever compared with."""
