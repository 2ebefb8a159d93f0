"""Choose among the methods of a configuration."""

from typing import TYPE_CHECKING

from kproba.results.choice import choose, read_summaries, write_choice
from kproba.runtime.logs import log_to

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake

with log_to(snakemake.log[0]):
    summary = read_summaries([snakemake.input.summary])
    choice = choose(summary, without=snakemake.params.without)
    write_choice(choice, snakemake.output.choice)
