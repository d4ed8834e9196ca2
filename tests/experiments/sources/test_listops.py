"""ListOps: values against an evaluation of another kind, and expressions within the limits that were asked for."""

import numpy as np
import pytest

from experiments.sources.listops import (
    END,
    LONG_RANGE_ARENA,
    OPERATOR_SHARE,
    OPERATORS,
    SYMBOLS,
    evaluate,
    expression,
    listops,
)


def by_python(tokens):
    """The value of the expression as Python reads it, with NumPy's functions: it has no stack of its own."""
    names = {"[MIN": "np.min([", "[MAX": "np.max([", "[MED": "np.median([", "[SM": "np.mod(10, [", "]": "]),"}
    names["[SM"] = "total(["
    source = "".join(names.get(token, f"{token},") for token in tokens)
    # The integer part of a median matters further up.
    functions = {"np": Floored, "total": lambda values: int(np.sum(values)) % 10}
    return eval(source, {"__builtins__": {}}, functions)[0]


class Floored:
    min, max = staticmethod(np.min), staticmethod(np.max)

    @staticmethod
    def median(values):
        return int(np.floor(np.median(values)))


def test_values_are_those_of_another_evaluation():
    random, seen = np.random.default_rng(0), set()
    for _ in range(300):
        tokens = expression(random, depth=4, arguments=5)
        assert evaluate(tokens) == by_python(tokens), tokens
        seen |= set(tokens)
    assert seen == set(SYMBOLS) - {END}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MED 9 2 ]", 5),
        ("[MED 9 2 4 ]", 4),
        ("[SM 9 9 9 ]", 7),
        ("[MIN 3 [MAX 1 2 ] ]", 2),
        ("[MAX 4 [MED 1 5 8 9 ] 7 ]", 7),
        ("8", 8),
    ],
)
def test_values_by_hand(text, value):
    assert evaluate(text.split()) == value


@pytest.mark.parametrize(
    "text", ["", "[MIN 1 2", "1 2", "] 1", "[MIN ]", "[MAX 1 = ]", "[MIN 11 2 ]", "[AVG 1 2 ]", "1 [MIN 2"]
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match="tokens"):
        evaluate(text.split())


def test_expressions_keep_to_their_limits_and_are_followed_by_the_end():
    found = listops(np.random.default_rng(1), 200, depth=3, arguments=4, shortest=7, longest=20)
    assert found.tokens.shape == (200, 21) and (found.lengths.min(), found.lengths.max()) == (7, 20)
    for row, length, value in zip(found.tokens, found.lengths, found.values, strict=True):
        text = [SYMBOLS[id] for id in row]
        assert text[length:] == [END] * (21 - length)
        assert evaluate(text[:length]) == value
        nesting = np.cumsum([(token in OPERATORS) - (token == "]") for token in text[:length]])
        assert nesting.max() <= 3
    assert len({tuple(row) for row in found.tokens}) > 190


def test_a_quarter_of_the_arguments_are_operators_and_their_number_is_uniform():
    random, counts, operators = np.random.default_rng(2), [], 0
    for _ in range(1000):
        arguments = expression(random, depth=2, arguments=4)[1:-1]
        for start in reversed([i for i, token in enumerate(arguments) if token in OPERATORS]):
            del arguments[start : arguments.index("]", start)]  # one token stands for the list
            operators += 1
        counts.append(len(arguments))
    share = operators / sum(counts)
    assert abs(share - OPERATOR_SHARE) < 5 * np.sqrt(OPERATOR_SHARE * (1 - OPERATOR_SHARE) / sum(counts))
    assert np.abs(np.bincount(counts)[2:] / 1000 - 1 / 3).max() < 5 * np.sqrt(2 / 9 / 1000)


def test_one_of_the_size_of_the_long_range_arena():
    assert LONG_RANGE_ARENA == {"depth": 9, "arguments": 10, "shortest": 501, "longest": 1999}
    found = listops(np.random.default_rng(3), 1, **LONG_RANGE_ARENA)
    assert 500 < found.lengths[0] < 2000 and 0 <= found.values[0] <= 9


def test_generator_decides():
    draws = [listops(np.random.default_rng(s), 9, depth=2, arguments=3, shortest=4, longest=12) for s in (4, 4, 5)]
    assert (draws[0].tokens == draws[1].tokens).all() and (draws[0].tokens != draws[2].tokens).any()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 4, 4, 9), "depth: got 0"),
        ((2, 1, 4, 9), "arguments: got 1"),
        ((2, 4, 4, 3), "longest: got 3"),
        ((2, 4, 10, 9), "shortest: got 10, expected at most 9"),
        ((2, 2, 11, 50), "shortest: got 11, expected at most 10"),
    ],
)
def test_what_is_no_size_is_refused(sizes, message):
    names = ("depth", "arguments", "shortest", "longest")
    with pytest.raises(ValueError, match=message):
        listops(np.random.default_rng(0), 1, **dict(zip(names, sizes, strict=True)))
