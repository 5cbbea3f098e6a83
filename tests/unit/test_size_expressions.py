"""Only arithmetic over symbols passes as a size."""

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from lathe_optimizers.passes.size_expressions import is_plain

SYMBOLS = [sympy.Symbol(name, positive=True, integer=True) for name in ("s0", "s31", "u7")]


def combined(parts):
    pairs = st.tuples(parts, parts)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] * p[1]),
        pairs.map(lambda p: sympy.Max(*p)),
        pairs.map(lambda p: sympy.Mod(p[0], 1 + sympy.Abs(p[1]))),
        parts.map(lambda p: sympy.floor(p / 2)),
    )


@given(st.recursive(st.one_of(st.sampled_from(SYMBOLS), st.integers(-9, 9).map(sympy.Integer)), combined, max_leaves=5))
def test_what_torch_writes_passes(expression):
    assert is_plain(sympy.srepr(expression))


@pytest.mark.parametrize(
    "expression",
    [
        sympy.Eq(SYMBOLS[0], 3),
        sympy.And(SYMBOLS[0] > 2, SYMBOLS[1] <= 9),
        sympy.Not(sympy.Eq(SYMBOLS[0], SYMBOLS[1])),
        SYMBOLS[0] ** 2 + sympy.Rational(1, 2),
        SYMBOLS[0] * sympy.Float("0.5"),
        sympy.true,
    ],
    ids=str,
)
def test_conditions_and_fractions_pass(expression):
    assert is_plain(sympy.srepr(expression))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "__import__('os').system('id')",
        "open('x', 'w')",
        "Symbol('s0').__class__",
        "Symbol('open')",
        "Symbol('s0', integer=open('x'))",
        "Symbol(*['s0'])",
        "Symbol(**{'name': 's0'})",
        "Function('f')(Integer(1))",
        "Add(Integer(1), key=open('x'))",
        "Float('1', precision=Integer(5))",
        "Float('1; import os')",
        "Integer('1')",
        "'s0'",
        "[1, 2]",
        "(lambda: 1)()",
        "(x := 1)",
        "1 if True else 2",
        "f'{1}'",
        "s0",
        "Integer(10**99)",
        "9**9**9",
        f"Integer({10**30})",
        "Pow(Integer(9), Integer(99))",
        "Pow(Pow(Integer(9), Integer(8)), Integer(8))",
        "Pow(Integer(9), Symbol('s0'))",
        "LShift(Integer(1), Integer(99999999))",
        "Add(" * 500 + ")" * 500,
        "Integer(1)\n\nopen('x')",
        "Add(" + "Integer(1)," * 1000 + ")",
    ],
)
def test_everything_else_is_refused(text):
    assert not is_plain(text)
