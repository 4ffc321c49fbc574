"""What the shipped recipes give on the demo model: arms of every experiment, several seeds, tables for the README."""
