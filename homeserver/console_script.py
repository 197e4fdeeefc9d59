"""The installed command `mahalla`: does what `python -m homeserver` does."""

import runpy


def main() -> None:
    """Run `homeserver.__main__` as a program, so that it turns off the garbage collector before it
    imports the rest."""
    runpy.run_module("homeserver", run_name="__main__")
