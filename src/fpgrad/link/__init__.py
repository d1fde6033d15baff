"""Links between host and machine: frame, gateware end and host end of one link share a folder."""
