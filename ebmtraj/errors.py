"""The exceptions that a user is meant to see."""


class EbmtrajError(Exception):
    """A fault in what the user gave or has, said in one line that names the thing and the mend.

    The command line prints it without a traceback and exits with code 2.
    """


class DivergedError(EbmtrajError):
    """A model whose training or rollouts did not stay finite: a fault of that model alone, which others can outlive."""
