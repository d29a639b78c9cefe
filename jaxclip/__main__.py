"""The program `jaxclip`, also as `python -m jaxclip`."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C while it is imported takes one line as well."""
    try:
        from jaxclip import cli
    except KeyboardInterrupt:
        print("jaxclip: interrupted", file=sys.stderr)
        return 1
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
