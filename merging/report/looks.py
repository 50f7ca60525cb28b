"""How the page's lines look, in light and in dark: the figures' looks, as Plotly's."""

from collections.abc import Sequence

from merging.report import plotting
from merging.report.points import ALL_METHODS

_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "P": "cross",
    "D": "diamond",
    "v": "triangle-down",
    "X": "x",
    "*": "star",
    "<": "triangle-left",
    ">": "triangle-right",
    "p": "pentagon",
    "h": "hexagon",
    "8": "octagon",
    "d": "diamond-tall",
    "_": "line-ew-open",
    "|": "line-ns-open",
}
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
# Ordered quantities (K, size): towards more contrast with the page.
_LIGHT = ("#5AA9DC", "#2F6FB5", "#6B3FA0", "#2B0F4A")
_DARK = ("#4A86C9", "#79B4EE", "#BFA2F2", "#F6EBFF")
_SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
_STROKES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# A colour below this luminance is lost on a dark page.
_DIM = 0.05

Look = dict[str, str]


def of_methods(methods: Sequence[str]) -> dict[str, Look]:
    """The look of each method, as in the figures; their mean is the page's ink."""
    found = {
        ALL_METHODS: _look("#1F4E79", "circle", "solid") | {"dark": "#8EC4F0"},
    }
    for method in methods:
        look = plotting.look(method, methods)
        found[method] = _look(
            look.color, _SYMBOLS[look.marker], _DASHES[look.linestyle]
        )
    return found


def ordered(values: Sequence[object]) -> dict[str, Look]:
    """Looks of an ordered dimension's values: shade, marker and dash all differ."""
    last = max(len(values) - 1, 1)
    return {
        str(value): {
            "light": _between(_LIGHT, at / last),
            "dark": _between(_DARK, at / last),
            "symbol": _SHAPES[at % len(_SHAPES)],
            # Past the last shape, shape and dash meet in other pairs.
            "dash": _STROKES[(at + at // len(_SHAPES)) % len(_STROKES)],
        }
        for at, value in enumerate(values)
    }


def bases() -> dict[str, Look]:
    """The looks of the two kinds of base."""
    return {
        "pt": _look("#D55E00", "square", "dash"),
        "it": _look("#0072B2", "circle", "solid"),
    }


def _look(color: str, symbol: str, dash: str) -> Look:
    return {"light": color, "dark": _bright(color), "symbol": symbol, "dash": dash}


def _bright(color: str) -> str:
    """A colour for a dark page: mixed with white as far as it is too dim."""
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return _mixed(color, "#ffffff", 0.6 if luminance < _DIM else 0.35)


def _between(colors: Sequence[str], share: float) -> str:
    place = share * (len(colors) - 1)
    at = min(int(place), len(colors) - 2)
    return _mixed(colors[at], colors[at + 1], place - at)


def _mixed(one: str, other: str, share: float) -> str:
    pairs = ((int(c[i : i + 2], 16) for c in (one, other)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)
