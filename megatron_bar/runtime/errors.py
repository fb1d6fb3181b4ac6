"""Errors for people."""


class BarError(Exception):
    """Something the user can put right. The message is one line: what, where, what to do.

    The command line prints it without a traceback and exits with status 1.
    """
