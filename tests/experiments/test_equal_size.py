"""Widths of GLUs with which models are equally large."""

from experiments.equal_size import hidden_for


def test_hidden_is_the_nearest_width():
    sizes = {hidden: 1000 + 48 * hidden for hidden in range(1, 100)}
    for parameters in (1500, 2000, 3333):
        nearest = min(sizes, key=lambda hidden: abs(sizes[hidden] - parameters))
        assert hidden_for(sizes.__getitem__, parameters) == nearest
