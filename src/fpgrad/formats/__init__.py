"""Number formats: descriptions and exact integer arithmetic. No framework and no HDL in here."""

from fpgrad.formats.blockfloat import (
    AccumulatorFormat,
    TileFormat,
    accumulate,
    dequantise,
    drain,
    quantise,
)
from fpgrad.formats.random import random24, seed_lanes, splitmix64, step, uniform
from fpgrad.formats.smallfloat import BF16, FP24, FloatFormat, from_float, to_float
from fpgrad.formats.table import TABLED, Function, Table, TableFormat, make_table

__all__ = [
    "BF16",
    "FP24",
    "TABLED",
    "AccumulatorFormat",
    "FloatFormat",
    "Function",
    "Table",
    "TableFormat",
    "TileFormat",
    "accumulate",
    "dequantise",
    "drain",
    "from_float",
    "make_table",
    "quantise",
    "random24",
    "seed_lanes",
    "splitmix64",
    "step",
    "to_float",
    "uniform",
]
