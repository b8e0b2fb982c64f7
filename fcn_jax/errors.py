"""The one exception that people at the terminal see."""


class UserError(Exception):
    """A mistake that the person can mend: names the file or setting, the value and the remedy.

    The commands print it as one line, without a traceback, and exit with status 1.
    """
