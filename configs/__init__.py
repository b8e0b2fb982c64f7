"""Experiments: each file's `get_config()` returns the settings of one, its docstring says how."""
