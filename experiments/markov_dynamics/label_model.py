"""Two attention layers and a classifier that read items and labels: abrupt in-context learning (arXiv 2312.03002).

One head per layer, residual, no norm and no MLP between; the last token goes through a ReLU network of three layers.
The attention weights are returned: what the layers attend to tells an induction head from other solutions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lightnet.typing import Array


class LabelModel(nn.Module):
    """Predicts the label of the last item.

    Attributes:
        labels: L.
        hidden: units of each layer of the classifier.
        layers: attention layers.

    Example:
        >>> model = LabelModel(labels=4, hidden=8)
        >>> (logits, weights), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((2, 5, 6)))
        >>> logits.shape, [one.shape for one in weights]
        ((2, 4), [(2, 5, 5), (2, 5, 5)])
    """

    labels: int
    hidden: int = 128
    layers: int = 2

    @nn.compact
    def __call__(self, inputs: Array) -> tuple[Array, list[Array]]:
        """Predict.

        Args:
            inputs: (B, 2 N + 1, D): item, label, item, label, ..., target item.

        Returns:
            Logits (B, L) and the attention weights of each layer, (B, 2 N + 1, 2 N + 1) at [b, i, j].
        """
        x, weights = inputs, []
        later = np.triu(np.ones((inputs.shape[1],) * 2, bool), 1)[None]
        for layer in range(self.layers):
            q, k, v = (
                nn.Dense(x.shape[-1], use_bias=False, name=f"{name}_{layer}")(x) for name in ("query", "key", "value")
            )
            logits = jnp.einsum("bid,bjd->bij", q, k) / x.shape[-1] ** 0.5
            weights.append(jax.nn.softmax(jnp.where(later, -jnp.inf, logits)))
            x = x + jnp.einsum("bij,bjd->bid", weights[-1], v)
        x = x[:, -1]
        for layer in range(3):
            x = nn.relu(nn.Dense(self.hidden, name=f"classifier_{layer}")(x))
        return nn.Dense(self.labels, name="head")(x), weights


def label_to_item_attention(weights: Array) -> Array:
    """Mean attention of each label on the item just before it (ILA1, of the first layer).

    Args:
        weights: (B, 2 N + 1, 2 N + 1).

    Returns:
        A scalar in [0, 1].

    Example:
        >>> float(label_to_item_attention(jnp.eye(5, k=-1)[None]))
        1.0
    """
    return jnp.diagonal(weights, offset=-1, axis1=-2, axis2=-1)[:, ::2].mean()


def target_to_label_attention(weights: Array, classes: Array) -> Array:
    """Mean attention of the target on the labels of the items of its class (TILA2, of the second layer).

    Args:
        weights: (B, 2 N + 1, 2 N + 1).
        classes: class of each item, the target last, (B, N + 1).

    Returns:
        A scalar in [0, 1].

    Example:
        >>> last = jnp.array([[0.1, 0.6, 0.1, 0.1, 0.1]])
        >>> weights = jnp.concatenate([jnp.zeros((4, 5)), last])[None]
        >>> round(float(target_to_label_attention(weights, jnp.array([[7, 3, 7]]))), 3)
        0.6
    """
    right = classes[:, :-1] == classes[:, -1:]
    return jnp.where(right, weights[:, -1, 1::2], 0).sum(axis=-1).mean()


def context_label_accuracy(predicted: Array, labels: Array) -> Array:
    """Share of predictions that are one of the labels in the context (CLA).

    Args:
        predicted: (B,).
        labels: of each item, the target's last, (B, N + 1).

    Returns:
        A scalar in [0, 1].

    Example:
        >>> float(context_label_accuracy(jnp.array([3, 1]), jnp.array([[3, 2, 2], [3, 2, 2]])))
        0.5
    """
    return (predicted[:, None] == labels[:, :-1]).any(axis=-1).mean()
