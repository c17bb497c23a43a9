"""An event-driven service, cut into vertical slices."""
