"""The slices of this service, one folder each."""
