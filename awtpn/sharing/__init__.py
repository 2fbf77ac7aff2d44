"""Models to give away: an export folder, its card, the hub, and the network as a graph."""
