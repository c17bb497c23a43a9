"""The service that bus.py measures: the bus of the template, and one slice of no-ops."""
