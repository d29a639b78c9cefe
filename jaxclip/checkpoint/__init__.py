"""Parameters as flat named arrays, and the one safetensors file that holds them with their config.

Three forms of the same parameters:
  flat     {"visual.transformer.resblocks.0.ln_1.scale": [d], ...}: on disk, one entry a layer
  nested   the same as nested dicts: what `reference` reads
  stacked  flat, but "resblocks.ln_1.scale" [layers, d]: what the Flax modules hold, unless unrolled
Names are compared here, once: modules themselves would accept permuted layers without an error.

names    nest, flatten, stack, unstack
files    the safetensors file; `replacing`, for any file; fingerprint
checks   what the arrays of a model must be
rows     the rows of the token table that are used
model    save and load, with the config
"""

from jaxclip.checkpoint.checks import (
    NOT_FINITE,
    check,
    check_model,
    is_finite,
    parameter_fault,
    shorten,
)
from jaxclip.checkpoint.files import (
    DTYPES,
    fingerprint,
    load_arrays,
    replacing,
    save_arrays,
    save_file,
)
from jaxclip.checkpoint.model import FORMAT, load, load_notes, load_stored, read_metadata, save
from jaxclip.checkpoint.names import Flat, flatten, is_stacked, nest, stack, unstack
from jaxclip.checkpoint.rows import ROWS, TABLE, fill_rows, keep_rows

__all__ = [
    "DTYPES",
    "FORMAT",
    "NOT_FINITE",
    "ROWS",
    "TABLE",
    "Flat",
    "check",
    "check_model",
    "fill_rows",
    "fingerprint",
    "flatten",
    "is_finite",
    "is_stacked",
    "keep_rows",
    "load",
    "load_arrays",
    "load_notes",
    "load_stored",
    "nest",
    "parameter_fault",
    "read_metadata",
    "replacing",
    "save",
    "save_arrays",
    "save_file",
    "shorten",
    "stack",
    "unstack",
]
