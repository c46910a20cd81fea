"""`python -m ebmtraj` is `ebmtraj`."""

import signal


def main() -> None:
    """Run the command line; before it is there, Ctrl-C has nothing to put in order, and ends the process as it is."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ebmtraj.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
