"""The optimisation loop: one step as the paper has it, and the state it works on."""
