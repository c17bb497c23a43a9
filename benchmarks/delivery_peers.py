"""Peers."""

FORMS: dict = {}
