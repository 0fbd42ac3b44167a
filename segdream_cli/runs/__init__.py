"""Jobs: plan, begin, resume, follow, save and stop them, with or without a terminal."""
