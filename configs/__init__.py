"""Experiments. Each file returns the settings of one, and its docstring states the command."""
