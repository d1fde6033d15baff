"""Boards and chips as data, with build plans, tool chains and the bitstream cache."""
