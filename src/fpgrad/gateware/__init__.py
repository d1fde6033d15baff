"""The training machine in Amaranth, one unit a file, with streams at every edge."""
