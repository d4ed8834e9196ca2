"""Mamba and Mamba-2 beside `transformers`, both ways, where it is installed (extra `parity`)."""

from functools import partial

import jax
import numpy as np
import pytest

from ssm.pretrained import load_pretrained, save_pretrained
from tests.ssm.checkpoints.make import CONFIGS, computed, perturbed

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
CLOSE = {"rtol": 0, "atol": 2e-5}
NOISE = 0.1  # more makes long sequences so sensitive that both are 1e-5 away from float64
SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 29, "tie_word_embeddings": False}
HEADS = {"mamba2-1-group": {"num_heads": 6}, "mamba2-2-groups": {"num_heads": 6}}


@pytest.fixture(params=CONFIGS)
def both(request, tmp_path):
    """A model of `transformers`, and ours of what it saved, with the forward pass compiled."""
    model = perturbed(request.param, seed=7, noise=NOISE, **SIZES, **HEADS.get(request.param, {}))
    model.save_pretrained(tmp_path / "theirs")
    return model, *load_pretrained(tmp_path / "theirs")


@pytest.mark.parametrize("length", [1, 4, 5, 19])
def test_logits_are_the_same(both, length):
    theirs, model, variables = both
    expected = computed(theirs, length)
    logits = jax.jit(model.apply)(variables, expected["tokens"].numpy())
    np.testing.assert_allclose(logits, expected["logits"].numpy(), **CLOSE)


def test_tokens_one_by_one_are_the_same(both):
    theirs, model, variables = both
    expected = computed(theirs, 9)
    tokens = expected["tokens"]
    _, state = jax.jit(partial(model.apply, method="extend"))(variables, tokens[:, :6].numpy())
    step = jax.jit(partial(model.apply, method="step"))
    # Reading one token, `transformers` does not clip the steps of Mamba-2.
    clipped = getattr(theirs.config, "time_step_limit", (0.0, float("inf"))) != (0.0, float("inf"))
    with torch.no_grad():
        cache = None if clipped else theirs(tokens[:, :6], use_cache=True).cache_params
        for t in range(6, 9):
            logits, state = step(variables, tokens[:, t].numpy(), state)
            np.testing.assert_allclose(logits, expected["logits"][:, t].numpy(), **CLOSE)
            if cache is not None:
                out = theirs(tokens[:, t : t + 1], cache_params=cache, use_cache=True)
                cache = out.cache_params
                np.testing.assert_allclose(logits, out.logits[:, 0].numpy(), **CLOSE)


def test_padding_on_the_left_is_the_same(both):
    theirs, model, variables = both
    if theirs.config.use_bias:
        pytest.skip("there it sees the padding: it hides it before the bias of the first projection")
    tokens = computed(theirs, 9)["tokens"]
    real = torch.ones_like(tokens)
    real[0, :4] = 0
    with torch.no_grad():
        expected = theirs(tokens, attention_mask=real, use_cache=False).logits
    mask = real.numpy().astype(bool)
    logits = jax.jit(model.apply)(variables, tokens.numpy(), mask=mask)
    np.testing.assert_allclose(np.asarray(logits)[mask], expected.numpy()[mask], **CLOSE)


def test_what_we_save_is_read_by_transformers(both, tmp_path):
    theirs, model, variables = both
    save_pretrained(tmp_path / "ours", model, variables)
    read, told = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = theirs.state_dict()
    assert all(torch.equal(tensor, expected.pop(name)) for name, tensor in read.state_dict().items()) and not expected


def test_what_we_save_in_the_original_layout_is_read_by_transformers(both, tmp_path):
    theirs, model, variables = both
    if theirs.config.layer_norm_epsilon != 1e-5:
        pytest.skip("that layout cannot say this epsilon")
    save_pretrained(tmp_path / "ours", model, variables, layout="original")
    tensors = safetensors.load_file(tmp_path / "ours" / "model.safetensors")
    again = type(theirs)(theirs.config)
    again.load_state_dict(tensors)  # with the other name of the embedding; `from_pretrained` does not know that
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), theirs.parameters(), strict=True))
