"""What operators do with deliveries: look, change, replay, check, and remove what is old."""
