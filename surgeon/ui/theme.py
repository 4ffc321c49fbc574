"""Colours: a palette for dark and one for light terminals, with the Textual themes and rich styles made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.color import Color
from rich.style import Style
from textual.app import App
from textual.theme import Theme


@dataclass(frozen=True)
class Palette:
    """Named colours.

    ramp: from the least to the most important layer. It starts at medium luminance, so that its low end stays legible
        on terminals that show colours as greys.
    """

    background: str
    panel: str
    border: str
    foreground: str
    dim: str
    faint: str
    accent: str
    success: str
    warning: str
    error: str
    blue: str
    yellow: str
    violet: str
    track: str
    cursor: str
    mark: str
    ramp: tuple[str, ...]


DARK = Palette(
    background="#0d1216",
    panel="#141b21",
    border="#2b3841",
    foreground="#d5dee3",
    dim="#8296a1",
    faint="#5d707b",
    accent="#4fd6be",
    success="#8bd17c",
    warning="#f0b35b",
    error="#f2777a",
    blue="#7cc4f5",
    yellow="#e6c46a",
    violet="#c099ff",
    track="#161e24",
    cursor="#20303a",
    mark="#f0b35b",
    ramp=("#6673ad", "#4d86b4", "#3c9aa6", "#43ac8a", "#78b56c", "#b0bd5e", "#dfc15c"),
)
LIGHT = Palette(
    background="#fbfaf7",
    panel="#f1f0ea",
    border="#cfcec5",
    foreground="#1f2a30",
    dim="#5a6a73",
    faint="#87949b",
    accent="#00796b",
    success="#2e7d32",
    warning="#a85b00",
    error="#c62828",
    blue="#0067b1",
    yellow="#8a6500",
    violet="#7b3fc4",
    track="#e8e6de",
    cursor="#dde9ea",
    mark="#a85b00",
    ramp=("#8d93b8", "#6f84bd", "#4a78b5", "#2b6ca0", "#1f5c80", "#174a60", "#0f3644"),
)


def css_variables(palette: Palette) -> dict[str, str]:
    """Return the variables of the stylesheet that Textual does not define."""
    return {"pane-border": palette.border, "dim": palette.dim, "faint": palette.faint}


def textual_theme(name: str, palette: Palette, *, dark: bool) -> Theme:
    """Return the Textual theme made from a palette."""
    return Theme(
        name=name,
        dark=dark,
        primary=palette.accent,
        secondary=palette.blue,
        accent=palette.accent,
        warning=palette.warning,
        error=palette.error,
        success=palette.success,
        foreground=palette.foreground,
        background=palette.background,
        surface=palette.background,
        panel=palette.panel,
        variables={
            **css_variables(palette),
            "border": palette.accent,
            "border-blurred": palette.border,
            "scrollbar": palette.border,
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


DARK_THEME = textual_theme("surgeon-dark", DARK, dark=True)
LIGHT_THEME = textual_theme("surgeon-light", LIGHT, dark=False)


class ThemeStyles:
    """The rich styles of a palette, built once: the widgets that paint line by line use them for every segment."""

    def __init__(self, palette: Palette) -> None:
        self.palette = palette
        self.foreground = Style(color=palette.foreground)
        self.dim = Style(color=palette.dim)
        self.faint = Style(color=palette.faint)
        self.accent = Style(color=palette.accent)
        self.success = Style(color=palette.success)
        self.warning = Style(color=palette.warning)
        self.error = Style(color=palette.error)
        self.blue = Style(color=palette.blue)
        self.yellow = Style(color=palette.yellow)
        self.violet = Style(color=palette.violet)
        self.mark = Style(color=palette.mark)
        self.title = Style(color=palette.foreground, bold=True)
        self.key = Style(color=palette.accent, bold=True)
        self.cursor_background = Style(bgcolor=palette.cursor)
        self.panel_background = Style(bgcolor=palette.panel)
        self.removed = Style(color=palette.faint, strike=True)
        self.banner = Style(color=palette.background, bgcolor=palette.error, bold=True)
        self.badge = Style(color=palette.background, bgcolor=palette.accent, bold=True)
        self.ramp_bars = tuple(Style(color=Color.parse(colour), bgcolor=palette.track) for colour in palette.ramp)
        self.ramp_text = tuple(Style(color=Color.parse(colour)) for colour in palette.ramp)
        self.faint_bar = Style(color=palette.faint, bgcolor=palette.track)
        self.progress_bar = Style(color=palette.accent, bgcolor=palette.track)

    def severity(self, severity: str) -> Style:
        """Return the style of a message."""
        return {"success": self.success, "warning": self.warning, "error": self.error}.get(severity, self.dim)

    def layer_state(self, state: str) -> Style:
        """Return the style of a layer's state."""
        for prefix, style in (
            ("FROZEN", self.blue),
            ("frozen", self.blue),
            ("LoRA", self.yellow),
            ("pruned", self.error),
        ):
            if state.startswith(prefix):
                return style
        return self.violet

    def ramp_step(self, rank: float) -> int:
        """Return the step of the ramp for a rank in [0, 1]."""
        steps = len(self.ramp_bars)
        return min(steps - 1, int(rank * steps))


DARK_STYLES, LIGHT_STYLES = ThemeStyles(DARK), ThemeStyles(LIGHT)


def theme_styles(app: App[Any]) -> ThemeStyles:
    """Return the styles that fit the app's current theme."""
    return DARK_STYLES if app.current_theme.dark else LIGHT_STYLES
