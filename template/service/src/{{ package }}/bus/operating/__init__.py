"""What operators do with deliveries: look, change, replay and check."""
