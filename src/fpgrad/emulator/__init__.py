"""The native executor: the same bits as the reference, fast, with cycles counted."""
