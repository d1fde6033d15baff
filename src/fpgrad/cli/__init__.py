"""The fpgrad command: arguments in, calls of the library out."""
