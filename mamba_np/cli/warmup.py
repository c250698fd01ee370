"""``mamba-np warmup``: compile the kernels now instead of at the first use."""

import click

STORED = ("float32", "bfloat16", "float16", "int8")

HELP = """Compile the kernels, so that no later command waits for it.

Each is compiled once and kept in a folder of yours: some seconds per dtype the first time, almost
none later.

\b
Examples:
  mamba-np warmup
  mamba-np warmup --dtype float32 --dtype bfloat16
"""


@click.command("warmup", help=HELP, short_help="Compile the kernels now.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(STORED),
    default=("float32",),
    show_default=True,
    help="Storage of the weights to compile for; may be repeated.",
)
def command(dtypes: tuple[str, ...]) -> None:
    """Compile, and say what took how long and where it is kept."""
    from ..kernels.options import cache_folder
    from ..warmup import warmup

    for what, seconds in warmup(dtypes):
        click.echo(f"{what}: {seconds:.1f} s")
    folder = cache_folder()
    click.echo("kept nowhere: no folder can be written" if folder is None else f"kept in {folder}")
