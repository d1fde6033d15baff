"""The contract between compiler and executors: machine configuration, instructions, programs."""
