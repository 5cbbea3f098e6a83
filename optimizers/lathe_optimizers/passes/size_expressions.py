"""Symbolic sizes in `.pt2` files, such as `Add(Symbol('s0', integer=True), Integer(1))`.

torch reads them with `sympy.sympify`, which evaluates Python. What torch writes is `sympy.srepr`: nested calls of a few
names. Only that is let through, and no power large enough to fill the memory.
"""

import ast
import re
from typing import Final

_SYMBOL: Final = re.compile(r"[a-z]{1,4}[0-9]{1,9}")
_DECIMAL: Final = re.compile(r"-?[0-9.e+-]{1,64}")
_FUNCTIONS: Final = frozenset({
    "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Equality", "FloatTrueDiv", "FloorDiv", "FloorToInt",
    "GreaterThan", "Identity", "IntTrueDiv", "LessThan", "Max", "Min", "Mod", "ModularIndexing", "Mul", "Not", "Or",
    "PythonMod", "Piecewise", "RoundToInt", "StrictGreaterThan", "StrictLessThan", "ToFloat", "TruncToFloat",
    "TruncToInt", "Unequality", "Where", "ceiling", "floor",
})  # fmt: skip
_POWERS: Final = frozenset({"FloatPow", "Pow", "PowByNatural"})
_NUMBERS: Final = frozenset({"Integer", "Rational"})
_LONGEST: Final = 4000
_LARGEST_NUMBER: Final = 1 << 63
_LARGEST_EXPONENT: Final = 8


def is_plain(text: str) -> bool:
    """Whether an expression is arithmetic over symbols and numbers, and nothing else."""
    if len(text) > _LONGEST:
        return False
    try:
        return _plain(ast.parse(text, mode="eval").body, powers=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _plain(node: ast.expr, *, powers: bool) -> bool:
    """Check a node and all below it; `powers` says whether a power may still occur (one within another may not)."""
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=assumptions):
            plain = _SYMBOL.fullmatch(name) is not None and all(_is_flag(k) for k in assumptions)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(text))], keywords=precision):
            plain = _DECIMAL.fullmatch(text) is not None and all(_is_precision(k) for k in precision)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _NUMBERS:
            plain = all(_number(a) is not None for a in args)
        case ast.Call(func=ast.Name(id=name), args=[base, exponent], keywords=[]) if powers and name in _POWERS:
            plain = _plain(base, powers=False) and _is_small(exponent)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            plain = all(_plain(a, powers=powers) for a in args)
        case ast.Name(id="true" | "false"):
            plain = True
        case _:
            plain = _number(node) is not None
    return plain


def _number(node: ast.expr) -> int | float | None:
    """A literal number of moderate size, or None."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value) | float(value))):
            number = -value
        case ast.Constant(value=int(value) | float(value)):
            number = value
        case _:
            return None
    return number if abs(number) <= _LARGEST_NUMBER else None


def _is_small(exponent: ast.expr) -> bool:
    match exponent:
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _NUMBERS:
            numbers = [_number(a) for a in args]
        case _:
            numbers = [_number(exponent)]
    return all(n is not None and abs(n) <= _LARGEST_EXPONENT for n in numbers)


def _is_flag(keyword: ast.keyword) -> bool:
    return isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)


def _is_precision(keyword: ast.keyword) -> bool:
    value = _number(keyword.value)
    return keyword.arg == "precision" and value is not None and 0 < value <= 1024  # noqa: PLR2004 - bits
