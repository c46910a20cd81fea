"""The one exception that a user is meant to see."""


class EbmtrajError(Exception):
    """A fault in what the user gave or has, said in one line that names the thing and the mend.

    The command line prints it without a traceback and exits with code 2.
    """
