"""Text from a trained model on the command line, and models that travel as safetensors."""

import io
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightnet.decoding
import lightnet.pretrained
import ssm
from experiments.commands import generate as generate_command
from experiments.language_models import LanguageModel, describe
from experiments.training.config import TrainConfig
from experiments.training.loop import train
from experiments.training.task import Task
from ssm.mamba import Mamba
from ssm.mamba2 import Mamba2
from ssm.models import Architecture, mamba_lm

SMALL = LanguageModel(256, positions="none", num_layers=1, width=8, num_heads=2, hidden=8)
PROMPT = "def f("


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with one training of a few updates, and its outcome."""
    folder = tmp_path_factory.mktemp("run")
    model = SMALL.build()

    def loss(variables, batch, key):
        logits = model.apply(variables, batch["tokens"][:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:]).mean(), {}

    text = np.frombuffer(b"def f(x): return x\n" * 40, np.uint8)[: 32 * 17].reshape(32, 17).astype(np.int32)
    task = Task(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32)), loss)
    describe(folder / "seed0", SMALL)
    outcome = train(TrainConfig(steps=3, batch_size=8, ema_decay=0.5), task, {"tokens": text}, folder / "seed0", seed=0)
    return folder, outcome


@pytest.mark.slow
def test_a_seed_gives_its_text_streamed_as_in_one_loop_and_from_the_export(run, tmp_path, call):
    folder, outcome = run
    words = ("--prompt", PROMPT, "--tokens", 30, "--temperature", 0.9, "--top_k", 90, "--top_p", 0.95, "--seed", 5)
    status, text, told = call("generate", folder, *words)
    assert status == 0
    assert re.fullmatch(r"30 tokens after 6 of the prompt, [\d.]+ tokens per second\n", told)
    prompt, settings = jnp.array([list(PROMPT.encode())]), {"temperature": 0.9, "top_k": 90, "top_p": 0.95}
    tokens = lightnet.decoding.generate(SMALL.build(), outcome.state.ema, prompt, 30, jax.random.key(5), **settings)
    assert text == bytes(np.asarray(tokens[0], np.uint8)).decode(errors="replace") + "\n"

    status, line, _ = call("export", folder, tmp_path / "out")
    assert (status, line) == (
        0,
        f"exported: {tmp_path}/out; try: python -m experiments generate {tmp_path}/out --prompt ...\n",
    )
    assert call("generate", tmp_path / "out", *words)[:2] == (0, text)
    other_seed = call("generate", folder / "seed0", *words[:-1], 6)
    assert other_seed[0] == 0 and other_seed[1] != text


def mamba():
    return mamba_lm(Architecture(Mamba(width=6, state_size=3), vocab_size=256, num_layers=2)), ssm.save_pretrained


def mamba2():
    mixer = Mamba2(width=6, state_size=3, head_size=4, num_groups=3)
    model = mamba_lm(Architecture(mixer, vocab_size=256, num_layers=1))
    return model, partial(ssm.save_pretrained, layout="original")


def lightnet_of_fla():
    sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "hidden": 8, "gate_rank": 2}
    model = lightnet.pretrained.lightnet_lm(lightnet.pretrained.Architecture(vocab_size=256, **sizes))
    return model, lightnet.pretrained.save_pretrained


@pytest.mark.slow
@pytest.mark.parametrize(
    "made", [mamba, *(pytest.param(made, marks=pytest.mark.slow) for made in (mamba2, lightnet_of_fla))]
)
def test_text_comes_from_checkpoints_in_the_layouts_of_others(tmp_path, call, refused, made):
    model, save = made()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    save(tmp_path, model, variables)
    status, text, _ = call("generate", tmp_path, "--prompt", PROMPT, "--tokens", 7, "--seed", 5)
    prompt = jnp.array([list(PROMPT.encode())])
    tokens = lightnet.decoding.generate(model, variables, prompt, 7, jax.random.key(5))
    assert (status, text) == (0, bytes(np.asarray(tokens[0], np.uint8)).decode(errors="replace") + "\n")
    assert "is a checkpoint with safetensors already" in refused(call("export", tmp_path, tmp_path / "out"))


@pytest.fixture
def streamed(monkeypatch):
    """What the command asks to be continued, in the place of a continuation, which is "abc"."""
    prompts, printed = [], []

    def stream(model, variables, prompt, key, **settings):
        prompts.append(bytes(prompt[0].tolist()))
        for token in b"abc":
            yield np.array([token])
            printed.append(sys.stdout.getvalue())

    monkeypatch.setattr(lightnet.decoding, "stream", stream)
    return prompts, printed


@pytest.mark.slow
def test_text_is_printed_as_it_is_made(run, streamed, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert generate_command.main([str(run[0]), "--prompt", "x"]) == 0
    assert streamed == ([b"x"], ["a", "ab", "abc"]) and sys.stdout.getvalue() == "abc\n"


@pytest.mark.slow
def test_a_prompt_may_come_from_standard_input_or_be_empty(run, streamed, monkeypatch):
    def given(data, *words):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        assert generate_command.main([str(run[0]), *words]) == 0
        return streamed[0].pop()

    assert given(b"\xff\xfe f", "--prompt", "-") == b"\xff\xfe f"  # the bytes themselves, though they are no text
    assert given(b"def\n", "--prompt", "-") == b"def\n"
    assert given(b"ignored", "--prompt", "é") == "é".encode()
    assert given(b"", "--prompt", "-") == given(b"") == given(b"", "--prompt", "") == b"\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("generate",), "RUN_OR_PATH is missing"),
        (("generate", "absent"), "unknown run folder or result 'absent'"),
        (("generate", "."), "no trained language model in ."),
        (("generate", "RUN", "more"), "unexpected argument 'more'"),
        (("generate", "RUN", "--promt", "x"), "unknown flag '--promt'; nearest: --prompt"),
        (("generate", "RUN", "--prompt"), "--prompt: needs a value"),
        (("generate", "RUN", "--tokens", "0"), "--tokens: got 0, expected at least 1"),
        (("generate", "RUN", "--tokens", "many"), "--tokens: expected an integer, got 'many'"),
        (("generate", "RUN", "--temperature", "-1"), "--temperature: got -1.0, expected a number from 0"),
        (("generate", "RUN", "--top_k", "-1"), "--top_k: got -1, expected at least 0"),
        (("generate", "RUN", "--top_p", "0"), "--top_p: got 0.0, expected a number above 0 and up to 1"),
        (("generate", "RUN", "--seed", "-1"), "--seed: got -1, expected an integer from 0 to 2**31 - 1"),
        (("generate", "RUN", "--model", "seed1"), "--model: unknown model 'seed1'; nearest: seed0"),
        (("export", "RUN"), "DIR is missing"),
        (("export", "absent", "out"), "unknown run folder or result 'absent'"),
        (("export", "RUN", "RUN"), "RUN is not empty and no export: it holds seed0; choose another folder"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, call, refused, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    folder = str(run[0])
    line = refused(call(*(folder if word == "RUN" else word for word in words)))
    assert line.startswith(told.replace("RUN is not", f"{folder} is not"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_more_tokens_than_learned_positions_are_refused(tmp_path, call, refused):
    from tests.experiments.test_language_models import trained_in

    limited = LanguageModel(256, num_layers=1, width=8, num_heads=2, hidden=8, positions="learned", length=8)
    trained_in(tmp_path, limited)
    assert call("generate", tmp_path, "--prompt", PROMPT, "--tokens", 3)[0] == 0
    line = refused(call("generate", tmp_path, "--prompt", PROMPT, "--tokens", 4))
    assert line == "--tokens: got 4, and the model's positions end 3 tokens after the prompt"
