"""Descriptions of language models, models read back from trainings and exports, and text from tokens."""

import dataclasses
import json
from contextlib import closing
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import ssm
from experiments.errors import UserError
from experiments.language_models import LanguageModel, Trained, describe, export, load
from experiments.mixers import CAUSAL_ONLY, MIXERS, ORDER_FREE_ONLY
from experiments.text_stream import TokenizerDecoder
from experiments.training.checkpoint import Checkpoints
from experiments.training.update import initial_state
from lightnet.backbone import unstack_layers
from ssm.mamba import Mamba
from ssm.models import Architecture, mamba_lm

SMALL = LanguageModel(7, num_layers=1, width=8, num_heads=2, hidden=12)
OPTIONS = {"decay": "vector", "gate_activation": "silu", "phantom_logit": 0.5}
RICH = dataclasses.replace(
    SMALL, mixer_options=OPTIONS, position_options={"input_positions": {"rank": 3}, "relative": {"learned": True}}
)


def variables_of(language_model, seed=0):
    """Parameters so large that every path matters."""
    random = np.random.default_rng(seed)
    model = language_model.build()
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * random.standard_normal(leaf.shape, np.float32)), shapes)


def trained_in(folder, language_model, seeds=(0,), average=False):
    """A described training with a checkpoint for each seed of the parameters; returns the last parameters."""
    describe(folder, language_model)
    with closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        for step, seed in enumerate(seeds, start=1):
            variables = variables_of(language_model, seed)
            state = initial_state(variables, optax.adam(0.1), average)
            if average:
                state = state._replace(ema=jax.tree.map(lambda leaf: leaf / 2, variables))
            checkpoints.save(step, state, {})
    return state.ema if average else variables


def same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def bpe():
    """A tokenizer of bytes with a few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["def f(x): return x\n"] * 5 + ["für die Äpfel 😀 für"], trainer)
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("average", [False, True])
def test_the_newest_checkpoint_of_a_training_is_read_back(tmp_path, average):
    expected = trained_in(tmp_path / "run" / "a" / "seed0", RICH, seeds=(3, 1), average=average)
    for path in (tmp_path / "run", tmp_path / "run" / "a" / "seed0"):
        found = load(path)
        assert found.language_model == RICH
        same(found.variables, expected)
    assert not (tmp_path / "run" / "a" / "seed0" / "checkpoints" / "damaged").exists()


@pytest.mark.slow
def test_a_model_that_looped_over_its_blocks_is_read_back_one_by_one(tmp_path):
    looped = dataclasses.replace(SMALL, num_layers=2, scan_layers=True)
    expected = unstack_layers(trained_in(tmp_path, looped))
    found = load(tmp_path)
    assert found.language_model == dataclasses.replace(looped, scan_layers=False)
    assert set(found.variables["params"]["backbone"]) > {"blocks_0", "blocks_1"}
    same(found.variables, expected)


@pytest.mark.slow
def test_an_export_is_read_back_and_replaced_as_a_whole(tmp_path):
    tokenizer = bpe().to_str()
    with_tokenizer = dataclasses.replace(RICH, vocab_size=290, tokenizer=tokenizer)
    for language_model in (with_tokenizer, RICH):
        written = Trained(language_model, language_model.build(), variables_of(language_model))
        export(tmp_path / "out", written)
        found = load(tmp_path / "out")
        assert found.language_model == language_model
        same(found.variables, written.variables)
    tokens = jnp.array([[1, 2, 3]])  # the same model, though its options went through JSON
    logits, expected = (jax.jit(of.model.apply)(of.variables, tokens) for of in (found, written))
    same(logits, expected)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert names["backbone.blocks_0.feed_forward.down.kernel"].shape == (12, 8)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "lightnet_lab"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MIXERS if name not in ORDER_FREE_ONLY])
def test_every_causal_mixer_can_be_described_and_goes_on_from_its_state(name):
    positions = "none" if name == "mamba" else "both"
    model = dataclasses.replace(SMALL, mixer=name, positions=positions).build(cache=9)
    variables = variables_of(dataclasses.replace(SMALL, mixer=name, positions=positions))
    tokens = np.random.default_rng(0).integers(0, 7, (2, 9)).astype(np.int32)
    expected = jax.jit(model.apply)(variables, tokens)
    _, state = jax.jit(partial(model.apply, method="extend"))(variables, tokens[:, :5])
    step = jax.jit(partial(model.apply, method="step"))
    for t in range(5, 9):
        logits, state = step(variables, tokens[:, t], state)
        np.testing.assert_allclose(logits, expected[:, t], rtol=0, atol=1e-4)
    assert set(CAUSAL_ONLY) < set(MIXERS)


def test_options_reach_the_model():
    model = RICH.build()
    mixer = model.backbone.mixer(width=8)
    assert (mixer.decay, mixer.gate_activation, mixer.phantom_logit) == ("vector", nn.silu, 0.5)
    assert mixer.relative(head_size=4).learned and model.input_positions(width=8).rank == 3
    learned = dataclasses.replace(SMALL, positions="learned", length=5, mixer="softmax", tied=False).build(cache=4)
    assert learned.input_positions(width=8).length == 5 and learned.backbone.mixer(width=8).max_length == 4
    assert not learned.tied and learned.backbone.remat == "none"
    assert SMALL.build(remat="nothing_saveable").backbone.remat == "nothing_saveable"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "lightnt"}, "unknown mixer 'lightnt'; nearest: lightnet"),
        ({"positions": "bth"}, "unknown positions 'bth'; nearest: both"),
        ({"position_options": {"rank": 3}}, "unknown argument in position_options 'rank'"),
        (
            {"mixer_options": {"decy": "vector"}},
            "mixer_options: unknown field of LightNetAttention 'decy'; nearest: decay",
        ),
        ({"mixer_options": {"activation": "slu"}}, "activation: unknown activation 'slu'; nearest: silu"),
        (
            {"position_options": {"input_positions": {"rnk": 3}}},
            "position_options: unknown field of MDTPE 'rnk'; nearest: rank",
        ),
        ({"positions": "lrpe", "position_options": {"input_positions": {}}}, "does not have"),
        ({"mixer": "multiplicative-2"}, "mixer: got 'multiplicative-2' for a causal model"),
    ],
)
def test_a_name_that_does_not_exist_is_told(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes).build()


@pytest.mark.slow
def test_a_run_with_several_models_asks_for_one(tmp_path):
    for seed in range(2):
        trained_in(tmp_path / "lightnet" / f"seed{seed}", SMALL, seeds=(seed,))
    describe(tmp_path / "soon", SMALL)  # described, and not begun
    with pytest.raises(UserError, match="2 models; choose one with --model: lightnet/seed0, lightnet/seed1$"):
        load(tmp_path)
    with pytest.raises(UserError, match="--model: unknown model 'seed'; nearest: lightnet/seed"):
        load(tmp_path, "seed")
    same(load(tmp_path, "lightnet/seed1").variables, variables_of(SMALL, 1))


def test_folders_without_a_model_are_told(tmp_path):
    def told(message):
        return pytest.raises(UserError, match=message)

    with told(f"no trained language model in {tmp_path}"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"id": "a/b", "preset": "cpu", "config": {}}')  # a run's
    with told("no trained language model"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lightnet_lb"}')
    with told("unknown model_type 'lightnet_lb'; nearest: lightnet_lab"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with told("unknown model_type 'llama'; there is: lightnet_lab, mamba, mamba2, lightnet"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model_type": "lightnet_lab", "vocab_size": 3, "widht": 8, "tokenizer": null}'
    )
    with told("does not describe a language model: no hidden, no num_heads, no num_layers, no width, unknown widht"):
        load(tmp_path)


def test_another_models_checkpoint_is_refused(tmp_path):
    trained_in(tmp_path, SMALL)
    describe(tmp_path, dataclasses.replace(SMALL, hidden=13))
    with pytest.raises(
        UserError, match=r"of another model: params/.*: checkpoint has float32\[12,8\], the model float32"
    ):
        load(tmp_path)


def test_tensors_that_do_not_fit_are_named(tmp_path):
    export(tmp_path, Trained(SMALL, SMALL.build(), variables_of(SMALL)))
    with pytest.raises(UserError, match="--model: got 'x', but .* is one exported model"):
        load(tmp_path, "x")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["embeddings"], tensors["places.axis_0.forward_decay"] = tensors.pop("embedding"), np.zeros(3, np.float32)
    save_file(tensors, path)
    shape = r"places.axis_0.forward_decay of shape \[3\] instead of \[8\]"
    with pytest.raises(UserError, match=f"missing embedding, unknown embeddings, {shape}$"):
        load(tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="model.safetensors is damaged: "):
        load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="model.safetensors does not exist"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "model.json"])
def test_an_export_replaces_nothing_else(tmp_path, name):
    written = Trained(SMALL, SMALL.build(), variables_of(SMALL))
    if name == "notes.txt":
        export(tmp_path, written)
    (tmp_path / name).write_text("{}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=f"is not empty and no export: it holds {name}"):
        export(tmp_path, written)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_text_of_bytes_comes_as_soon_as_it_is_certain():
    language_model = dataclasses.replace(SMALL, vocab_size=260)
    text = "für 😀\ndef"
    decoder = language_model.decoder()
    pieces = [decoder.push(token) for token in language_model.encode(text)]
    assert "".join(pieces) == text and decoder.finish() == ""
    assert pieces[:3] == ["f", "", "ü"] and pieces[5:9] == ["", "", "", "😀"]
    random = np.random.default_rng(0).integers(0, 260, 500)
    decoder = language_model.decoder()
    streamed = "".join(decoder.push(token) for token in random) + decoder.finish()
    assert streamed == bytes(token for token in random if token < 256).decode(errors="replace")
    assert language_model.encode("\udcff") == [255]
    with pytest.raises(UserError, match="the text has the token 102, and the model only those below 7"):
        SMALL.encode("f")


def test_text_of_a_tokenizer_comes_as_soon_as_it_is_certain():
    tokenizer = bpe()
    language_model = dataclasses.replace(SMALL, vocab_size=290, tokenizer=tokenizer.to_str())
    text = "für é 😀 def f(é)"
    decoder = language_model.decoder()
    tokens = language_model.encode(text)
    pieces = [decoder.push(token) for token in tokens]
    assert len(tokens) < len(text.encode()) and "".join(pieces) == text and decoder.finish() == ""
    first_byte = language_model.encode("é")[0]
    decoder = TokenizerDecoder(tokenizer)
    garbage = [decoder.push(first_byte) for _ in range(100)]
    assert sum(map(bool, garbage)) == 6 and set("".join(garbage)) == {"\ufffd"}  # nothing piles up
    assert len("".join(garbage) + decoder.finish()) == 100
    assert language_model.encode("\udcff") == language_model.encode("\ufffd")
    with pytest.raises(UserError, match="the model's tokenizer is damaged: "):
        dataclasses.replace(language_model, tokenizer="{}").decoder()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_layers": "x"}, "config.json: num_layers is 'x', expected an integer"),
        ({"mixer_options": []}, r"config.json: mixer_options is \[\], expected an object"),
        ({"tied": None}, "config.json: tied is None, expected true or false"),
        ({"num_heads": 3}, "config.json: num_heads: got 3, expected a divisor"),
        ({"position_options": {"relative": 3}}, "config.json: .*int"),
        ({"tokenizer": "tokenizer.json"}, "tokenizer.json does not exist"),
        ({"model_type": "lightnet"}, "config.json: unknown options hidden, "),
        ({"model_type": "mamba"}, "config.json: unknown options hidden, "),
    ],
)
def test_a_wrong_description_is_told_in_one_line(tmp_path, changes, told):
    export(tmp_path, Trained(SMALL, SMALL.build(), variables_of(SMALL)))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=told) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_an_export_without_its_tokenizer_is_refused(tmp_path):
    described = dataclasses.replace(SMALL, vocab_size=300, tokenizer=bpe().to_str())
    export(tmp_path, Trained(described, described.build(), variables_of(described)))
    assert load(tmp_path).language_model == described
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json does not exist"):
        load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["huggingface", "original"])
def test_a_checkpoint_in_the_layout_of_others_is_read(tmp_path, layout):
    model = mamba_lm(Architecture(Mamba(width=6, state_size=3), vocab_size=290, num_layers=1))
    variables = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    ssm.save_pretrained(tmp_path, model, variables, layout=layout)
    with pytest.raises(UserError, match="tokenizer.json does not exist, and the model's 290 tokens are no bytes"):
        load(tmp_path)
    tokenizer = bpe()
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    found = load(tmp_path)
    same(found.variables, variables)
    assert found.language_model.build(cache=9) is found.model
    assert found.language_model.encode("def f") == tokenizer.encode("def f").ids
    assert (found.language_model.vocab_size, found.language_model.limit) == (290, None)
    with pytest.raises(UserError, match="--model: got 'x', but .* is one exported model"):
        load(tmp_path, "x")
    with pytest.raises(UserError, match="the model is a checkpoint with safetensors already.*copy its folder"):
        export(tmp_path / "out", found)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"^{tmp_path}: path: got .*, expected model.safetensors"):
        load(tmp_path)
