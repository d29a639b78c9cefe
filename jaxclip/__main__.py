"""The program `jaxclip`, also as `python -m jaxclip`."""

import sys

from jaxclip import __version__


def main() -> int:
    """The exit code of the command line; Ctrl-C while it is imported takes one line as well."""
    if sys.argv[1:] == ["--version"]:
        print(f"jaxclip {__version__}")
        return 0
    try:
        from jaxclip import cli
    except KeyboardInterrupt:
        print("jaxclip: interrupted", file=sys.stderr)
        return 1
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
