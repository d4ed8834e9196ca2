"""LightNet, the backbone that every sequence model here is built on, and (once built) the scan core."""
