"""The link over any stream of bytes that may lose, change or repeat some: frames, messages, both ends."""
