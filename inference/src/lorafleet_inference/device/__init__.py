"""Where a model computes: its streams, events, graphs and pinned memory, behind one interface. Nothing else here asks CUDA."""
