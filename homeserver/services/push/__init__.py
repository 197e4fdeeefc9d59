"""Push rules at work: compiled, evaluated on events, counted."""
