"""The meaning of every instruction in NumPy: the specification all other executors are held to."""
