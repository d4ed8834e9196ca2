"""LightNet checkpoints of Hugging Face's layout against a float64 forward of what flash-linear-attention computes."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lightnet.backbone import Backbone, CausalLM
from lightnet.mixers import LightNetAttention, LinearAttention
from lightnet.models import CAUSAL_LMS, causal_lm
from lightnet.pretrained import (
    Architecture,
    architecture_of,
    lightnet_lm,
    load_pretrained,
    read_config,
    save_pretrained,
)

CONFIG = {
    "architectures": ["LightNetForCausalLM"],
    "attn": None,
    "attn_mode": "chunk",
    "bos_token_id": 1,
    "elementwise_affine": True,
    "expand_ratio": 5,
    "gate_low_rank_dim": 7,
    "hidden_act": "swish",
    "hidden_ratio": 4,
    "hidden_size": 15,
    "intermediate_size": 13,
    "model_type": "lightnet",
    "norm_eps": 1e-2,
    "num_heads": 3,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.48.0",
    "use_short_conv": False,
    "vocab_size": 11,
}
VARIANTS = {
    "plain": {},
    "short conv": {"use_short_conv": True, "conv_size": 3},
    "tied": {"tie_word_embeddings": True, "use_short_conv": True},
    "no scale": {"elementwise_affine": False, "num_heads": None},
}
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5], [8, 9, 7, 9, 3, 2, 10, 0, 4]])


def random_tensors(config, seed=0):
    """Random tensors under the names of flash-linear-attention."""
    random = np.random.default_rng(seed)
    d, m, r, v = 15, 13, 7, 11
    shapes = {"model.embeddings": (v, d), "model.norm": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head"] = (v, d)
    for i in range(2):
        block = {"attn_norm": (d,), "mlp_norm": (d,)}
        block |= {f"attn.{x}_proj": (d, d) for x in "qkvo"}
        block |= {"attn.g_proj.0": (r, d), "attn.g_proj.1": (d, r)}
        block |= {"mlp.gate_proj": (m, d), "mlp.up_proj": (m, d), "mlp.down_proj": (d, m)}
        if config["elementwise_affine"]:
            block["attn.g_norm"] = (d,)
        if config["use_short_conv"]:
            block |= {f"attn.{x}_conv1d": (d, 1, config.get("conv_size", 4)) for x in "qkv"}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    tensors = {f"{name}.weight": 0.5 * random.standard_normal(shape) for name, shape in shapes.items()}
    for name in tensors:
        # So small that the epsilon behind them is as large as their squares.
        tensors[name] *= 1e-3 if "v_proj" in name else 1
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def written(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    def make(**options):
        config = CONFIG | options
        tensors = random_tensors(config)
        return written(tmp_path / "theirs", config, tensors), config, tensors

    return make


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def short_conv(x, weight):
    """A convolution of each channel with zeros on the left, cut to the length of x (L, D)."""
    padded = np.pad(x, ((weight.shape[2] - 1, 0), (0, 0)))
    return np.stack([(padded[t : t + weight.shape[2]] * weight[:, 0].T).sum(0) for t in range(len(x))])


def attention(x, w, config):
    """One layer: gated linear attention with decays exp(z_{t-1} - z_t) and keys exp(k_t - z_t), queries scaled."""
    q, k, v = (x @ w(f"attn.{name}_proj").T for name in "qkv")
    if config["use_short_conv"]:
        q, k, v = (short_conv(y, w(f"attn.{name}_conv1d")) for y, name in zip((q, k, v), "qkv", strict=True))
    size = config["expand_ratio"]
    q, k, v = (y.reshape(len(x), -1, size) for y in (q * sigmoid(q), k, v))
    z, state, o = np.full(k.shape[1:], -np.inf), np.zeros((*k.shape[1:], size)), np.zeros_like(v)
    for t in range(len(x)):
        z_new = np.logaddexp(z, k[t])
        state = np.exp(z - z_new)[..., None] * state + np.exp(k[t] - z_new)[..., None] * v[t][:, None]
        o[t] = np.einsum("hk,hkv->hv", q[t] * size**-0.5, state)
        z = z_new
    gate = x @ w("attn.g_proj.0").T @ w("attn.g_proj.1").T
    weight = w("attn.g_norm") if config["elementwise_affine"] else 1
    return rms_norm(o.reshape(x.shape), weight, 1e-6) * gate * sigmoid(gate) @ w("attn.o_proj").T


def forward(tokens, tensors, config):
    """Logits (L, V) of one sequence in float64."""
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x, eps = wide["model.embeddings.weight"][tokens], config["norm_eps"]
    for i in range(config["num_hidden_layers"]):

        def w(name, i=i):
            return wide[f"model.layers.{i}.{name}.weight"]

        x = x + attention(rms_norm(x, w("attn_norm"), eps), w, config)
        y = rms_norm(x, w("mlp_norm"), eps)
        gate = y @ w("mlp.gate_proj").T
        x = x + (gate * sigmoid(gate) * (y @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
    head = wide["model.embeddings.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return rms_norm(x, wide["model.norm.weight"], eps) @ head.T


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_definition(checkpoint, variant):
    folder, config, tensors = checkpoint(**VARIANTS[variant])
    model, variables = load_pretrained(folder)
    logits = jax.jit(model.apply)(variables, TOKENS)
    for row, tokens in enumerate(TOKENS):
        np.testing.assert_allclose(logits[row], forward(tokens, tensors, config), rtol=0, atol=1e-5)
    assert np.abs(logits).max() > 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_come_back_bit_by_bit(checkpoint, variant, tmp_path):
    folder, config, tensors = checkpoint(**VARIANTS[variant])
    model, variables = load_pretrained(folder)
    save_pretrained(tmp_path / "ours", model, variables)
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        np.testing.assert_array_equal(stored[name], tensor, err_msg=name)
    assert read_config(json.loads((tmp_path / "ours" / "config.json").read_text())) == read_config(config)
    with safe_open(tmp_path / "ours" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_our_variables_come_back_bit_by_bit(tmp_path):
    model = lightnet_lm(Architecture(11, 15, num_layers=2, num_heads=5, hidden=13, gate_rank=2, conv_width=3))
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)  # each in a box with the names of its axes
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), leaf.dtype), shapes)
    save_pretrained(tmp_path, model, variables)
    loaded, again = load_pretrained(tmp_path)
    assert architecture_of(loaded) == architecture_of(model)
    plain = nn.meta.unbox(variables)
    assert jax.tree.structure(again) == jax.tree.structure(plain)
    jax.tree.map(np.testing.assert_array_equal, again, plain)


def test_wrong_tensors_are_named(checkpoint):
    folder, config, tensors = checkpoint()
    name = "model.layers.1.attn.q_proj.weight"
    changes = {
        f"missing tensors: {name}$": {**tensors, name: None},
        "unknown tensors: model.layers.2.attn.q_proj.weight$": {**tensors, name.replace("1", "2"): tensors[name]},
        rf"{name}: got float32\[15, 14\], expected floating point numbers \[15, 15\]": {
            **tensors,
            name: tensors[name][:, 1:],
        },
        f"{name}: got int32": {**tensors, name: tensors[name].astype(np.int32)},
    }
    for message, changed in changes.items():
        written(folder, config, {name: tensor.copy() for name, tensor in changed.items() if tensor is not None})
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn": {"layers": [1], "num_heads": 3}}, r"config.json: attn \{'layers'.* is not supported"),
        ({"attnres_block_size": 2}, "config.json: attnres_block_size 2 is not supported"),
        ({"hidden_act": "gelu"}, "config.json: hidden_act 'gelu' is not supported, only 'swish'"),
        ({"model_type": "gla"}, "config.json: model_type 'gla' is not supported"),
        ({"num_heads": 2}, "num_heads 2 with expand_ratio 5 is not supported"),
        ({"num_heads": None, "expand_ratio": 4}, "num_heads 3 with expand_ratio 4 is not supported"),
        ({"num_heads": None, "expand_ratio": None}, "neither num_heads nor expand_ratio"),
        ({"use_lrpe": True, "lrpe_type": 1}, "config.json: unknown options lrpe_type, use_lrpe"),
        ({"hidden_size": "15"}, "config.json: hidden_size is '15', expected a number from 1"),
    ],
)
def test_what_our_model_cannot_be_is_named(checkpoint, options, message):
    folder, config, tensors = checkpoint()
    written(folder, config | options, tensors)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_what_a_configuration_leaves_out():
    assert read_config({"model_type": "lightnet"}) == Architecture(
        32000, 2048, num_layers=24, num_heads=16, hidden=5632, gate_rank=128
    )
    # 2/3 of 4 times 1100 is 2933, and 12 * 256 is 3072
    of_width = partial(read_config, {"model_type": "lightnet", "hidden_size": 1100, "num_heads": 11})
    with pytest.raises(ValueError, match="num_heads 11 with expand_ratio 128"):
        of_width()
    assert read_config({**of_width.args[0], "expand_ratio": None}).hidden == 3072
    with pytest.raises(ValueError, match="model_type None"):
        read_config({"hidden_size": 2048})


def shard(folder, tensors, split=7):
    """The tensors in two files and an index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, index = sorted(tensors), {}
    for i, part in enumerate((names[:split], names[split:]), 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": index}))
    return path, index


def test_several_files_are_one_checkpoint(checkpoint):
    folder, _, tensors = checkpoint()
    _, whole = load_pretrained(folder)
    path, index = shard(folder, tensors)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder)[1], whole)

    name = "model.norm.weight"
    first, second = sorted(set(index.values()))
    for changed, message in [
        ({**index, name: first}, f"missing tensors in {first}: {name}"),
        ({key: file for key, file in index.items() if key != name}, f"unknown tensors in {second}: {name}"),
        ({**index, name: "../elsewhere.safetensors"}, "expected a name in the same folder"),
        (dict.fromkeys(index, "model-3.safetensors"), "model-3.safetensors: cannot be read"),
    ]:
        path.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder)


def test_steps_behind_a_prompt_equal_the_whole(checkpoint):
    folder, _, _ = checkpoint(use_short_conv=True)
    model, variables = load_pretrained(folder)
    expected = jax.jit(model.apply)(variables, TOKENS)
    logits, state = jax.jit(partial(model.apply, method="extend"))(variables, TOKENS[:, :4])
    np.testing.assert_allclose(logits, expected[:, :4], rtol=0, atol=1e-5)
    step = jax.jit(partial(model.apply, method="step"))
    for t in range(4, TOKENS.shape[1]):
        logits, state = step(variables, TOKENS[:, t], state)
        np.testing.assert_allclose(logits, expected[:, t], rtol=0, atol=1e-5)


def test_precision_is_kept_or_cast(checkpoint, tmp_path):
    folder, config, tensors = checkpoint()
    narrow = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    written(folder, config, narrow)
    model, variables = load_pretrained(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    save_pretrained(tmp_path / "ours", model, variables)
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert all(np.array_equal(stored[name], tensor) for name, tensor in narrow.items())
    _, cast = load_pretrained(folder, dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), cast, variables)

    written(folder, config, {name: tensor.astype(np.float64) for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match="got float64, which needs jax_enable_x64"):
        load_pretrained(folder)


def test_what_is_not_there_is_said_in_one_line(tmp_path, checkpoint):
    with pytest.raises(ValueError, match="expected a local folder with config.json .names on a hub are not looked up"):
        load_pretrained("fla-hub/lightnet-1.3B")
    folder, _, _ = checkpoint()
    (folder / "model.safetensors").write_bytes(b"1234567890")
    with pytest.raises(ValueError, match="model.safetensors: cannot be read"):
        load_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected model.safetensors or model.safetensors.index.json in it"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not JSON"):
        load_pretrained(folder)


def changed(**options):
    """A model that `lightnet_lm` makes, but for these options of its mixer."""
    model = lightnet_lm(Architecture(11, 12, num_layers=1, num_heads=3, hidden=8, gate_rank=2))
    backbone = model.backbone
    return model.clone(backbone=backbone.clone(mixer=partial(backbone.mixer, **options)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (changed(gate_position="before"), "mixer.gate_position is 'before', this layout has 'after' only"),
        (changed(phantom_logit=0.0), "mixer.phantom_logit is 0.0, this layout has None only"),
        (changed(use_bias=True), "mixer.use_bias is True"),
        (changed(norm=partial(nn.RMSNorm, epsilon=1e-6)), "mixer.norm.epsilon is 1e-06, this layout has 4e-06 only"),
        (changed(norm=nn.LayerNorm), "mixer.norm is LayerNorm, this layout has RMSNorm only"),
        (changed().clone(head_bias=True), "model.head_bias is True"),
        (CausalLM(Backbone(partial(LinearAttention, num_heads=2), 1, 8), 5), "mixer is LinearAttention"),
        (CausalLM(Backbone(partial(LightNetAttention, num_heads=2), 1, 8), 5), "mlp is NoneType"),
        (causal_lm(CAUSAL_LMS["44m"], 5), "input_positions is"),
    ],
)
def test_other_models_are_not_saved(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_pretrained(tmp_path, model, {"params": {}})
    assert not any(tmp_path.iterdir())


def test_wrong_variables_are_not_saved(tmp_path):
    model = changed()
    params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), TOKENS))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    for wrong, message in [
        ({"params": {**params, "bias": np.zeros(3)}}, "unknown parameters: bias"),
        ({"params": {name: leaf for name, leaf in params.items() if name != "head"}}, "missing parameters: head"),
        ({"params": {**params, "head": np.zeros((5, 12))}}, r"head: got shape \[5, 12\], expected \[11, 12\]"),
        ({"params": params, "cache": {}}, "got the collections .*cache.*, expected params alone"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_pretrained(tmp_path, model, wrong)


@pytest.mark.parametrize("eps", ["x", -1, 0.0, True, float("nan"), None])
def test_an_epsilon_is_a_positive_number(eps):
    with pytest.raises(ValueError, match="norm_eps is .*, expected a positive number"):
        read_config({**CONFIG, "norm_eps": eps})


def test_a_model_is_not_saved_in_the_place_of_a_file(tmp_path):
    model = lightnet_lm(Architecture(vocab_size=7, width=8, num_layers=1, num_heads=2, hidden=16, gate_rank=4))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="path: got .*, which is a file, expected a folder"):
        save_pretrained(tmp_path / "file", model, model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
