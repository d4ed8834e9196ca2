"""Students with and without attention transfer."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import eigen_cam
from experiments.distillation.networks import Outputs

CPU = eigen_cam.PRESETS["cpu"]


@pytest.mark.slow
def test_attention_has_a_gradient_into_the_features_of_the_student_only():
    rng = np.random.default_rng(0)
    s, t = (Outputs(jnp.zeros((2, 10)), jnp.asarray(rng.uniform(size=(2, 3, 3, c)), jnp.float32)) for c in (2, 4))
    student, teacher = jax.grad(eigen_cam.attention, (0, 1))(s, t)
    assert float(jnp.abs(student.features).sum()) > 0 == float(jnp.abs(teacher.features).sum())


def test_claims():
    found = {"at": {"overlap": [0.9], "accuracy": [95.0]}, "ce": {"overlap": [0.5], "accuracy": [96.0]}}
    measured = eigen_cam._measured(found)
    np.testing.assert_allclose(measured["distillation/at-looks-alike"], [0.4])
    np.testing.assert_allclose(measured["distillation/at-digits"], [-1.0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("student", "conv-4", "student: got 'conv-4', expected conv and as many widths as of 'conv-16-32'"),
        ("student", "mlp-4-8", "student: got 'mlp-4-8', expected conv"),
        ("students", ("ce",), "students: got"),
    ],
)
def test_networks_whose_maps_differ_in_size_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(CPU, **{field: value})
