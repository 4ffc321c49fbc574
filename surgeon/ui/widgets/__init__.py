"""What is painted: the layer table, the panes, the bars, and the input widgets of the dialogs.

May import `surgeon.ui.state`, `surgeon.ui.theme` and `surgeon.ui.commands`, but no screens and no actions.
How something looks goes here; a widget changes no state but its own scroll offset, and reports clicks as messages.
"""
