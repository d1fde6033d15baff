"""From a training graph to a program: tile, schedule, allocate, emit, and the cost model."""
