"""LightNet, and what every sequence model here is built on: the scan core and the backbone."""
