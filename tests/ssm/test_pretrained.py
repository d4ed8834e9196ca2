"""Checkpoints of Mamba and Mamba-2 against what `transformers` computes with them; see checkpoints/make.py."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ssm
from lightnet.backbone import Block
from ssm.mamba import Mamba
from ssm.mamba2 import Mamba2
from ssm.models import Architecture, architecture_of, mamba_lm
from ssm.pretrained import load_pretrained, read_config, save_pretrained

ROOT = Path(__file__).parents[2]
CHECKPOINTS = Path(__file__).parent / "checkpoints"
NAMES = ("mamba-tied", "mamba-untied", "mamba2-1-group", "mamba2-2-groups")
CLOSE = {"rtol": 0, "atol": 2e-5}
EMBEDDING, ORIGINAL_EMBEDDING = "backbone.embeddings.weight", "backbone.embedding.weight"


@cache
def loaded(name):
    """Model, variables, the compiled forward pass, and what was computed by others."""
    model, variables = ssm.load_pretrained(CHECKPOINTS / name)
    return model, variables, jax.jit(model.apply), load_file(CHECKPOINTS / name / "reference.safetensors")


def copied(name, folder):
    """A copy of a checkpoint that can be changed: its folder, configuration and tensors."""
    shutil.copytree(CHECKPOINTS / name, folder)
    config = json.loads((folder / "config.json").read_text())
    return folder, config, load_file(folder / "model.safetensors")


def written(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("length", [11, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name, length):
    _, variables, apply, reference = loaded(name)
    logits = apply(variables, reference[f"tokens_{length}"])
    np.testing.assert_allclose(logits, reference[f"logits_{length}"], **CLOSE)
    assert logits.shape == (2, length, 17) and np.abs(logits).max() > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba-tied", "mamba2-2-groups"])
def test_hidden_states_are_those_of_transformers(name):
    model, variables, _, reference = loaded(name)
    forward = partial(model.apply, capture_intermediates=lambda module, _: isinstance(module, Block))
    _, captured = jax.jit(forward)(variables, reference["tokens_11"])
    blocks = captured["intermediates"]["backbone"]
    for i, expected in enumerate(reference["hidden_11"]):
        np.testing.assert_allclose(blocks[f"blocks_{i}"]["__call__"][0][0], expected, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_matters(name):
    # If one did not, the tests above would not see where it came from.
    _, variables, apply, reference = loaded(name)
    logits, flat = reference["logits_11"], flatten_dict(variables)
    for path, leaf in flat.items():
        without = apply(unflatten_dict({**flat, path: jnp.zeros_like(leaf)}), reference["tokens_11"])
        assert np.abs(without - logits).max() > 1e-2, path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba-tied", "mamba2-2-groups"])
def test_tokens_behind_a_state_equal_the_whole(name):
    model, variables, _, reference = loaded(name)
    tokens, logits = reference["tokens_11"], reference["logits_11"]
    extend = jax.jit(partial(model.apply, method="extend"))
    first, state = extend(variables, tokens[:, :4])
    more, state = extend(variables, tokens[:, 4:9], state)
    step = jax.jit(partial(model.apply, method="step"))
    one, state = step(variables, tokens[:, 9], state)
    last, state = step(variables, tokens[:, 10], state)
    whole = np.concatenate([first, more, one[:, None], last[:, None]], axis=1)
    np.testing.assert_allclose(whole, logits, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["mamba-tied", "mamba2-2-groups"])
def test_padding_on_either_side_changes_nothing(name, side):
    model, variables, _, reference = loaded(name)
    real = np.zeros((2, 15), bool)
    real[:, slice(-11, None) if side == "left" else slice(11)] = True
    tokens = np.full(real.shape, 5)
    tokens[real] = reference["tokens_11"].ravel()
    extend = jax.jit(partial(model.apply, method="extend"))
    logits, state = extend(variables, tokens, mask=real)
    np.testing.assert_allclose(logits[real], reference["logits_11"].reshape(22, 17), **CLOSE)
    _, unpadded = extend(variables, reference["tokens_11"])
    jax.tree.map(partial(np.testing.assert_allclose, **CLOSE), state, unpadded)


def original_config(config):
    """A configuration of Hugging Face in the words of `mamba_ssm`."""
    layer = {
        "d_state": config["state_size"],
        "d_conv": config["conv_kernel"],
        "expand": config["expand"],
        "bias": config["use_bias"],
        "conv_bias": config["use_conv_bias"],
    }
    if config["model_type"] == "mamba2":
        layer |= {"layer": "Mamba2", "headdim": config["head_dim"], "ngroups": config["n_groups"], "chunk_size": 32}
    return {
        "d_model": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "vocab_size": 15,
        "ssm_cfg": layer,
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 17,
        "tie_embeddings": config.get("tie_word_embeddings", True),
    }


@pytest.mark.parametrize("name", ["mamba-tied", "mamba2-1-group"])
def test_the_original_layout_is_the_same_model(name, tmp_path):
    _, config, tensors = copied(name, tmp_path / "theirs")
    tensors[ORIGINAL_EMBEDDING] = tensors.pop(EMBEDDING)
    folder = written(tmp_path / "original", original_config(config), tensors)
    model, variables = load_pretrained(folder)
    assert architecture_of(model) == architecture_of(loaded(name)[0])
    same(variables, loaded(name)[1])

    head = tensors[ORIGINAL_EMBEDDING].copy()  # as PyTorch stores a tied one
    written(folder, original_config(config), {**tensors, "lm_head.weight": head})
    same(load_pretrained(folder)[1], variables)
    head[-1, -1] += 1
    written(folder, original_config(config), {**tensors, "lm_head.weight": head})
    with pytest.raises(ValueError, match="lm_head.weight: differs from backbone.embedding.weight, but config.json"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_come_back_bit_by_bit(name, tmp_path):
    model, variables, _, _ = loaded(name)
    ssm.save_pretrained(tmp_path / "ours", model, variables)
    stored, tensors = (load_file(folder / "model.safetensors") for folder in (tmp_path / "ours", CHECKPOINTS / name))
    assert stored.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert stored[key].dtype == tensor.dtype
        np.testing.assert_array_equal(stored[key], tensor, err_msg=key)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "ours", CHECKPOINTS / name)]
    assert read_config(configs[0]) == read_config(configs[1])
    with safe_open(tmp_path / "ours" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def drawn(architecture):
    """A model and its initial values."""
    model = mamba_lm(architecture)
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))


GROUPS = Architecture(Mamba2(width=8, state_size=3, head_size=4, num_groups=2), vocab_size=7, num_layers=1, tied=False)


@pytest.mark.parametrize(
    "made", [partial(loaded, "mamba-tied"), partial(loaded, "mamba2-1-group"), partial(drawn, GROUPS)]
)
def test_the_original_layout_is_written(made, tmp_path):
    model, variables, *_ = made()
    save_pretrained(tmp_path, model, variables, layout="original")
    keys = load_file(tmp_path / "model.safetensors").keys()
    assert ORIGINAL_EMBEDDING in keys and EMBEDDING not in keys and ("lm_head.weight" in keys) != model.tied
    again, parameters = load_pretrained(tmp_path)
    assert architecture_of(again) == architecture_of(model)
    same(parameters, variables)


def test_our_variables_come_back_bit_by_bit(tmp_path):
    model = mamba_lm(Architecture(Mamba(width=6, state_size=3), vocab_size=5, num_layers=1, tied=False))
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))  # each in a box
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape), leaf.dtype), shapes)
    save_pretrained(tmp_path, model, variables)
    same(load_pretrained(tmp_path)[1], nn.meta.unbox(variables))


@pytest.mark.parametrize("name", ["mamba-tied", "mamba2-2-groups"])
def test_wrong_tensors_are_named(name, tmp_path):
    folder, config, tensors = copied(name, tmp_path / "theirs")
    key = "backbone.layers.1.mixer.in_proj.weight"
    whole = rf"\[{tensors[key].shape[0]}, 16\]"
    for changed, message in [
        ({**tensors, key: None}, f"^missing tensors: {key}$"),
        ({**tensors, key.replace("1", "2"): tensors[key]}, "^unknown tensors: backbone.layers.2.mixer.in_proj.weight$"),
        ({**tensors, key: tensors[key][:, 1:]}, rf"got float32\[\d+, 15\], expected floating point numbers {whole}"),
        ({**tensors, key: tensors[key].astype(np.int32)}, f"{key}: got int32"),
    ]:
        kept = {name: np.ascontiguousarray(tensor) for name, tensor in changed.items() if tensor is not None}
        written(folder, config, kept)
        with pytest.raises(ValueError, match=message):
            load_pretrained(folder)


def test_several_files_are_one_checkpoint(tmp_path):
    folder, _, tensors = copied("mamba2-2-groups", tmp_path / "theirs")
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for i, part in enumerate((names[:7], names[7:]), 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    same(load_pretrained(folder)[1], loaded("mamba2-2-groups")[1])


@pytest.mark.slow
def test_a_dtype_leaves_the_islands_in_float32(tmp_path):
    for name in ("mamba-tied", "mamba2-2-groups"):
        model, variables = load_pretrained(CHECKPOINTS / name, dtype=jnp.bfloat16)
        dtypes = {path[-1]: leaf.dtype for path, leaf in flatten_dict(variables["params"]).items()}
        wide = {key for key, dtype in dtypes.items() if dtype == jnp.float32}
        assert wide == {"A_log", "D", "dt_bias", "scale"}
        assert {dtypes[key] for key in dtypes.keys() - wide} == {jnp.dtype("bfloat16")}
        assert model.backbone.dtype == jnp.bfloat16 and model.backbone.float32_residual
        expected = jax.tree.map(lambda a, b: b.astype(a.dtype), variables, loaded(name)[1])
        same(variables, expected)
        reference = loaded(name)[3]
        logits = jax.jit(model.apply)(variables, reference["tokens_11"])
        assert logits.dtype == jnp.float32
        # 2^-8 of numbers up to 4 or so, over a few dozen operations.
        np.testing.assert_allclose(logits, reference["logits_11"], rtol=0, atol=0.1)
        save_pretrained(tmp_path / name, model, variables)
        same(load_pretrained(tmp_path / name)[1], variables)


def test_what_is_stored_is_kept(tmp_path):
    folder, config, tensors = copied("mamba2-1-group", tmp_path / "theirs")
    narrow = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    written(folder, config, narrow)
    model, variables = load_pretrained(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("bfloat16")}
    assert model.backbone.dtype == jnp.bfloat16
    save_pretrained(tmp_path / "ours", model, variables)
    stored = load_file(tmp_path / "ours" / "model.safetensors")
    assert all(stored[name].tobytes() == tensor.tobytes() for name, tensor in narrow.items())
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    written(folder, config, {name: tensor.astype(np.float64) for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match="got float64, which needs jax_enable_x64"):
        load_pretrained(folder)
    mixed = flatten_dict(variables["params"])
    mixed["backbone", "blocks_1", "mix", "dt_proj", "kernel"] = jnp.zeros((16, 4))
    with pytest.raises(ValueError, match="blocks_1/mix/dt_proj/kernel: got float32, but others of the same tensor"):
        save_pretrained(tmp_path / "mixed", model, {"params": unflatten_dict(mixed)})


def test_shardings_may_be_one_a_tree_or_made_of_the_abstract_variables():
    one = SingleDeviceSharding(jax.devices()[0])
    variables, seen = loaded("mamba2-2-groups")[1], []

    def made(abstract):
        seen.append(abstract)
        return jax.tree.map(lambda _: one, variables)

    for shardings in (one, jax.tree.map(lambda _: one, variables), made):
        _, placed = load_pretrained(CHECKPOINTS / "mamba2-2-groups", shardings=shardings)
        same(placed, variables)
    (abstract,) = seen
    kernel = abstract["params"]["backbone"]["blocks_0"]["mix"]["in_proj"]["kernel"]
    assert kernel.names == ("embed", None, "mlp") and kernel.value.shape == (16, 2, 48)
    assert jax.tree.map(jnp.shape, nn.meta.unbox(abstract)) == jax.tree.map(jnp.shape, variables)
    with pytest.raises(ValueError, match="missing shardings: backbone"):
        load_pretrained(CHECKPOINTS / "mamba-tied", shardings={"params": {}})
    with pytest.raises(ValueError, match="shardings: expected a sharding, or a tree of them like the variables"):
        load_pretrained(CHECKPOINTS / "mamba-tied", shardings={"embedding": one})


def in_a_process(module, *words, **settings):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **settings}
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_eight_devices_hold_an_eighth_each(tmp_path):
    devices = "--xla_force_host_platform_device_count=8"
    assert in_a_process("tests.ssm.loading", "shards", tmp_path, XLA_FLAGS=devices) == "ok\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_loading_holds_little_more_than_the_parameters(tmp_path):
    model = json.loads(in_a_process("tests.ssm.loading", "make", tmp_path, 16000, 256, 28))
    peak = json.loads(in_a_process("tests.ssm.loading", "memory", tmp_path))
    # 1.2 of the checkpoint's size, and what so many arrays cost beside what is in them.
    assert model["bytes"] > 60e6 and peak["extra"] < 1.2 * model["bytes"] + 8e6
