"""A network of one hidden layer fits a sine: a result of a user's own, outside the checkout."""

from dataclasses import dataclass, field

from experiments import results
from experiments.results import About, Claim, Result
from experiments.training.config import TrainConfig

ABOUT = About(paper="My paper", source="Figure 1", minutes={"smoke": 0.1, "cpu": 0.3})
CLAIMS = (Claim("mine/fits", "mean squared error on the training points", "below", 0.4, kind="ours"),)


@dataclass(frozen=True)
class Config(results.Config):
    train: TrainConfig = field(default_factory=TrainConfig)


PRESETS = {"smoke": Config(seeds=(0, 1), train=TrainConfig(steps=60)), "cpu": Config()}


def run(config, run_dir):
    import jax.numpy as jnp
    import numpy as np
    from my_model import MyModel

    from experiments.training.loop import Task, train

    model, x = MyModel(), np.linspace(-2, 2, 64, dtype=np.float32)[:, None]
    points = {"x": x, "y": np.sin(2 * x)}

    def loss(params, batch, key):
        return jnp.mean((model.apply(params, batch["x"]) - batch["y"]) ** 2), {}

    task = Task(lambda key: model.init(key, x), loss, lambda params: {"loss": loss(params, points, None)[0]})
    curves = {}
    for seed in config.seeds:
        curves[f"{seed}"] = train(config.train, task, points, run_dir / f"{seed}", seed=seed).evaluation["loss"]
    return Result({"mine/fits": [float(curve[-1]) for curve in curves.values()]}, series={"loss": curves})


def plot(result):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot(next(iter(result.series["loss"].values())))
    return figure
