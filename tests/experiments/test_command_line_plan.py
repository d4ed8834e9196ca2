"""The command `plan`: what it refuses, and one plan from the command line."""

import json

import pytest


def test_mistakes_are_told_in_one_line(call, refused):
    assert refused(call("plan")) == "ID is missing; --help shows what to give"
    assert "nearest: lightnet/causal_lm" in refused(call("plan", "lightnet/causal_ml"))
    assert refused(call("plan", "lightnet")).startswith("unknown result 'lightnet'")
    assert "nearest: gpu" in refused(call("plan", "lightnet/causal_lm", "--preset", "gpuu"))
    assert "nearest: --topology" in refused(call("plan", "lightnet/causal_lm", "--preset", "smoke", "--topolgy", "v5e"))
    assert "slices: got 0" in refused(call("plan", "lightnet/causal_lm", "--preset", "smoke", "--slices", 0))
    assert refused(call("plan", "--all", "--search")) == "--search is for one result, not for --all"
    assert refused(call("plan", "--all", "--training", "one")) == "--training is for one result, not for --all"
    for flag, value, needed in (("--remat", "none", "search"), ("--tensor", 2, "search"), ("--out", "PLANS.md", "all")):
        assert refused(call("plan", "lightnet/causal_lm", flag, value)) == f"{flag} is for --{needed}"
    wrong = refused(call("plan", "lightnet/causal_lm", "--preset", "smoke", "--topology", "v9:2x2"))
    assert wrong.startswith("topology: got 'v9:2x2', expected one of v5e, v5p")


@pytest.mark.slow
def test_a_result_that_trains_nothing_is_refused(process, toy, refused):
    pytest.importorskip("libtpu")
    done = process("plan", toy, "--preset", "smoke", "--topology", "v5e:2x2")
    assert "trains nothing" in refused((done.returncode, done.stdout, done.stderr))


@pytest.mark.slow
def test_a_result_is_planned(process, tmp_path):
    pytest.importorskip("libtpu")
    words = ("plan", "lightnet/causal_lm", "--preset", "smoke", "--topology", "v5e:2x2", "--runs_dir", tmp_path)
    done = process(*words, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "4 of v5e:2x2, mesh data 4" in done.stdout and "all-reduce" in done.stdout
    assert "not a measurement" in done.stdout and "197 TFLOP/s" in done.stdout
    (kept,) = tmp_path.glob("plans/lightnet/causal_lm/smoke-v5e-2x2-*.json")
    assert json.loads(kept.read_text())["parameters"] > 1000
