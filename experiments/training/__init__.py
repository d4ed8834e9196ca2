"""One training loop for everything: mesh, data, optimizer, checkpoint, metrics.

The loop is in `experiments.training.loop`, its settings in `experiments.training.config`; the latter imports nothing
heavy, so that a result file can hold a configuration without importing JAX.
"""
