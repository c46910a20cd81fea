"""`python -m ebmtraj` is `ebmtraj`."""

from ebmtraj.cli.app import main

main()
