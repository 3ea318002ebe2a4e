"""Lets `python -m frostline` stand for the command `frostline`."""

from frostline.cli import main

main()
