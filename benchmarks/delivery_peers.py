"""Peers."""
FORMS: dict = {}
