"""Configurations of Mamba and Mamba-2: what is read, what is refused, and where a checkpoint may be."""

import json
import math
import shutil
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lightnet.backbone import Backbone, CausalLM
from ssm.mamba import Mamba
from ssm.mamba2 import Mamba2
from ssm.models import Architecture, architecture_of, mamba_lm
from ssm.pretrained import LAYOUTS, load_pretrained, read_config, save_pretrained, write_config

CHECKPOINTS = Path(__file__).parent / "checkpoints"
MAMBA = Architecture(Mamba(width=6, dt_rank=2, state_size=3, conv_width=2, use_bias=True), vocab_size=9, num_layers=2)
MAMBA2 = Architecture(
    Mamba2(width=6, state_size=3, head_size=4, num_groups=3, expand=4, conv_bias=False, dt_limit=(0.1, 0.5)),
    vocab_size=9,
    num_layers=2,
    float32_residual=False,
    tied=False,
)
# As they are published, but for the names of files and versions.
PUBLISHED_MAMBA = {
    "architectures": ["MambaForCausalLM"],
    "bos_token_id": 0,
    "conv_kernel": 4,
    "d_inner": 1536,
    "d_model": 768,
    "eos_token_id": 0,
    "expand": 2,
    "fused_add_norm": True,
    "hidden_act": "silu",
    "hidden_size": 768,
    "initializer_range": 0.1,
    "intermediate_size": 1536,
    "layer_norm_epsilon": 1e-05,
    "model_type": "mamba",
    "n_layer": 24,
    "num_hidden_layers": 24,
    "pad_token_id": 0,
    "pad_vocab_size_multiple": 8,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "ssm_cfg": {},
    "state_size": 16,
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 48,
    "time_step_scale": 1.0,
    "torch_dtype": "float32",
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "vocab_size": 50280,
}
PUBLISHED_MAMBA2 = """{
    "architectures": ["Mamba2ForCausalLM"], "chunk_size": 256, "conv_kernel": 4, "expand": 2, "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.1, "intermediate_size": 8192,
    "layer_norm_epsilon": 1e-05, "model_type": "mamba2", "n_groups": 8, "norm_before_gate": true, "num_heads": 128,
    "num_hidden_layers": 64, "rescale_prenorm_residual": false, "residual_in_fp32": true, "rms_norm": true,
    "state_size": 128, "tie_word_embeddings": false, "time_step_floor": 0.0001, "time_step_init_scheme": "random",
    "time_step_limit": [0.0, Infinity], "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 256,
    "time_step_scale": 1.0, "torch_dtype": "bfloat16", "use_bias": false, "use_conv_bias": true, "vocab_size": 32768
}"""
ORIGINAL = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
ORIGINAL2 = {
    **ORIGINAL,
    "d_intermediate": 0,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}


def test_published_configurations():
    small = Architecture(Mamba(width=768, dt_rank=48), vocab_size=50280, num_layers=24)
    assert read_config(PUBLISHED_MAMBA) == read_config(ORIGINAL) == small
    small2 = Architecture(Mamba2(width=768), vocab_size=50288, num_layers=24)
    assert read_config(ORIGINAL2) == small2 and small2.mixer.num_heads == 24
    large = Architecture(Mamba2(width=4096, num_groups=8), vocab_size=32768, num_layers=64, tied=False)
    assert read_config(json.loads(PUBLISHED_MAMBA2)) == large


def test_what_a_configuration_leaves_out():
    mixer = Mamba(width=768, dt_rank=48)
    assert read_config({"model_type": "mamba"}) == Architecture(mixer, vocab_size=50280, num_layers=32)
    mixer = Mamba2(width=4096, num_groups=8)
    assert read_config({"model_type": "mamba2"}) == Architecture(mixer, vocab_size=32768, num_layers=64, tied=False)


@pytest.mark.parametrize("architecture", [MAMBA, MAMBA2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read_as_the_same(architecture, layout):
    options = json.loads(json.dumps(write_config(architecture, layout)))
    assert read_config(options) == architecture
    assert architecture_of(mamba_lm(architecture, dtype=jnp.bfloat16)) == architecture


def test_bounds_of_the_step_may_be_objects():
    options = {"model_type": "mamba2", "time_step_limit": [0.1, {"__float__": "Infinity"}]}
    assert read_config(options).mixer.dt_limit == (0.1, math.inf)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported, only 'mamba' and 'mamba2'"),
        ({"hidden_size": 8}, "model_type None is not supported"),
        ({"model_type": "mamba", "head_dim": 8}, "unknown options head_dim$"),
        ({"model_type": "mamba", "hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only 'silu'"),
        ({"model_type": "mamba", "hidden_size": "8"}, "hidden_size is '8', expected a number from 1"),
        ({"model_type": "mamba", "expand": 1.5}, "expand is 1.5, expected a number from 1"),
        ({"model_type": "mamba", "num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"model_type": "mamba", "time_step_rank": 0}, "time_step_rank is 0, expected a number from 1"),
        ({"model_type": "mamba", "layer_norm_epsilon": 0}, "layer_norm_epsilon is 0, expected a positive number"),
        ({"model_type": "mamba", "intermediate_size": 7}, "intermediate_size is 7, expected 1536 as the other sizes"),
        ({"model_type": "mamba", "n_layer": 7}, "n_layer is 7, expected 32"),
        ({"model_type": "mamba", "ssm_cfg": {"d_state": 8}}, "ssm_cfg .* is not supported"),
        ({"model_type": "mamba", "use_bias": "false"}, "use_bias is 'false', expected true or false"),
        ({"model_type": "mamba", "rms_norm": False}, "rms_norm False is not supported, only True"),
        ({"model_type": "mamba2", "num_heads": 3}, "num_heads 3 with head_dim 64 is not supported, only expand"),
        ({"model_type": "mamba2", "n_groups": 3}, "head_dim 64 and n_groups 3 do not divide 8192 channels"),
        ({"model_type": "mamba2", "time_step_limit": [0.1]}, r"time_step_limit is \[0.1\], expected two numbers"),
        ({"model_type": "mamba2", "time_step_limit": [0.1, None]}, "time_step_limit is .*, expected two numbers"),
        ({"model_type": "mamba2", "quantization_config": {"bits": 4}}, "quantization_config .* is not supported"),
        ({**ORIGINAL, "norm_epsilon": 1e-6}, "unknown options norm_epsilon"),
        ({**ORIGINAL, "rms_norm": False}, "rms_norm False is not supported"),
        ({**ORIGINAL2, "d_intermediate": 8}, "d_intermediate 8 is not supported, only 0"),
        ({**ORIGINAL2, "attn_layer_idx": [1]}, r"attn_layer_idx \[1\] is not supported"),
        ({**ORIGINAL, "ssm_cfg": None}, "ssm_cfg is None, expected an object"),
        ({**ORIGINAL, "ssm_cfg": {"ngroups": 2}}, "ssm_cfg: unknown options ngroups"),
        ({**ORIGINAL, "ssm_cfg": {"layer": "Mamba3"}}, "layer 'Mamba3' is not supported, only 'Mamba1' and 'Mamba2'"),
        ({**ORIGINAL2, "ssm_cfg": {"layer": "Mamba2", "d_ssm": 8}}, "d_ssm 8 is not supported"),
        ({**ORIGINAL2, "ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}}, "norm_before_gate True is not"),
        (
            {**ORIGINAL2, "ssm_cfg": {"layer": "Mamba2", "headdim": 7}},
            "headdim 7 and ngroups 1 do not divide 1536 channels",
        ),
    ],
)
def test_what_our_models_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=f"^config.json: .*{message}"):
        read_config(options)


def other(**options):
    """A model that `mamba_lm` makes, but for these options of its backbone."""
    model = mamba_lm(MAMBA)
    return model.clone(backbone=model.backbone.clone(**options))


@pytest.mark.parametrize(
    ("model", "layout", "message"),
    [
        (mamba_lm(MAMBA), "mamba_ssm", "layout: got 'mamba_ssm', expected huggingface or original"),
        (other(mlp_ratio=4), "original", "model: backbone.mlp_ratio is 4, this layout has 0 only"),
        (other(channel_mixer=nn.Dense), "original", "model: it has a channel_mixer"),
        (other(norm=nn.LayerNorm), "original", "norm is LayerNorm, this layout has RMSNorm only"),
        (other(norm=None), "original", "norm is NoneType"),
        (other(norm=partial(nn.RMSNorm, use_scale=False)), "original", "norm.use_scale is False"),
        (
            other(norm=partial(nn.RMSNorm, epsilon=1e-6)),
            "original",
            "a norm's epsilon is 1e-06, the original layout has 1e-05",
        ),
        (mamba_lm(MAMBA).clone(head_bias=True), "huggingface", "model.head_bias is True"),
        (mamba_lm(MAMBA).clone(num_input_only=1), "huggingface", "model.num_input_only is 1"),
        (
            mamba_lm(Architecture(Mamba2(width=4, head_size=2, norm_eps=1e-3), vocab_size=5, num_layers=1)),
            "huggingface",
            "mixer.norm_eps is 0.001, this layout has that of the norms, 1e-05, only",
        ),
    ],
)
def test_other_models_are_not_saved(model, layout, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_pretrained(tmp_path, model, {"params": {}}, layout=layout)
    assert not any(tmp_path.iterdir())


def test_models_of_another_mixer_are_not_saved(tmp_path):
    class Attention(nn.Module):
        width: int

    with pytest.raises(ValueError, match="mixer is Attention, this layout has Mamba and Mamba2 only"):
        save_pretrained(tmp_path, CausalLM(Backbone(Attention, 1, 8, norm=nn.RMSNorm), 5), {"params": {}})


def test_wrong_variables_are_not_saved(tmp_path):
    model = mamba_lm(MAMBA)
    params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    for wrong, message in [
        ({"params": {**params, "head": np.zeros((9, 6))}}, "unknown parameters: head"),
        ({"params": {"embedding": params["embedding"]}}, "missing parameters: backbone/blocks_0/mix/A_log"),
        ({"params": {**params, "embedding": np.zeros((8, 6))}}, r"embedding: got shape \[8, 6\], expected \[9, 6\]"),
        ({"params": params, "cache": {}}, "got the collections .*cache.*, expected params alone"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_pretrained(tmp_path, model, wrong)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="path: got .*, which is a file, expected a folder"):
        save_pretrained(tmp_path / "file", model, {"params": params})


@pytest.fixture
def fetched(monkeypatch):
    """What is asked of the hub, which has one repository."""
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        if repo_id != "owner/mamba-tied":
            raise huggingface_hub.errors.HFValidationError("404: no such repository\nmore")
        return str(CHECKPOINTS / "mamba-tied")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_an_id_is_fetched_without_pickles(fetched):
    _, variables = load_pretrained("owner/mamba-tied", revision="v1")
    jax.tree.map(np.testing.assert_array_equal, variables, load_pretrained(CHECKPOINTS / "mamba-tied")[1])
    ((name, revision, patterns),) = fetched
    assert (name, revision) == ("owner/mamba-tied", "v1")
    assert sorted(patterns) == ["config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    with pytest.raises(
        ValueError, match="no folder 'owner/other', and no repository from the hub: 404: no such repository$"
    ):
        load_pretrained("owner/other")


def test_what_is_not_there_is_said_in_one_line(fetched, tmp_path, monkeypatch):
    for path in ("/a/b", "./mamba", "mamba", tmp_path, Path("owner/mamba-tied")):
        with pytest.raises(
            ValueError, match="expected a folder with config.json or the id of a repository, owner/name$"
        ):
            load_pretrained(path)
    assert fetched == []
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="repositories need huggingface_hub: pip install huggingface_hub$"):
        load_pretrained("owner/mamba-tied")


def test_a_pickle_is_not_read(tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(CHECKPOINTS / "mamba-tied", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match="pytorch_model.bin is a pickle and never read; to convert a trusted one"
    ) as told:
        load_pretrained(folder)
    assert "\n" not in str(told.value)
    program = str(told.value).partition('python -c "')[2].rpartition('"')[0]
    compile(program, "the conversion", "exec")
    assert "weights_only=True" in program
