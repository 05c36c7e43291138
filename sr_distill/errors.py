"""The one exception that is meant for a person."""


class UserError(Exception):
    """Something the user can put right.

    The message names the file, key or value, what was expected, and what to do. The command line prints it
    without a traceback; a program that uses the package as a library can catch it.
    """
