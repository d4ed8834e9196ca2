"""Names of models, read from configs."""

import pytest

from experiments.mixers import CAUSAL_ONLY, MIXERS, ORDER_FREE_ONLY, POSITIONS, STATE_SPACES, mixer, read_model
from lightnet.mixers import MultiplicativeDecay


@pytest.mark.parametrize(
    ("name", "task", "reason"),
    [
        ("lightnet", "text", "got 'lightnet', expected a mixer and its positions"),
        ("+both", "text", "unknown mixer ''; nearest: "),
        ("lihgtnet+both", "text", "unknown mixer 'lihgtnet'; nearest: lightnet$"),
        ("lightnet+lpre", "pictures", "unknown positions 'lpre'; nearest: lrpe$"),
        ("lightnet+none+tpe", "text", "unknown positions 'none.tpe'"),
        ("multiplicative-2+both", "causal text", "multiplicative-2 scans both ways"),
        ("multiplicative-4+both", "causal text", "multiplicative-4 scans both ways"),
        ("multiplicative-4+both", "text", "multiplicative-4 scans two axes"),
        ("mamba+none", "pictures", "mamba scans one axis"),
        ("s5-bidirectional+none", "causal text", "s5-bidirectional scans both ways"),
        ("s5-bidirectional+none", "pictures", "s5-bidirectional scans one axis"),
    ],
)
def test_one_line_says_what_is_wrong(name, task, reason):
    with pytest.raises(ValueError, match=reason) as found:
        read_model(name, "models", task)
    assert str(found.value).startswith("models: got ") and "\n" not in str(found.value)


def test_every_other_model_is_read():
    refused = {"causal text": set(ORDER_FREE_ONLY), "text": {"multiplicative-4"}, "pictures": set(STATE_SPACES)}
    for task, without in refused.items():
        for kind in set(MIXERS) - without:
            for encoding in POSITIONS:
                assert read_model(f"{kind}+{encoding}", "models", task) == (kind, encoding)


def test_what_is_refused_for_causal_text_cannot_be_built():
    for name in ORDER_FREE_ONLY:
        with pytest.raises(ValueError, match="scans go both ways"):
            mixer(name, causal=True)
    assert mixer("multiplicative", causal=True)(width=8, num_heads=2) == MultiplicativeDecay(width=8, num_heads=2)


def test_what_each_mixer_can_see_is_what_the_names_say():
    for name in MIXERS:
        grid = {"grid": (2, 2)} if name == "multiplicative-4" else {}
        seen = {
            causal: mixer(name, causal=causal)(width=8, num_heads=2, **grid).capabilities.causal
            for causal in (False, True)
            if not (causal and name in ORDER_FREE_ONLY)
        }
        assert seen[False] == (name in CAUSAL_ONLY), name
        assert seen.get(True, True), name


def test_heads_of_mamba_2_share_its_inner_channels_and_options_come_first():
    assert mixer("mamba2", causal=True)(width=8, num_heads=2, relative=None).head_size == 8
    assert mixer("mamba2", causal=True, expand=4)(width=8, num_heads=2).head_size == 16
    assert mixer("mamba2", causal=True, head_size=2)(width=8, num_heads=2).head_size == 2
