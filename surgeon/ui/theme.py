"""Colours: one palette for dark and one for light terminals, and Textual's themes made of them."""

from __future__ import annotations

from dataclasses import dataclass

from rich.color import Color
from rich.style import Style
from textual.theme import Theme


@dataclass(frozen=True)
class Palette:
    """Named colours.

    ramp: from the least to the most important layer. It starts at mid luminance, so that its dark end stays legible
        where colours become greys.
    """

    background: str
    raised: str
    line: str
    ink: str
    dim: str
    faint: str
    accent: str
    good: str
    warning: str
    bad: str
    ice: str
    gold: str
    violet: str
    track: str
    cursor: str
    mark: str
    ramp: tuple[str, ...]


DARK = Palette(
    background="#0d1216",
    raised="#141b21",
    line="#2b3841",
    ink="#d5dee3",
    dim="#8296a1",
    faint="#5d707b",
    accent="#4fd6be",
    good="#8bd17c",
    warning="#f0b35b",
    bad="#f2777a",
    ice="#7cc4f5",
    gold="#e6c46a",
    violet="#c099ff",
    track="#161e24",
    cursor="#20303a",
    mark="#f0b35b",
    ramp=("#6673ad", "#4d86b4", "#3c9aa6", "#43ac8a", "#78b56c", "#b0bd5e", "#dfc15c"),
)
LIGHT = Palette(
    background="#fbfaf7",
    raised="#f1f0ea",
    line="#cfcec5",
    ink="#1f2a30",
    dim="#5a6a73",
    faint="#87949b",
    accent="#00796b",
    good="#2e7d32",
    warning="#a85b00",
    bad="#c62828",
    ice="#0067b1",
    gold="#8a6500",
    violet="#7b3fc4",
    track="#e8e6de",
    cursor="#dde9ea",
    mark="#a85b00",
    ramp=("#8d93b8", "#6f84bd", "#4a78b5", "#2b6ca0", "#1f5c80", "#174a60", "#0f3644"),
)


def own_variables(palette: Palette) -> dict[str, str]:
    """Return what the stylesheet names beyond Textual's own variables."""
    return {"line": palette.line, "dim": palette.dim, "faint": palette.faint}


def theme_of(name: str, palette: Palette, *, dark: bool) -> Theme:
    """Return Textual's theme made of a palette."""
    return Theme(
        name=name,
        dark=dark,
        primary=palette.accent,
        secondary=palette.ice,
        accent=palette.accent,
        warning=palette.warning,
        error=palette.bad,
        success=palette.good,
        foreground=palette.ink,
        background=palette.background,
        surface=palette.background,
        panel=palette.raised,
        variables={
            **own_variables(palette),
            "border": palette.accent,
            "border-blurred": palette.line,
            "scrollbar": palette.line,
            "scrollbar-hover": palette.faint,
            "scrollbar-active": palette.accent,
            "scrollbar-background": palette.background,
            "scrollbar-background-hover": palette.background,
            "scrollbar-background-active": palette.background,
            "scrollbar-corner-color": palette.background,
            "input-selection-background": f"{palette.accent} 35%",
            "block-cursor-background": palette.accent,
            "block-cursor-foreground": palette.background,
            "footer-key-foreground": palette.accent,
        },
    )


DARK_THEME = theme_of("surgeon-dark", DARK, dark=True)
LIGHT_THEME = theme_of("surgeon-light", LIGHT, dark=False)


class Looks:
    """Rich styles of a palette, made once: the tables paint with them line by line."""

    def __init__(self, palette: Palette) -> None:
        self.palette = palette
        for name in (
            "ink",
            "dim",
            "faint",
            "accent",
            "good",
            "warning",
            "bad",
            "ice",
            "gold",
            "violet",
            "mark",
            "line",
        ):
            setattr(self, name, Style(color=getattr(palette, name)))
        self.title = Style(color=palette.ink, bold=True)
        self.key = Style(color=palette.accent, bold=True)
        self.on_cursor = Style(bgcolor=palette.cursor)
        self.on_raised = Style(bgcolor=palette.raised)
        self.struck = Style(color=palette.faint, strike=True)
        self.banner = Style(color=palette.background, bgcolor=palette.bad, bold=True)
        self.badge = Style(color=palette.background, bgcolor=palette.accent, bold=True)
        self.ramp = tuple(Style(color=Color.parse(colour), bgcolor=palette.track) for colour in palette.ramp)
        self.ramp_ink = tuple(Style(color=Color.parse(colour)) for colour in palette.ramp)
        self.track = Style(color=palette.faint, bgcolor=palette.track)

    ink: Style
    dim: Style
    faint: Style
    accent: Style
    good: Style
    warning: Style
    bad: Style
    ice: Style
    gold: Style
    violet: Style
    mark: Style
    line: Style

    def tone(self, tone: str) -> Style:
        """Return the style of a message."""
        return {"good": self.good, "warning": self.warning, "bad": self.bad}.get(tone, self.dim)

    def state(self, state: str) -> Style:
        """Return the style of a layer's state."""
        for start, style in (("FROZEN", self.ice), ("frozen", self.ice), ("LoRA", self.gold), ("pruned", self.bad)):
            if state.startswith(start):
                return style
        return self.violet

    def on_ramp(self, rank: float) -> int:
        """Return which step of the ramp a rank in [0, 1] has."""
        return min(len(self.ramp) - 1, int(rank * len(self.ramp)))


DARK_LOOKS, LIGHT_LOOKS = Looks(DARK), Looks(LIGHT)
