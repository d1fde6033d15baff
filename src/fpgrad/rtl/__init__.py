"""Runs the generated Verilog under Verilator behind the same link as a board."""
