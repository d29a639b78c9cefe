"""Read and write tables in pages, between marks that name the command that writes them."""

from pathlib import Path

from jaxclip.checkpoint import replacing

END = "<!-- end of the table -->"


def begin(command: str) -> str:
    """The mark above a table that `command` writes."""
    return f"<!-- written by {command} -->"


def table_in(page: Path, command: str) -> str:
    """The text between the marks; ValueError without them."""
    _, there, rest = page.read_text().partition(begin(command))
    table, closed, _ = rest.partition(END)
    if not (there and closed):
        raise ValueError(f"{page} lacks {begin(command)!r} or {END!r} behind it; add both lines")
    return table.strip("\n")


def write_table(page: Path, command: str, table: str) -> None:
    """Replace the text between the marks by `table`."""
    table_in(page, command)
    before, mark, rest = page.read_text().partition(begin(command))
    after = rest.partition(END)[2]
    with replacing(page) as temporary:
        temporary.write_text(f"{before}{mark}\n{table}\n{END}{after}")
