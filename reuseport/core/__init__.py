"""Pure decisions: no I/O, no clock, no import of the rest of the package."""
