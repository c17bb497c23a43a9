"""What slices may share that is not an event."""
