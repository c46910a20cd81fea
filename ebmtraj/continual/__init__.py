"""Learning tasks one after the other: protocol, learners and measures."""
