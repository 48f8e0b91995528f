"""Files of weights, read without running anything of what they hold."""
