"""Errors a user can act on: the commands print their message and exit with 2, without a traceback."""


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, where, and what would be right."""
